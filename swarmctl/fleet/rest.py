"""Sending a host to sleep: whether somebody uses it, the command by which it goes, and seeing that it went.

The host is asked in one round trip (rest.sh). `against` is pure: who or what speaks against it now.
"""

from __future__ import annotations

import re
import shlex
import time
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from swarmctl.errors import CommandTimeout, ConnectionLost, HostUnreachable, SwarmError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from swarmctl.fleet.remote import Remote

ASK_TIMEOUT = 30.0
#: A GPU draws some percent for a desktop; a model at work draws all of it.
BUSY_GPU = 10
#: Starts the command a moment after our own connection has ended, and keeps what it says.
LATER = ('mkdir -p "${1%/*}"; log=$1; shift; '
         'nohup sh -c \'sleep 1; exec "$@"\' sh "$@" >"$log" 2>&1 </dev/null &')
GONE = (HostUnreachable, ConnectionLost, CommandTimeout)
POLL = 1.0


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody at a terminal or a desktop of the host, and the seconds since the last key."""

    name: str
    place: str
    idle: float


@dataclass(frozen=True, slots=True)
class Use:
    """How a host is used right now. `load` is its load average a processor, `gpu` the busiest GPU's percent,
    `peers` who else is connected by SSH, `lock` who changes it, `inhibits` what forbids sleep in logind's
    words; `way` is the command that sends it to sleep, or `no_way` why there is none. `data_dir` is
    absolute."""

    uptime: float
    load: float
    people: tuple[Person, ...] = ()
    peers: tuple[str, ...] = ()
    gpu: float = 0.0
    lock: str = ""
    inhibits: tuple[str, ...] = ()
    way: tuple[str, ...] = ()
    no_way: str = ""
    data_dir: str = "."


def ask_use(remote: Remote, data_dir: str, action: str) -> Use:
    """Ask a host how it is used, and by which command it would `action` (suspend or poweroff). Raises
    RemoteErrors, and SwarmError where its answer is none."""
    done = remote.run(("sh", "-s", "--", data_dir, action), timeout=ASK_TIMEOUT, stdin=_script())
    return parse_use(done.stdout, remote.host)


def parse_use(text: str, host: str = "") -> Use:
    """What rest.sh printed → data; anything before its first line (a login banner) is skipped. Pure."""
    lines = text.splitlines()
    if "rest 1" not in lines or "end" not in lines:
        raise SwarmError("whether it is in use cannot be seen: its answer was cut off", host=host or None)
    said = [line.partition(" ")[::2] for line in lines[lines.index("rest 1"):]]

    def all_of(key: str) -> tuple[str, ...]:
        return tuple(value.strip() for name, value in said if name == key)

    def first(key: str) -> str:
        return next(iter(all_of(key)), "")

    load = re.fullmatch(r"([0-9]{1,6}\.[0-9]{1,4}) ([0-9]{1,5})", first("load"))
    people = (value.split() for value in all_of("user"))
    gpus = (float(value) for value in all_of("gpu") if re.fullmatch(r"[0-9]{1,3}", value))
    return Use(
        uptime=float(first("uptime")) if first("uptime").isdigit() else 0.0,
        load=float(load[1]) / max(1, int(load[2])) if load else 0.0,
        people=tuple(Person(words[0], words[1], float(words[2])) for words in people
                     if len(words) == 3 and words[2].isdigit()),
        peers=all_of("peer"), gpu=max(gpus, default=0.0), lock=first("lock"), inhibits=all_of("inhibit"),
        way=tuple(shlex.split(first("way"))), no_way=first("no"), data_dir=first("data") or ".")


def against(use: Use, *, quiet: float, most_load: float) -> Iterator[str]:
    """Everything that speaks against sleep now, in words. People who have typed nothing for `quiet` seconds
    do not; `most_load` is the load average a processor that an idle host may have."""
    for person in use.people:
        if person.idle < quiet:
            ago = "is typing" if person.idle < 60 else f"typed {person.idle / 60:.0f} min ago"
            yield f"{person.name} {ago} at {person.place}"
    for peer in use.peers:
        yield f"somebody is connected from {peer}"
    if use.lock:
        yield f"{use.lock} is changing it"
    for inhibit in use.inhibits:
        yield f"sleep is forbidden by {' '.join(inhibit.split())}"
    if use.gpu > BUSY_GPU:
        yield f"a GPU is at work ({use.gpu:.0f} %)"
    if use.load > most_load:
        yield f"it computes (load {use.load:.2f} a processor)"


def send_to_sleep(remote: Remote, command: Sequence[str], log: str, *, limit: float,
                  clock: Callable[[], float] = time.monotonic) -> float:
    """Run the command and wait until the host answers no more; the seconds that took. Raises SwarmError, with
    what the command said (kept on the host in `log`), where it still answers after `limit` seconds."""
    remote.run(("sh", "-c", LATER, "sh", log, *command), timeout=ASK_TIMEOUT)
    remote.close()
    began = clock()
    while clock() - began < limit:
        time.sleep(POLL)
        try:
            said = remote.run(("cat", log), timeout=POLL * 5, check=False).stdout.strip()
        except GONE:
            return clock() - began
        finally:
            remote.close()
    raise SwarmError(f"it is still awake {limit:.0f} s after `{shlex.join(command)}`"
                     + (f": {said[-300:]}" if said else ""), host=remote.host,
                     hint="run the command there by hand; `sleep_command` in the inventory names another")


@cache
def _script() -> bytes:
    return (files("swarmctl.fleet") / "rest.sh").read_bytes()
