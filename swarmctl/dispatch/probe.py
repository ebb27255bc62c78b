"""How the likely candidates stand this very moment: reachable, loading, busy.

Only those that the price puts in front are asked, all at once, each for a bounded time. A ping is answered
beside the model's work, so silence there means the host or its tunnel hangs; the slots may be slow to come
while a long prompt is read, and then the server counts as busy, not as gone. An intermittent host
that was away, or whose tunnel is cold, is verified first (see verify).
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from swarmctl.dispatch.breakers import read_breaker
from swarmctl.dispatch.marks import mark_down, read_mark
from swarmctl.dispatch.returning import look_whether_back
from swarmctl.dispatch.slots import TELLING, claimed
from swarmctl.dispatch.swarm import Sighting
from swarmctl.dispatch.verify import verification
from swarmctl.errors import ServerUnavailable
from swarmctl.fleet.standing import read_aside
from swarmctl.routing.cost import Route, Standing, choose
from swarmctl.runtimes.http import TunnelDown
from swarmctl.runtimes.named import runtime

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.dispatch.verify import Verification
    from swarmctl.routing.cost import Candidate, Question
    from swarmctl.runtimes.base import Endpoint

AT_ONCE = 4
#: Seconds for which a process that stays takes a server that was well for well; fewer where others were at
#: work there, who may be done by now.
FRESH, FRESH_WITH_OTHERS = 1.0, 0.1
#: So many seconds after a question wanted it, a server is looked at again once the last look is that old.
WANTED, AGEING = 10.0, 0.4
HEALTH_TIMEOUT = 1.5
SLOTS_TIMEOUT = 0.3

Key = tuple[str, str]


def route(swarm: Swarm, question: Question, candidates: Sequence[Candidate], now: float,
          holder: tuple[str, str] | None = None, cached_characters: int = 0) -> Route:
    """Price the candidates, look at how the best ones stand, and price again until the first is one that was
    looked at. `holder` is the (host, model) that holds `cached_characters` of this conversation in its
    cache."""
    standing = _known(swarm, candidates, now)
    for candidate in candidates:
        if holder == (candidate.host, candidate.model):
            held = standing[_key(candidate)]
            standing[_key(candidate)] = replace(held, cached_characters=cached_characters)
    looked: set[Key] = set()
    while True:
        found = choose(question, [(c, standing[_key(c)]) for c in candidates], swarm.tariff)
        if _key(found.chosen.candidate) in looked:
            return found
        front = [p.candidate for p in found.prices if _key(p.candidate) not in looked][:AT_ONCE]
        for key, seen in look(swarm, front, now).items():
            looked.add(key)
            standing[key] = replace(seen, cached_characters=standing[key].cached_characters)


def _known(swarm: Swarm, candidates: Sequence[Candidate], now: float) -> dict[Key, Standing]:
    """How the candidates stand by what was written down. Marks are ignored where they leave nobody; what an
    admin set aside stays out, and so does an intermittent host that has not shown that it is well."""
    noted = _noted(swarm)
    plain = [c for c in candidates if not noted & {f"{c.host}.json", f"{c.host}@{c.server}.json"}]
    if plain:
        found = {_key(c): Standing() for c in plain}
        return found | _noted_ones(swarm, [c for c in candidates if _key(c) not in found], now, alone=False)
    return _noted_ones(swarm, candidates, now, alone=True)


def _noted(swarm: Swarm) -> set[str]:
    """The names of all files that say something of a host or a server: most say nothing, and need not be
    looked for one by one."""
    names: set[str] = set()
    for folder in ("standing", "down", "breakers"):
        with suppress(OSError):
            names.update(os.listdir(f"{swarm.paths.state}/{folder}"))  # noqa: PTH208
    return names


def _noted_ones(swarm: Swarm, candidates: Sequence[Candidate], now: float, *,
                alone: bool) -> dict[Key, Standing]:
    """How those stand of whom something is written down; `alone` says that there are no others."""
    aside = {host: word.why for host in {c.host for c in candidates}
             if (word := read_aside(swarm.paths, host))}
    found = {_key(c): Standing(out=aside[c.host]) for c in candidates if c.host in aside}
    left = [c for c in candidates if c.host not in aside]
    marked = {_key(c): _from_marks(swarm, c, now) for c in left}
    back = _returning(swarm, left, now, alone and all(s.out for s in marked.values()))
    if alone and all(c.host in back or marked[_key(c)].out for c in left):
        well = [host for host in back if back[host].wait()]
        marked = marked if well else {_key(c): Standing() for c in left}
    return {**found, **marked, **{_key(c): Standing(out=back[c.host].why) for c in left if c.host in back}}


def _returning(swarm: Swarm, candidates: Sequence[Candidate], now: float,
               nobody: bool) -> dict[str, Verification]:
    """The intermittent hosts to be verified now: their pause is over, or there is nobody else."""
    found = {}
    for host in dict.fromkeys(c.host for c in candidates):
        mark = read_mark(swarm.paths, host)
        if mark and mark.verify and (nobody or mark.until <= now):
            found[host] = verification(swarm, tuple(c for c in candidates if c.host == host), now)
    return found


def look(swarm: Swarm, candidates: Sequence[Candidate], now: float) -> dict[Key, Standing]:
    """Ask several servers at once how they stand. Where `swarm.seen` remembers that one was well a moment
    ago, only what we have under way there is counted anew."""
    found = {_key(c): again for c in candidates if (again := _remembered(swarm, c))}
    left = [c for c in candidates if _key(c) not in found]

    def one(candidate: Candidate) -> None:
        found[_key(candidate)] = _look(swarm, candidate, now)
        if swarm.seen is not None:
            at = time.monotonic()
            swarm.seen[_key(candidate)] = Sighting(found[_key(candidate)], at, at)

    if len(left) == 1:
        one(left[0])
        return found
    threads = [threading.Thread(target=one, args=(c,), daemon=True) for c in left]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HEALTH_TIMEOUT * 2 + SLOTS_TIMEOUT * 2)
    silent = Standing(out="it did not answer in time")
    return {_key(c): found.get(_key(c), silent) for c in candidates}


def _remembered(swarm: Swarm, candidate: Candidate) -> Standing | None:
    """A server that was well a moment ago, as busy as it is with us now and was with others then."""
    sighting = (swarm.seen or {}).get(_key(candidate))
    if sighting is None or not _well(sighting.standing):
        return None
    sighting.wanted = now = time.monotonic()
    seen = sighting.standing
    if now - sighting.at > (FRESH_WITH_OTHERS if seen.others else FRESH):
        return None
    return replace(seen, busy=claimed(swarm.paths, candidate, seen.slots) + seen.others)


def renew(swarm: Swarm, candidate: Candidate) -> None:
    """Look again at a server that was well, ahead of the question that would have to. Of one that is not any
    more only the sighting is forgotten: what to do about it is for the question that wants it."""
    endpoint, seen = swarm.endpoint(candidate), swarm.seen or {}
    before = seen.get(_key(candidate))
    try:
        well = runtime(candidate.runtime).ping(endpoint, timeout=HEALTH_TIMEOUT)
        standing = _busy(swarm, candidate, endpoint) if well else None
    except ServerUnavailable:
        standing = None
    if before is None or seen.get(_key(candidate)) is not before:
        return  # a question has just seen it otherwise
    if standing is None:
        seen.pop(_key(candidate), None)
    else:
        before.standing, before.at = standing, time.monotonic()


def ageing(swarm: Swarm, now: float) -> tuple[Candidate, ...]:
    """The servers that questions want, that were well, and that should be looked at again soon."""
    seen = dict(swarm.seen or {})
    return tuple(one for one in swarm.candidates if (last := seen.get(_key(one))) and _well(last.standing)
                 and now - last.wanted < WANTED and now - last.at >= AGEING)


def _well(standing: Standing) -> bool:
    return not standing.out and standing.warm and standing.loaded


def _look(swarm: Swarm, candidate: Candidate, now: float) -> Standing:
    endpoint = swarm.endpoint(candidate)
    try:
        loaded = runtime(candidate.runtime).ping(endpoint, timeout=HEALTH_TIMEOUT)
    except TunnelDown:
        # A cold tunnel is no fault; a local server that does not listen is.
        if endpoint.socket and swarm.host(candidate.host).intermittent:
            verified = verification(swarm, (candidate,), now)
            return Standing() if verified.wait() else Standing(out=verified.why)
        return Standing(warm=False) if endpoint.socket else Standing(out="no server listens there")
    except ServerUnavailable as exc:
        if "no answer within" in str(exc):
            mark_down(swarm.paths, candidate.host, str(exc), now,
                      verify=swarm.host(candidate.host).intermittent)
        return Standing(out=str(exc))
    if not loaded:
        return Standing(loaded=False, busy=claimed(swarm.paths, candidate, candidate.parallel))
    return _busy(swarm, candidate, endpoint)


def _busy(swarm: Swarm, candidate: Candidate, endpoint: Endpoint) -> Standing:
    """What the server counts, and how much of it is ours: at least what we held before and after it counted.
    Of one that does not count, what this machine has under way there; one too busy to say is at least that
    busy, and with others where it is not with us."""
    before = claimed(swarm.paths, candidate, candidate.parallel)
    if candidate.runtime not in TELLING:
        return Standing(busy=before, slots=candidate.parallel)
    try:
        load = runtime(candidate.runtime).load(endpoint, timeout=SLOTS_TIMEOUT)
    except ServerUnavailable:
        return Standing(busy=max(before, 1), slots=candidate.parallel, others=0 if before else 1)
    ours = claimed(swarm.paths, candidate, load.slots)
    others = max(0, load.busy - max(before, ours))
    return Standing(busy=ours + others, slots=load.slots, others=others)


def _from_marks(swarm: Swarm, candidate: Candidate, now: float) -> Standing:
    """What is remembered: that its host could not be reached, or that the server itself failed."""
    mark = read_mark(swarm.paths, candidate.host)
    if mark is not None and mark.until > now:
        if not mark.verify:
            look_whether_back(swarm, candidate)
        return Standing(
            out=f"{mark.why}; tried again in {mark.until - now:.0f} s, or by `swarmctl status` now")
    breaker = read_breaker(swarm.paths, candidate.host, candidate.server)
    if breaker.state(now) != "open":
        return Standing()
    return Standing(out=f"it failed ({breaker.why}); tried again in {breaker.until - now:.0f} s")


def _key(candidate: Candidate) -> Key:
    return candidate.host, candidate.server
