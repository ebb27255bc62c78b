"""Many questions to one release, over every server that serves it at once.

What was answered is on disk before the next question goes out, so an evaluation that was cut goes on where it
was. A server that fails drops out and its question goes to another. Each question claims a slot as all others
do, and waits behind them: an evaluation has time.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from swarmctl.dispatch.admission import Terms, admit
from swarmctl.dispatch.swarm import make_swarm
from swarmctl.errors import Busy, RemoteError, RequestRejected, ServerError, ServerUnavailable, StreamBroken
from swarmctl.exchange import ChatRequest, Timings
from swarmctl.routing.cost import Question as Priced
from swarmctl.routing.cost import Standing, price
from swarmctl.routing.waiting import LAST
from swarmctl.runtimes.http import HungUp, TunnelDown, beneath, pause, until
from swarmctl.runtimes.named import runtime

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from swarmctl.dispatch.admission import Admitted
    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.evaluation.questions import Question
    from swarmctl.exchange import Chunk
    from swarmctl.fleet.snapshot import Fleet
    from swarmctl.paths import Paths
    from swarmctl.routing.cost import Candidate
    from swarmctl.runtimes.http import Hangup

CONNECT_TIMEOUT = 5.0
FIRST_TOKEN_TIMEOUT = 120.0
TOKEN_TIMEOUT = 60.0
POLL = 0.1
AT_ONCE = 4
#: Where the queue is full, it is tried again after so many seconds at most.
AGAIN = 5.0


@dataclass(frozen=True, slots=True)
class Style:
    """How every question is asked. Temperature None is the server's own, as `ask` has it."""

    temperature: float | None = None
    max_tokens: int = 512
    samples: int = 1

    @property
    def tag(self) -> str:
        """What tells answers that were asked for in one way from those of another."""
        heat = "server" if self.temperature is None else f"{self.temperature:g}"
        return f"t{heat}-{self.max_tokens}"


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. `sample` counts a question's answers from 0."""

    key: str
    sample: int
    answer: str
    finish: str
    seconds: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Lane:
    """One server of a release."""

    swarm: Swarm
    candidate: Candidate

    def ask(self, question: Question, sample: int, style: Style) -> Reply:
        """One answer. Raises RemoteError, ServerError."""
        request = ChatRequest(question.messages, style.max_tokens, style.temperature, _seed(question, sample))
        return self.reply(request, question.key, sample)

    def reply(self, request: ChatRequest, key: str = "", sample: int = 0) -> Reply:
        """The whole answer to a request, once a slot is free; a tunnel found cold is opened. Raises
        RemoteError, ServerError."""
        with self._admitted(request):
            try:
                return self._reply(request, key, sample)
            except TunnelDown:
                if self.swarm.host(self.candidate.host).ssh == "local":
                    raise
                self.swarm.open(self.candidate)
                return self._reply(request, key, sample)

    def _admitted(self, request: ChatRequest) -> Admitted:
        """A slot, however long people keep all of them; whoever waited long enough is no longer the last."""
        asked, priced = time.monotonic(), Priced("routine", request.characters(), request.max_tokens)
        prices = (price(priced, self.candidate, Standing(), self.swarm.tariff),)
        while True:
            try:
                return admit(self.swarm, prices, Terms(LAST), asked)
            except Busy as exc:
                pause(min(exc.retry_after, AGAIN))

    def _reply(self, request: ChatRequest, key: str, sample: int) -> Reply:
        with closing(self._chunks(request)) as chunks:
            said = tuple(chunks)
        if not said or said[-1].finish is None:
            raise StreamBroken("the stream ended without its closing record")
        times = said[-1].timings or Timings()
        return Reply(key, sample, "".join(chunk.text for chunk in said), said[-1].finish,
                     times.decode_seconds or 0.0, times.completion_tokens or 0)

    def _chunks(self, request: ChatRequest) -> Generator[Chunk]:
        yield from runtime(self.candidate.runtime).chat(
            self.swarm.endpoint(self.candidate), request,
            connect_timeout=CONNECT_TIMEOUT, token_timeout=TOKEN_TIMEOUT,
            first_token_timeout=FIRST_TOKEN_TIMEOUT + 4 * self.candidate.load_seconds)


def lanes_of(paths: Paths, fleet: Fleet, digest: str) -> tuple[Lane, ...]:
    """Every server that serves exactly these weights."""
    swarm = make_swarm(paths, fleet)
    return tuple(Lane(swarm, one) for one in swarm.candidates if one.digest == digest)


