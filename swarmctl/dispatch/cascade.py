"""Small first: hold its answer back while it streams, until it is worth showing or the large one is asked.

`Cascade` decides before the question is sent, wraps `dispatch.answer.answer`, and says for the record what it
saw and did. Where it does not cascade it listens all the same to every model but the largest: the
probabilities of an answer's tokens are recorded with it, so that its rating teaches what they mean
(`routing.calibration`).
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from swarmctl.dispatch.admission import TERMS
from swarmctl.dispatch.answer import Cancelled, answer
from swarmctl.errors import Busy
from swarmctl.exchange import Attempt
from swarmctl.ledger.heard import heard_record, read_curves, trail_record
from swarmctl.routing.confidence import STAGES, Trail, believe
from swarmctl.routing.features import read_features
from swarmctl.routing.signs import signs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from swarmctl.dispatch.admission import Terms
    from swarmctl.dispatch.answer import Outcome, Sink
    from swarmctl.dispatch.swarm import Swarm
    from swarmctl.exchange import Category, ChatRequest, Chunk, ToolCall
    from swarmctl.routing.cascade import Plan, Stakes
    from swarmctl.routing.confidence import Curve, Curves
    from swarmctl.routing.cost import Price, Route
    from swarmctl.routing.features import Features

    AskOn = Callable[
        [Route, Sink, Callable[[Chunk], None] | None, Callable[[Price], None] | None], Outcome]

#: Characters of an answer that was held back and thrown away which are kept for who wonders why.
KEPT = 500


class Cascade:
    """One question's. `way` is the route as it is to be tried; `said` what happened, for the record."""

    def __init__(self, swarm: Swarm, way: Route, request: ChatRequest, category: Category,
                 barred: str = "") -> None:
        """`barred` is why the way may not be changed, or empty."""
        self.swarm = swarm
        self.way = way
        self.request = request
        self.said: dict[str, Any] = {}
        self.trail = Trail()
        self.choice: _Choice | None = None
        if why := _why_not(swarm, request) or barred:
            self.said = {"decision": "direct", "why": why}
            return
        self.choice, why = _choose(swarm, way, category, read_curves(swarm.paths),
                                   read_features(_asked(request)))
        self.said = {"decision": "direct", "why": why}
        if self.choice:
            small = self.choice.small
            self.way = replace(way, prices=(small, *(p for p in way.prices if p is not small)), reason=why)

    def answer(self, sink: Sink, clock: Callable[[], float], *, watch: Callable[[Chunk], None] | None = None,
               terms: Terms = TERMS) -> Outcome:
        """Answer the request, as dispatch.answer.answer does."""

        def ask_on(way: Route, sink: Sink, watch: Callable[[Chunk], None] | None,
                   speaks: Callable[[Price], None] | None) -> Outcome:
            ask = replace(self.request, logprobs=True) if self._listens(way) else self.request
            return answer(self.swarm, way, ask, sink, clock, watch=watch,
                          terms=replace(terms, speaks=speaks))

        if self.choice is None:
            return self._listen(self.way, ask_on, sink, watch, terms, ())
        held = _Held(self.choice, _asked(self.request), sink, watch, terms)
        try:
            outcome = ask_on(self._small(), held, held.see, held.speaks)
        except (Escalated, Busy) as why:
            self.said = held.record("escalate" if isinstance(why, Escalated) else "busy")
        except Cancelled:
            self.said = held.record("cancelled")
            raise
        else:
            self.said = held.record("failed" if outcome.error else "commit")
            if not outcome.error:
                held.flush()
                self.trail = held.trail
                return outcome
        gone = held.attempts(self.said["decision"])
        return self._listen(self._onward(), ask_on, sink, watch, terms, gone)

    def record(self, outcome: Outcome) -> dict[str, Any] | None:
        """What happened, as it stands in the exchange's route; `heard` is of the answer that was given."""
        if not self.trail.tokens or outcome.error:
            return self.said or None
        found = signs(_asked(self.request), outcome.answer)
        return {**self.said, "heard": heard_record(outcome.price.good, self.trail, found)}

    def _listen(self, way: Route, ask_on: AskOn, sink: Sink, watch: Callable[[Chunk], None] | None,
                terms: Terms, before: tuple[Attempt, ...]) -> Outcome:
        """Answer, take down how likely the tokens were, and put earlier attempts in front."""
        heard = _Listener(sink, watch)
        self.trail = heard.trail
        try:
            outcome = ask_on(way, heard, heard.see, terms.speaks)
        except Cancelled as stop:
            raise Cancelled(_after(before, stop.outcome)) from stop
        self.trail = heard.trail
        return _after(before, outcome)

    def _listens(self, way: Route) -> bool:
        """Whether the probabilities of who is asked are of use. Working them out takes a server up to a
        millisecond a token, and behind the largest model stands nobody."""
        if not self.swarm.fleet.routing.cascade or self.request.tools or self.request.raw:
            return False
        first = way.chosen.candidate
        return any(one.parameters > first.parameters for one in self.swarm.candidates)

    def _small(self) -> Route:
        """The way to the small model alone, wherever it is served: what another says means something else."""
        return replace(self.way, prices=tuple(p for p in self.way.prices if self._is_small(p)), stand_ins=0)

    def _onward(self) -> Route:
        """The way without the small model, which is asked again, and believed, where all others fail."""
        assert self.choice
        large = self.choice.large
        others = [p for p in self.way.prices if not self._is_small(p) and p is not large]
        again = [p for p in self.way.prices if self._is_small(p)]
        spare = self.way.prices[len(self.way.prices) - self.way.stand_ins:]
        stand_ins = len(again) + sum(not self._is_small(p) and p is not large for p in spare)
        return replace(self.way, prices=(large, *others, *again), stand_ins=stand_ins)

    def _is_small(self, price: Price) -> bool:
        return self.choice is not None and price.candidate.digest == self.choice.small.candidate.digest


