"""What an answer from one (host, model) would cost, in seconds of a person's time.

    price = queue + connect + load + prefill + decode + energy + risk

Queue, load, prefill and decode follow from this host's own measured speeds. Energy is money, turned into
seconds by `value_of_time`. Risk is what is missing to a good enough answer, times what a bad answer costs.
Among candidates whose price differs by less than a person notices, the one that draws less energy is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swarmctl.errors import NoCandidate, PromptTooLong
from swarmctl.routing.beliefs import believe, known_as

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from swarmctl.exchange import Category
    from swarmctl.routing.beliefs import Seen

#: A share of good answers that nobody complains about; more than this is not worth waiting for.
GOOD_ENOUGH = 0.85
#: Two answers this close in price (seconds, and share of the lower price) are the same to a person.
INDIFFERENT_SECONDS = 0.25
INDIFFERENT_SHARE = 0.10
#: How long an answer is, in tokens, before any was seen.
ANSWER_TOKENS: Mapping[Category, float] = {"routine": 40.0, "complex": 150.0, "code": 200.0}
#: A tunnel has to be opened first.
COLD_CONNECT_SECONDS = 0.4
DEFAULT_CHARACTERS_PER_TOKEN = 3.0
#: Room that must be left in the context for an answer.
MIN_ANSWER_TOKENS = 32


@dataclass(frozen=True, slots=True)
class Habits:
    """What exchanges have taught of one (host, model). Speeds in tokens per second, times in seconds.

    `answer_tokens` is the mean length by category, `answers_seen` how many answers it rests on.
    `decode_speed` is of an answer alone; each further answer beside it makes a token's time longer by
    `crowding`. `service_seconds` is for how long an answer holds its slot; `cache_share` how much of a
    conversation that it answered before its cache still held. `errors` are mean and variance of
    ln(actual / expected) of what routing.latency expects. 0 is where nothing was seen.
    """

    prefill_speed: float
    decode_speed: float
    overhead: float = 0.0
    characters_per_token: float = DEFAULT_CHARACTERS_PER_TOKEN
    answer_tokens: Mapping[str, float] = field(default_factory=dict)
    answers_seen: Mapping[str, float] = field(default_factory=dict)
    load_seconds: float = 0.0
    service_seconds: float = 0.0
    crowding: float = 0.0
    cache_share: float = 1.0
    errors: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model on one host, with all that pricing it needs. `good` and `bad` count ratings of the model per
    category. `tag` is its server's own name for the model; `release`, `share` and `canary` as in the
    snapshot."""

    host: str
    runtime: str
    server: str
    model: str
    digest: str
    template: str
    port: int
    context: int
    parallel: int
    parameters: int
    habits: Habits
    load_seconds: float = 0.0
    idle_watts: float = 0.0
    load_watts: float = 0.0
    energy_price: float = 0.0
    prior: Mapping[str, float] = field(default_factory=dict)
    good: Mapping[str, float] = field(default_factory=dict)
    bad: Mapping[str, float] = field(default_factory=dict)
    tag: str = ""
    release: str = ""
    share: float = 1.0
    canary: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """How a candidate is right now. `out` says why it cannot be used, or is empty. `busy` counts the answers
    that it gives, `others` those of them that nobody on this machine asked for; `slots` is how many it gives
    at once, 0 where it was not asked: then it is as the snapshot says."""

    out: str = ""
    warm: bool = True
    loaded: bool = True
    busy: int = 0
    slots: int = 0
    cached_characters: int = 0
    others: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """What the price depends on. `characters` counts the whole prompt; `max_tokens` bounds the answer; `seen`
    is what the learned weights make of the prompt, where there are any."""

    category: Category
    characters: int
    max_tokens: int | None = None
    seen: Seen | None = None


@dataclass(frozen=True, slots=True)
class Tariff:
    """`value_of_time` is money per hour of waiting; `bad_answer` the seconds that a bad answer costs."""

    value_of_time: float = 30.0
    bad_answer: float = 60.0


@dataclass(frozen=True, slots=True)
class Price:
    """One row of the table that `--explain` shows. All in seconds but `watt_hours`, `good` and `ratings`.
    `busy`, `slots` and `others` are the standing's that it was made from, and `cached_tokens` what its cache
    would hold of the prompt if nobody had used it since; `low` and `high` are the 95 % interval of `good`,
    and `why` what it follows from."""

    candidate: Candidate
    queue: float
    connect: float
    load: float
    prefill: float
    decode: float
    energy: float
    risk: float
    watt_hours: float
    good: float
    ratings: float
    prompt_tokens: int
    answer_tokens: int
    busy: int = 0
    slots: int = 1
    others: int = 0
    cached_tokens: int = 0
    low: float = 0.0
    high: float = 1.0
    why: str = ""

    @property
    def wait(self) -> float:
        """Seconds until the last token."""
        return self.queue + self.connect + self.load + self.prefill + self.decode

    @property
    def total(self) -> float:
        """The price: seconds of a person's time."""
        return self.wait + self.energy + self.risk


@dataclass(frozen=True, slots=True)
class Excluded:
    """A candidate that cannot take the question, and why."""

    candidate: Candidate
    reason: str


@dataclass(frozen=True, slots=True)
class Route:
    """The candidates in the order in which they are to be tried, and those that are out. The last
    `stand_ins` of the prices are only tried when all before them have failed."""

    prices: tuple[Price, ...]
    excluded: tuple[Excluded, ...]
    reason: str
    stand_ins: int = 0

    @property
    def chosen(self) -> Price:
        """The first to be tried."""
        return self.prices[0]