def lanes_named(paths: Paths, fleet: Fleet, model: str) -> tuple[Lane, ...]:
    """Every server of a model."""
    swarm = make_swarm(paths, fleet)
    return tuple(Lane(swarm, one) for one in swarm.candidates if one.model == model)


def replies(lanes: Sequence[Lane], questions: Sequence[Question], style: Style, kept: Path, *,
            tick: Callable[[int, int], None], lost: Callable[[str, str], None]) -> Mapping[str, list[Reply]]:
    """Every question's answers, by its key. `kept` is the file that remembers them from run to run.

    `tick` is told (done, of all), `lost` of each server that fails. Raises ServerUnavailable where none is
    left.
    """
    wanted = [(question, sample) for question in questions for sample in range(style.samples)]
    found = {(reply.key, reply.sample): reply for reply in _remembered(kept)}
    todo = [(question, sample) for question, sample in wanted if (question.key, sample) not in found]
    tick(len(wanted) - len(todo), len(wanted))
    kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with kept.open("a", encoding="utf-8") as file:
        file.write("\n" * _torn(kept))
        for number, reply in enumerate(_ask_all(lanes, todo, style, lost), 1):
            file.write(json.dumps(asdict(reply)) + "\n")
            file.flush()
            found[reply.key, reply.sample] = reply
            tick(len(wanted) - len(todo) + number, len(wanted))
    return {question.key: [found[question.key, sample] for sample in range(style.samples)]
            for question in questions}


def _seed(question: Question, sample: int) -> int:
    """Each question's own luck, the same for both releases: one seed for all would let the same few draws
    decide every answer."""
    return (int(question.key[:7], 16) + sample) % 2**31


def _torn(kept: Path) -> bool:
    """Whether a dying process left a line without its end."""
    return bool(text := kept.read_bytes()) and not text.endswith(b"\n")


def _remembered(kept: Path) -> Iterator[Reply]:
    """What an earlier run wrote; a line that a dying process tore is asked again."""
    try:
        lines = kept.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        try:
            yield Reply(**json.loads(line))
        except (ValueError, TypeError):
            continue


def _ask_all(lanes: Sequence[Lane], todo: Iterable[tuple[Question, int]], style: Style,
             lost: Callable[[str, str], None]) -> Iterator[Reply]:
    work: queue.SimpleQueue[tuple[Question, int]] = queue.SimpleQueue()
    done: queue.SimpleQueue[Reply | BaseException] = queue.SimpleQueue()
    count = 0
    for count, item in enumerate(todo, 1):  # noqa: B007  the last count is how many there are
        work.put(item)
    hangup, part = beneath()
    hands = [threading.Thread(target=_serve, args=(lane, work, done, style, lost, hangup),
                              name="swarmctl-evaluate", daemon=True)
             for lane in lanes for _ in range(min(AT_ONCE, max(1, lane.candidate.parallel)))]
    for hand in hands:
        hand.start()
    try:
        for _ in range(count):
            yield _next(done, hands)
    finally:
        hangup.now()
        part()


def _next(done: queue.SimpleQueue[Reply | BaseException], hands: Sequence[threading.Thread]) -> Reply:
    while True:
        try:
            found = done.get(timeout=POLL)
        except queue.Empty:
            if not any(hand.is_alive() for hand in hands) and done.empty():
                raise ServerUnavailable("no server of this release is left to answer",
                                        hint="`swarmctl status` says why") from None
            continue
        if isinstance(found, BaseException):
            raise found
        return found


def _serve(lane: Lane, work: queue.SimpleQueue[tuple[Question, int]], done: queue.SimpleQueue[Any],
           style: Style, lost: Callable[[str, str], None], hangup: Hangup) -> None:
    """What a thread does until it is hung up on, which takes it out of the line and off its server."""
    with until(hangup), suppress(HungUp):
        _serve_on(lane, work, done, style, lost, hangup)


def _serve_on(lane: Lane, work: queue.SimpleQueue[tuple[Question, int]], done: queue.SimpleQueue[Any],
              style: Style, lost: Callable[[str, str], None], hangup: Hangup) -> None:
    while not hangup.done:
        try:
            question, sample = work.get(timeout=POLL)
        except queue.Empty:
            continue
        try:
            done.put(lane.ask(question, sample, style))
        except RequestRejected as exc:  # nobody would take it: an empty answer, as a person would get
            done.put(Reply(question.key, sample, "", f"refused: {exc.message}", 0.0, 0))
        except (RemoteError, ServerError) as exc:
            work.put((question, sample))
            lost(lane.candidate.host, exc.message)
            return