class _Choice:
    """A small model, its curve, the large one that stands behind it, and the plan."""

    def __init__(self, small: Price, large: Price, curve: Curve, found: Plan) -> None:
        self.small = small
        self.large = large
        self.curve = curve
        self.plan = found


class Escalated(Exception):
    """The small model's answer is not worth its risk."""


class _Listener:
    """Passes everything through, and follows the probabilities."""

    def __init__(self, sink: Sink, watch: Callable[[Chunk], None] | None) -> None:
        self.sink = sink
        self.watch = watch
        self.trail = Trail()

    def see(self, chunk: Chunk) -> None:
        """Take a chunk in."""
        if chunk.text and chunk.logprob is not None:
            self.trail.add(chunk.logprob)
        if self.watch:
            self.watch(chunk)

    def text(self, piece: str) -> None:
        """Pass it on."""
        self.sink.text(piece)

    def call(self, call: ToolCall) -> None:
        """Pass it on."""
        self.sink.call(call)

    def failed(self, attempt: Attempt, following: Price | None) -> None:
        """Another begins."""
        self.trail = Trail()
        self.sink.failed(attempt, following)


class _Held:
    """Holds the small model's chunks back until the plan says to show them; then passes everything on."""

    def __init__(self, choice: _Choice, asked: str, sink: Sink, watch: Callable[[Chunk], None] | None,
                 terms: Terms) -> None:
        self.choice = choice
        self.terms = terms
        self.unsaid: Price | None = None
        self.asked = asked
        self.sink = sink
        self.watch = watch
        self.trail = Trail()
        self.holding = True
        self.chunks: list[Chunk] = []
        self.gone: list[Attempt] = []
        self.current = choice.small
        self.started = time.monotonic()
        self.seconds: float | None = None
        self.belief = choice.small.good
        self.threshold = choice.plan.thresholds[0]

    def see(self, chunk: Chunk) -> None:
        """Take a chunk in, and decide. Raises Escalated."""
        if chunk.text and chunk.logprob is not None:
            self.trail.add(chunk.logprob)
        if not self.holding:
            if self.watch:
                self.watch(chunk)
            return
        self.chunks.append(chunk)
        if self._decide(whole=chunk.finish is not None) == "commit":
            self.chunks.pop()
            self.flush()
            if self.watch:
                self.watch(chunk)

    def _decide(self, *, whole: bool) -> str:
        if not self.trail.tokens:  # a server that says nothing of them
            return "commit" if whole or any(chunk.text for chunk in self.chunks) else "hold"
        choice = self.choice
        found = signs(self.asked, "".join(chunk.text for chunk in self.chunks)) if whole else None
        self.belief = believe(choice.curve, choice.small.good, self.trail, found)
        decision, self.threshold = choice.plan.decide(self.belief, self.trail.tokens, whole=whole)
        if decision == "escalate":
            self.seconds = time.monotonic() - self.started
            raise Escalated
        return decision

    def flush(self) -> None:
        """Show what was held, and hold no more."""
        if self.holding:
            self.holding = False
            self.seconds = time.monotonic() - self.started
            if self.unsaid:
                self.speaks(self.unsaid)
            for chunk in self.chunks:
                if self.watch:
                    self.watch(chunk)
                if chunk.text:
                    self.sink.text(chunk.text)

    def speaks(self, price: Price) -> None:
        """Who answers, which is told with the first word that is shown."""
        self.current = price
        if self.holding:
            self.unsaid = price
        elif self.terms.speaks:
            self.terms.speaks(price)

    def text(self, piece: str) -> None:
        """Pass it on, unless it is held."""
        if not self.holding:
            self.sink.text(piece)

    def call(self, call: ToolCall) -> None:
        """Pass it on."""
        self.sink.call(call)

    def failed(self, attempt: Attempt, following: Price | None) -> None:
        """A candidate failed. What was held of it was shown to nobody."""
        shown = replace(attempt, tokens=0) if self.holding else attempt
        self.gone.append(shown)
        self.chunks.clear()
        self.trail = Trail()
        self.unsaid = None
        self.current = following or self.current
        self.sink.failed(shown, following or self.choice.large)

    def attempts(self, decision: str) -> tuple[Attempt, ...]:
        """Those that failed, and the small model's that was given up."""
        if decision != "escalate":
            return tuple(self.gone)
        small = self.current.candidate
        why = f"{self.belief:.0%} likely good, below {self.threshold.low:.0%}: a larger model was asked"
        return (*self.gone, Attempt(small.host, small.model, why))

    def record(self, decision: str) -> dict[str, Any]:
        """What was seen of the small model, and what was decided."""
        found, small = self.choice.plan, self.current.candidate
        said = {
            "decision": decision, "host": small.host, "model": small.model, "digest": small.digest,
            "before": round(self.choice.small.good, 4), "confidence": round(self.belief, 4),
            "low": round(self.threshold.low, 4), "high": round(self.threshold.high, 4),
            "tokens": self.trail.tokens, "seconds": None if self.seconds is None else round(self.seconds, 4),
            "expected": {"small": round(found.small, 3), "large": round(found.large, 3),
                         "cascade": round(found.cascade, 3), "escalates": round(found.escalates, 3)},
        }
        if decision == "escalate":
            said["text"] = "".join(chunk.text for chunk in self.chunks)[:KEPT]
            said["trail"] = trail_record(self.trail)
        return said