def choose(question: Question, candidates: Sequence[tuple[Candidate, Standing]], tariff: Tariff) -> Route:
    """Price every candidate and put them in order. Raises NoCandidate, with each one's reason, where none
    can."""
    excluded = tuple(Excluded(c, why) for c, s in candidates if (why := _why_out(question, c, s)))
    gone = {(out.candidate.host, out.candidate.server) for out in excluded}
    prices = [price(question, c, s, tariff) for c, s in candidates if (c.host, c.server) not in gone]
    if not prices:
        raise _nobody(excluded, all_up=not any(s.out for _, s in candidates))
    ranked, reason = in_order(prices)
    return Route(ranked, excluded, reason)


def price(question: Question, candidate: Candidate, standing: Standing, tariff: Tariff) -> Price:
    """Price one candidate."""
    habits = candidate.habits
    prompt = prompt_tokens(question, habits)
    answer = _answer_tokens(question, candidate)
    slots = standing.slots or max(1, candidate.parallel)
    cached = min(standing.cached_characters / habits.characters_per_token, prompt - 1.0)
    fresh = max(1.0, prompt - cached * habits.cache_share)
    prefill = fresh / max(habits.prefill_speed, 1e-6)
    company = 1 + habits.crowding * min(standing.busy, slots - 1)
    decode = answer / max(habits.decode_speed, 1e-6) * company + habits.overhead
    queue = expected_queue(standing.busy, slots, habits.service_seconds or prefill + decode)
    watt_hours = candidate.load_watts * (prefill + decode) / 3600
    money = watt_hours / 1000 * candidate.energy_price
    known = believe(known_as(candidate.model, candidate.digest), candidate.parameters, candidate.prior,
                    candidate.good.get(question.category, 0.0), candidate.bad.get(question.category, 0.0),
                    question.category, question.seen)
    return Price(
        candidate=candidate,
        queue=queue,
        connect=0.0 if standing.warm else COLD_CONNECT_SECONDS,
        load=0.0 if standing.loaded else habits.load_seconds or candidate.load_seconds,
        prefill=prefill,
        decode=decode,
        energy=money / tariff.value_of_time * 3600 if tariff.value_of_time else 0.0,
        risk=max(0.0, GOOD_ENOUGH - known.mean) * tariff.bad_answer,
        watt_hours=watt_hours,
        good=known.mean,
        low=known.low,
        high=known.high,
        why=known.why,
        ratings=known.ratings,
        prompt_tokens=prompt,
        answer_tokens=round(answer),
        busy=standing.busy,
        slots=slots,
        others=standing.others,
        cached_tokens=round(cached),
    )


def first_token(price: Price) -> float:
    """Expected seconds from sending to the first token: all but the queue and the rest of the answer."""
    habits = price.candidate.habits
    return price.connect + price.load + price.prefill + habits.overhead + 1 / max(habits.decode_speed, 1e-6)


def expected_queue(ahead: int, slots: int, service: float) -> float:
    """Expected wait for a slot with `ahead` answers under way or before us, each of which holds its slot for
    `service` seconds: with all slots busy, one frees up in service / slots on average."""
    return max(0, ahead - slots + 1) * service / max(1, slots)


def in_order(prices: Sequence[Price]) -> tuple[tuple[Price, ...], str]:
    """The order in which candidates are to be tried, and why the first is the first."""
    ranked = sorted(prices, key=lambda p: (p.total, p.candidate.host, p.candidate.model))
    first, reason = _frugal(ranked)
    return (first, *(p for p in ranked if p is not first)), reason


def prompt_tokens(question: Question, habits: Habits) -> int:
    """Estimate the prompt's tokens from its characters, by what this model's tokenizer made of earlier
    ones."""
    return max(1, round(question.characters / habits.characters_per_token))


def _answer_tokens(question: Question, candidate: Candidate) -> float:
    usual = candidate.habits.answer_tokens.get(question.category, ANSWER_TOKENS[question.category])
    return min(usual, question.max_tokens) if question.max_tokens else usual


def _why_out(question: Question, candidate: Candidate, standing: Standing) -> str:
    if standing.out:
        return standing.out
    room = min(question.max_tokens or MIN_ANSWER_TOKENS, MIN_ANSWER_TOKENS)
    needed = prompt_tokens(question, candidate.habits) + room
    if candidate.context and needed > candidate.context:
        return f"about {needed:,} tokens do not fit its context of {candidate.context:,}"
    return ""


def _frugal(prices: Sequence[Price]) -> tuple[Price, str]:
    """Nobody waits in line to save energy: that would leave hosts idle, and those behind waiting as well."""
    best = prices[0]
    slack = max(INDIFFERENT_SECONDS, best.total * INDIFFERENT_SHARE)
    equal = [p for p in prices if p.total - best.total <= slack and p.queue <= best.queue]
    frugal = min(equal, key=lambda p: (p.watt_hours, p.total))
    if frugal is best:
        return best, "the lowest price"
    return frugal, f"as good as {best.candidate.host} to a person's eye, with less energy"


def _nobody(excluded: Sequence[Excluded], *, all_up: bool) -> NoCandidate:
    if not excluded:
        return NoCandidate("no model is served on any host", hint="`swarmctl up` starts them")
    lines = "\n".join(f"{o.candidate.model} on {o.candidate.host}: {o.reason}" for o in excluded)
    if all_up:
        return PromptTooLong("the prompt is too long for every context there is", hint=lines)
    return NoCandidate("no host can take this question", hint=lines)
