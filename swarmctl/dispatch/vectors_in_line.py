"""All servers of an embedding model as one lane that claims slots: each batch holds one from before it is
sent until its vectors are there, as a question does, and waits in the queue of all where none is free.

What is under way there thus counts for everybody who asks, and a client's many texts let others in between.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from swarmctl.dispatch.admission import admit
from swarmctl.dispatch.attempt import remember_failure, remember_success
from swarmctl.dispatch.probe import route
from swarmctl.dispatch.swarm import make_candidate
from swarmctl.errors import RemoteError, RequestRejected, ServerError
from swarmctl.routing.cost import Question
from swarmctl.runtimes.http import beneath, until

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmctl.dispatch.admission import Terms
    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.dispatch.vectors import ServerLane
    from swarmctl.routing.cost import Candidate, Price
    from swarmctl.runtimes.embedding import Embedded

#: What is read a second where nothing was measured.
UNMEASURED = 1000.0


class LaneInLine:
    """See vectors.Lane. A server that fails is left, and asked no more by this one. Closing it ends what its
    threads wait for, in line or at a server. It ends with the Hangup of the thread that made it."""

    def __init__(self, swarm: Swarm, lanes: Sequence[ServerLane], terms: Terms, at_once: int) -> None:
        self.at_once = max(1, min(at_once, sum(max(1, lane.served.parallel) for lane in lanes)))
        self._swarm = swarm
        self._lanes = {(lane.entry.name, lane.served.server): lane for lane in lanes}
        self._terms = terms
        self._used: dict[str, None] = {}
        self._hangup, self._part = beneath()

    @property
    def where(self) -> str:
        """The hosts that gave vectors, in the order in which they first did."""
        return ", ".join(self._used) or ", ".join(dict.fromkeys(host for host, _ in self._lanes))

    def embed(self, texts: Sequence[str]) -> Embedded:
        """See Lane.embed; raises Busy too, NoCandidate where no server is left, HungUp where nobody waits for
        it any more."""
        asked = time.monotonic()
        with until(self._hangup):
            left = self._prices(texts)
            while True:
                price, found = self._try(left, texts, asked)
                if not isinstance(found, Exception):
                    self._used[price.candidate.host] = None
                    return found
                self._lanes.pop(_key(price.candidate), None)
                left = [one for one in left if _key(one.candidate) in self._lanes]
                if not left:
                    raise found

    def check(self) -> None:
        """See Lane.check."""
        with until(self._hangup):
            for lane in tuple(self._lanes.values())[:1]:
                lane.check()

    def close(self) -> None:
        """Leave the line and every server at once."""
        self._hangup.now()
        self._part()

    def _try(self, prices: Sequence[Price], texts: Sequence[str],
             asked: float) -> tuple[Price, Embedded | RemoteError | ServerError]:
        """Who was asked, and its vectors or how it failed."""
        with admit(self._swarm, prices, self._terms, asked) as admitted:
            candidate, began = admitted.price.candidate, time.monotonic()
            lane = self._lanes.get(_key(candidate))
            if lane is None:
                return admitted.price, ServerError("it failed a moment ago", host=candidate.host)
            try:
                found = lane.embed(texts)
            except RequestRejected:
                raise
            except (RemoteError, ServerError) as exc:
                remember_failure(self._swarm, candidate, exc, time.time(), time.monotonic() - began)
                return admitted.price, exc
            remember_success(self._swarm, candidate)
            return admitted.price, found

    def _prices(self, texts: Sequence[str]) -> Sequence[Price]:
        question = Question("routine", sum(map(len, texts)), 1)
        candidates = [_candidate(self._swarm, lane) for lane in tuple(self._lanes.values())]
        return route(self._swarm, question, candidates, time.time()).prices if candidates else ()


def _candidate(swarm: Swarm, lane: ServerLane) -> Candidate:
    """An embedding server as questions know servers: it decodes nothing, and each text of a batch has the
    context for itself."""
    made = make_candidate(swarm.paths, lane.entry, lane.served)
    habits = replace(made.habits, prefill_speed=made.habits.prefill_speed or UNMEASURED,
                     decode_speed=math.inf)
    return replace(made, habits=habits, context=0)


def _key(candidate: Candidate) -> tuple[str, str]:
    return candidate.host, candidate.server
