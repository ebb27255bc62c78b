"""Texts to vectors over every server of one embedding model at once: batches in, results in order.

A server that fails drops out, and its batch goes to another; a text that a server refuses is found by
halving its batch, and costs the others nothing. Threads are daemons, so that Ctrl-C leaves at once.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from swarmctl.dispatch.reach import endpoint, open_way
from swarmctl.errors import RemoteError, RequestRejected, ServerError, ServerUnavailable, SwarmError
from swarmctl.fleet.standing import read_aside
from swarmctl.runtimes.http import TunnelDown
from swarmctl.runtimes.named import embedder

if TYPE_CHECKING:
    from array import array
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from swarmctl.fleet.snapshot import Fleet, HostEntry, Served
    from swarmctl.paths import Paths
    from swarmctl.runtimes.base import Endpoint
    from swarmctl.runtimes.embedding import Embedded

CONNECT_TIMEOUT = 5.0
#: seconds that any batch may take, and how much more than expected
PATIENCE, SLACK = 60.0, 6.0
#: requests in flight at one server: one at work, one on its way
AT_ONCE = 2
POLL = 0.2
#: few enough that a token is never counted too small
CHARACTERS_PER_TOKEN = 2


class Lane(Protocol):
    """One place where texts become vectors."""

    @property
    def where(self) -> str:
        """What a person calls it."""
        ...

    @property
    def at_once(self) -> int:
        """How many batches it is given at a time."""
        ...

    def embed(self, texts: Sequence[str]) -> Embedded:
        """Embed a batch. Raises RequestRejected for its texts, ServerUnavailable or RemoteError for
        itself."""
        ...

    def check(self) -> None:
        """Raises ServerUnavailable where it embeds nothing at all."""
        ...


@dataclass(frozen=True, slots=True)
class ServerLane:
    """An embedding model served on a host; its tunnel is opened when it is found cold."""

    paths: Paths
    fleet: Fleet
    entry: HostEntry
    served: Served
    at_once: int = AT_ONCE

    @property
    def where(self) -> str:
        """The host's name."""
        return self.entry.name

    def embed(self, texts: Sequence[str]) -> Embedded:
        """See Lane.embed."""
        try:
            return self._ask(texts)
        except TunnelDown:
            if self.entry.ssh == "local":
                raise
            open_way(self.paths, self.fleet, self.entry)
            return self._ask(texts)

    def check(self) -> None:
        """See Lane.check."""
        health = embedder(self.served.runtime).health(self._endpoint(), timeout=PATIENCE)
        if health.state not in ("ready", "idle"):
            raise ServerUnavailable(f"{health.state}: {health.detail}")

    def _ask(self, texts: Sequence[str]) -> Embedded:
        tokens = sum(len(text) // CHARACTERS_PER_TOKEN + 2 for text in texts)
        expected = self.served.load_seconds + self.at_once * tokens / max(self.served.prefill_speed, 1.0)
        return embedder(self.served.runtime).embed(self._endpoint(), texts, connect_timeout=CONNECT_TIMEOUT,
                                                   timeout=PATIENCE + SLACK * expected)

    def _endpoint(self) -> Endpoint:
        return endpoint(self.paths, self.entry, self.served.port, self.served.called)


def server_lanes(paths: Paths, fleet: Fleet) -> tuple[ServerLane, ...]:
    """Every server of the snapshot that makes vectors, but for hosts that an admin set aside."""
    return tuple(ServerLane(paths, fleet, entry, served) for entry in fleet.hosts for served in entry.served
                 if served.embedding and not read_aside(paths, entry.name))


@dataclass(frozen=True, slots=True)
class Done:
    """A batch's results: for each of its texts a vector, or why it was refused. `tokens` of those that were
    not."""

    results: tuple[array[float] | str, ...]
    tokens: int


def embed_all(lanes: Sequence[Lane], batches: Iterable[Sequence[str]],
              lost: Callable[[str, SwarmError], None]) -> Iterator[Done]:
    """Embed batches over all lanes; yields in the order of the batches, reading only a few ahead.

    `lost` is told once of each lane that fails. Raises the last failure where no lane is left.
    """
    crew = _Crew(lost)
    crew.start(lanes)
    waiting: deque[_Job] = deque()
    try:
        for batch in batches:
            waiting.append(_Job(tuple(batch)))
            crew.jobs.put(waiting[-1])
            while len(waiting) > 2 * crew.hands:
                yield crew.result(waiting.popleft())
        while waiting:
            yield crew.result(waiting.popleft())
    finally:
        crew.stopped = True


@dataclass(slots=True)
class _Job:
    texts: tuple[str, ...]
    ready: threading.Event = field(default_factory=threading.Event)
    done: Done | None = None
    failed: BaseException | None = None


class _Crew:
    """The threads that work for one run; a lane has `at_once` of them."""

    def __init__(self, lost: Callable[[str, SwarmError], None]) -> None:
        self.jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self.stopped = False
        self.hands = 0
        self._left = 0
        self._lost = lost
        self._failed: dict[int, SwarmError] = {}
        self._lock = threading.Lock()

    def start(self, lanes: Sequence[Lane]) -> None:
        self.hands = self._left = sum(lane.at_once for lane in lanes)
        for lane in lanes:
            for _ in range(lane.at_once):
                threading.Thread(target=self._serve, args=(lane,), name="swarmctl-embed", daemon=True).start()

    def result(self, job: _Job) -> Done:
        while not job.ready.wait(POLL):
            if self._left == 0 and not job.ready.is_set():
                raise next(reversed(self._failed.values()), SwarmError("the embedding ended unexpectedly"))
        if job.failed is not None:
            raise job.failed
        assert job.done is not None
        return job.done

    def _serve(self, lane: Lane) -> None:
        try:
            while not self.stopped and id(lane) not in self._failed:
                try:
                    job = self.jobs.get(timeout=POLL)
                except queue.Empty:
                    continue
                try:
                    job.done = _done(lane, job.texts)
                except (RemoteError, ServerError) as exc:
                    self._drop(lane, exc)
                    self.jobs.put(job)
                except BaseException as exc:  # noqa: BLE001  raised where the result is waited for
                    job.failed = exc
                    job.ready.set()
                else:
                    job.ready.set()
        finally:
            with self._lock:
                self._left -= 1

    def _drop(self, lane: Lane, exc: SwarmError) -> None:
        with self._lock:
            first = id(lane) not in self._failed
            self._failed.setdefault(id(lane), exc)
        if first:
            self._lost(lane.where, exc)


def _done(lane: Lane, texts: Sequence[str]) -> Done:
    found = _halved(lane, texts)
    if all(isinstance(result, str) for result in found.results):
        lane.check()
    return found


def _halved(lane: Lane, texts: Sequence[str]) -> Done:
    """Embed a batch; one that is refused is halved, down to the text that is to blame."""
    try:
        found = lane.embed(texts)
    except RequestRejected as exc:
        if len(texts) == 1:
            return Done((exc.message,), 0)
        middle = len(texts) // 2
        first, second = _halved(lane, texts[:middle]), _halved(lane, texts[middle:])
        return Done((*first.results, *second.results), first.tokens + second.tokens)
    return Done(found.vectors, found.tokens)