def _asked(request: ChatRequest) -> str:
    """The question itself."""
    return next((turn.content for turn in reversed(request.messages) if turn.role == "user"), "")


def _after(before: tuple[Attempt, ...], outcome: Outcome) -> Outcome:
    return replace(outcome, attempts=(*before, *outcome.attempts)) if before else outcome


def _why_not(swarm: Swarm, request: ChatRequest) -> str:
    """Why a question cannot cascade at all; empty where it can."""
    if not swarm.fleet.routing.cascade:
        return "the inventory's routing has cascade: false"
    if request.tools:
        return "calls of tools are never held back"
    if request.schema is not None:
        return "a schema binds the answer's tokens, so they say little"
    if request.raw:
        return "the prompt is raw"
    return ""


def _choose(swarm: Swarm, way: Route, category: Category, curves: Curves,
            features: Features) -> tuple[_Choice | None, str]:
    """The small model that is worth asking first and the large one behind it; or None, and why not."""
    why = "no other model stands behind it"
    best: _Choice | None = None
    prices = way.prices[:len(way.prices) - way.stand_ins]
    for small in _cheapest(prices):
        dearer = [p for p in prices if p.candidate.model != small.candidate.model
                  and _waits(p) > _waits(small)]
        if not dearer:
            continue
        large = min(dearer, key=lambda p: _linear(swarm, p))
        curve = curves.of(small.candidate.digest, category, features)
        if curve is None:
            why = f"too few ratings say what {small.candidate.model}'s confidence means"
        elif not curve.speaks:
            why = f"{small.candidate.model}'s confidence says nothing of its answers"
        else:
            from swarmctl.routing.cascade import hopeless, plan

            stakes = _stakes(swarm, small, large, curve)
            why = f"{small.candidate.model} first is no cheaper"
            if hopeless(stakes):
                continue
            found = plan(stakes)
            why += f": {found.cascade:.1f} s against {min(found.small, found.large):.1f} s"
            if found.first and (best is None or found.cascade < best.plan.cascade):
                best = _Choice(small, large, curve, found)
    if best is None:
        return None, why
    found = best.plan
    return best, (f"asked first: {found.cascade:.1f} s expected, against {found.small:.1f} s alone and "
                  f"{found.large:.1f} s of {best.large.candidate.model}")


def _cheapest(prices: Sequence[Price]) -> list[Price]:
    """The cheapest place of each model."""
    found: dict[str, Price] = {}
    for price in sorted(prices, key=_waits):
        found.setdefault(price.candidate.model, price)
    return list(found.values())


def _waits(price: Price) -> float:
    return price.wait + price.energy


def _linear(swarm: Swarm, price: Price) -> float:
    return _waits(price) + swarm.tariff.bad_answer * (1 - price.good)


def _stakes(swarm: Swarm, small: Price, large: Price, curve: Curve) -> Stakes:
    from swarmctl.routing.cascade import Stakes

    tokens = max(1.0, float(small.answer_tokens))
    seconds = small.decode / tokens
    at = [float(stage) for stage in STAGES if stage < tokens]
    return Stakes(
        before=believe(curve, small.good, Trail()), large=large.good, start=small.wait - small.decode,
        token=seconds + small.energy / tokens, tokens=tokens, direct=_waits(large),
        bad=swarm.tariff.bad_answer, at=(*at, tokens),
        information=(*curve.information[:len(at)], curve.information[-1]), token_seconds=seconds)
