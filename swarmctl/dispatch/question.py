"""One question, whole: categorised, routed, answered, recorded, remembered as its terminal's last."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from swarmctl.dispatch.admission import Terms
from swarmctl.dispatch.answer import Cancelled
from swarmctl.dispatch.canary import divided, find_way, named
from swarmctl.dispatch.cascade import Cascade
from swarmctl.dispatch.embedded import seen
from swarmctl.dispatch.on_demand import wake_for
from swarmctl.dispatch.record import fresh_id, record
from swarmctl.dispatch.shadow import SHADOW_VIA, ask_in_shadow
from swarmctl.errors import LedgerError, NoCandidate, ServerUnavailable, Unsupported, UsageError, VectorsOnly
from swarmctl.exchange import DEFAULT_SAMPLING, ChatRequest, Message
from swarmctl.fleet.standing import read_aside
from swarmctl.ledger.terminal import Last, forget, remember
from swarmctl.routing.category import Categorised, categorise
from swarmctl.routing.cost import Question
from swarmctl.routing.explore import decide

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from swarmctl.dispatch.answer import Outcome, Sink
    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.errors import ServerError
    from swarmctl.exchange import Chunk, Exchange, Sampling
    from swarmctl.routing.cost import Candidate, Price, Route
    from swarmctl.routing.explore import Trial

#: `via` of what comes through the gateway, which is no terminal that would go on with its last answer
SERVED = "serve"
COMPARING = "compare"


@dataclass(frozen=True, slots=True)
class Attachment:
    """A text file that comes with a question."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as a person put it. `history` is the conversation so far, `previous` the id of its last
    exchange, and `holder` the (host, model) that answered it and may still hold it in its cache. `results` of
    tool calls come before the question, which may be empty beside them. `images` belong to the question.
    `prefill` is the answer's beginning, where it is given. Where it has to wait for a slot, a higher
    `priority` comes earlier. An `important` question is never spent on learning. The rest is as in
    ChatRequest."""

    prompt: str
    attachments: tuple[Attachment, ...] = ()
    system: str | None = None
    model: str | None = None
    host: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    schema: Mapping[str, Any] | None = None
    history: tuple[Message, ...] = ()
    previous: str | None = None
    conversation: str | None = None
    holder: tuple[str, str] | None = None
    via: str = "ask"
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str | None = None
    results: tuple[Message, ...] = ()
    images: tuple[str, ...] = ()
    prefill: str = ""
    stop: tuple[str, ...] = ()
    sampling: Sampling = DEFAULT_SAMPLING
    logprobs: bool = False
    top_logprobs: int | None = None
    think: bool | str | None = None
    raw: bool = False
    priority: int = 0
    important: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of it, as recorded, with the route and the category's reason for --explain. `woken` is a host
    that slept and is being woken for questions like this one; `shadow` a model that is being asked the same
    beside, to learn about it."""

    exchange: Exchange
    route: Route
    categorised: Categorised
    woken: str | None = None
    shadow: str | None = None


def put(swarm: Swarm, asked: Asked, sink: Sink, *, terminal: str, clock: Callable[[], float],
        routed: Callable[[Route, Categorised], None] | None = None,
        watch: Callable[[Chunk], None] | None = None, identity: str | None = None,
        waiting: Callable[[int, float], None] | None = None,
        speaks: Callable[[Price], None] | None = None, resume: bool = False) -> Answered:
    """Route a question, stream its answer into `sink`, record it, and remember it as this terminal's last.

    `routed` is told the route before the first token, `watch` sees every chunk before the sink; `identity` is
    the exchange's id where that had to be known before; `waiting` is told once where every slot is taken: how
    many wait before it, and for about how many seconds; `speaks` and `resume` as in Terms.

    On Ctrl-C the partial answer is recorded as cancelled and KeyboardInterrupt goes on. Raises UsageError for
    a model or host that nobody serves, NoCandidate, RequestRejected, Busy (no slot came free),
    ServerUnavailable (every candidate failed), Unrecorded (answered, but that could not be kept).
    """
    started = clock()
    request = as_request(asked)
    sort, question = as_question(asked, request, swarm)
    identity = identity or fresh_id(started)
    way, woken = _route(swarm, asked, question, started, asked.conversation or identity)
    way, trial = _tried(swarm, asked, way, identity)
    barred = "a model was asked for by name" if asked.model else trial.why if trial else ""
    cascade = Cascade(swarm, way, request, sort.category, barred)
    if routed:
        routed(cascade.way, sort)

    def keep(outcome: Outcome) -> Exchange:
        try:
            row = record(swarm, request, cascade.way, outcome, category=sort.category, now=started,
                         conversation=asked.conversation, parent=asked.previous, terminal=terminal,
                         via=asked.via, identity=identity, cascade=cascade.record(outcome),
                         explored=trial is not None and not trial.shadow)
        except LedgerError:
            forget(swarm.paths, terminal)
            raise
        if asked.via != SERVED:
            remember(swarm.paths, terminal, Last(row.id, row.conversation))
        return row

    try:
        terms = Terms(asked.priority, waiting, speaks, resume)
        outcome = cascade.answer(sink, clock, watch=watch, terms=terms)
    except Cancelled as stop:
        keep(stop.outcome)
        raise
    row = keep(outcome)
    if outcome.finish == "error":
        raise _all_failed(outcome)
    shadow = trial.price.candidate if trial and trial.shadow else None
    if shadow and not ask_in_shadow(swarm, row.id, shadow):
        shadow = None
    return Answered(row, cascade.way, sort, woken, shadow.model if shadow else None)


def _tried(swarm: Swarm, asked: Asked, way: Route, identity: str) -> tuple[Route, Trial | None]:
    """The way with what is to be learned from in front, where this exchange is spent on learning. A
    conversation is not, once it is under way: its host holds it in its cache."""
    named = asked.model or asked.host or asked.important or asked.history
    if named or asked.via in (COMPARING, SHADOW_VIA):
        return way, None
    prices = way.prices[:len(way.prices) - way.stand_ins]
    trial = decide(prices, identity, swarm.fleet.routing.explore, swarm.tariff.bad_answer)
    if trial is None or trial.shadow:
        return way, trial
    rest = tuple(price for price in way.prices if price is not trial.price)
    return replace(way, prices=(trial.price, *rest), reason=trial.why), trial


def _route(swarm: Swarm, asked: Asked, question: Question, now: float,
           conversation: str) -> tuple[Route, str | None]:
    """The way of a question, and the sleeping host that is woken because of it. Comparing is not sharing out:
    there a model's name means its champion."""
    found = _eligible(swarm, asked)
    eligible, fallback = divided(found, asked.model, "" if asked.via == "compare" else conversation)
    try:
        way = find_way(swarm, question, eligible, fallback, now, asked.holder,
                       sum(len(turn.content) for turn in asked.history))
    except NoCandidate as exc:
        if woken := wake_for(swarm, question, eligible, None, now):
            hint = f"{woken} is being woken; ask again in a minute"
            raise NoCandidate(exc.message, hint=f"{exc.hint}\n{hint}" if exc.hint else hint) from exc
        raise
    return way, wake_for(swarm, question, eligible, way, now)


def as_request(asked: Asked) -> ChatRequest:
    """What is sent to the model."""
    return ChatRequest(_messages(asked), asked.max_tokens, asked.temperature, asked.seed, asked.schema,
                       asked.stop, asked.tools, asked.tool_choice, asked.logprobs, asked.top_logprobs,
                       asked.sampling, asked.think, asked.raw)


def as_question(asked: Asked, request: ChatRequest, swarm: Swarm) -> tuple[Categorised, Question]:
    """What the price depends on."""
    sort = categorise(_said(asked), [attachment.name for attachment in asked.attachments])
    last = next((turn.content for turn in reversed(request.messages) if turn.role == "user"), "")
    return sort, Question(sort.category, request.characters(), asked.max_tokens, seen(swarm, last))


def _said(asked: Asked) -> str:
    """What the category follows from: the question, or the one that results of calls belong to."""
    said = (turn.content for turn in reversed(asked.history) if turn.role == "user")
    return asked.prompt or (next(said, "") if asked.results else "")


def _messages(asked: Asked) -> tuple[Message, ...]:
    """System first, then the conversation, then results of calls, then the attachments before the question
    itself, then what the answer begins with."""
    history = asked.history
    system: tuple[Message, ...] = ()
    if asked.system:
        history = tuple(turn for turn in history if turn.role != "system")
        system = (Message("system", asked.system),)
    parts = [f"{attachment.name}:\n{attachment.text.rstrip()}\n" for attachment in asked.attachments]
    before = (*system, *history, *asked.results)
    begun = (Message("assistant", asked.prefill),) if asked.prefill else ()
    if (asked.results or begun) and not (asked.prompt or parts or asked.images):
        return (*before, *begun)
    return (*before, Message("user", "\n".join([*parts, asked.prompt]), images=asked.images), *begun)


def _eligible(swarm: Swarm, asked: Asked) -> Sequence[Candidate]:
    """The candidates that -m and -H leave. Raises UsageError for a name that nobody serves, and for a
    host that was asked for by name and is set aside."""
    found = [c for c in swarm.candidates
             if asked.host in (None, c.host) and (asked.model is None or named(c, asked.model))]
    if asked.host and found and (aside := read_aside(swarm.paths, asked.host)):
        raise UsageError(f"it is {aside.state}", host=asked.host,
                         hint=f"`swarmctl uncordon {asked.host}` lets it have questions again")
    if found:
        return found
    served = ", ".join(sorted({f"{c.model} on {c.host}" for c in swarm.candidates}))
    if asked.model and _embeds(swarm, asked.model):
        raise VectorsOnly(f"{asked.model} makes vectors only, it does not chat",
                          hint=f"models that chat: {served or 'none is served'}")
    if not swarm.candidates:
        raise NoCandidate("no model is served on any host",
                          hint="`swarmctl up` starts the inventory's models")
    wanted = " on ".join(name for name in (asked.model or "any model", asked.host) if name)
    raise UsageError(f"nobody serves {wanted}", hint=f"served: {served}")


def _embeds(swarm: Swarm, model: str) -> bool:
    return any(served.embedding and model in (served.model, served.model.removesuffix(":latest"))
               for host in swarm.fleet.hosts for served in host.served)


def _all_failed(outcome: Outcome) -> ServerError:
    lines = "\n".join(f"{a.model} on {a.host}: {a.error}" for a in outcome.attempts)
    if outcome.refused:
        return Unsupported("no host can do what is asked; the question is recorded", hint=lines)
    return ServerUnavailable("every host failed; the question is recorded", hint=lines)
