"""How long an answer will take on a host, how far off that may be, and what every exchange teaches of both.

Expectations follow from the host's own speeds (`Habits`), means that the newest exchange moves by a fifth,
and by more the longer nothing was asked. The lengths of answers scatter by far more than speeds do, and
change less: the newest moves their mean by a fifth at first, and by a fiftieth once many were seen. How far
off an expectation is is kept as the mean and variance of ln(actual / expected), the error of a quantity that
is never negative and has a long tail; its 95th percentile says when a first token is late. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, log, sqrt
from typing import TYPE_CHECKING

from swarmctl.routing.cost import ANSWER_TOKENS, first_token

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.exchange import Category, Timings
    from swarmctl.routing.cost import Habits, Price

#: The weight of the newest sample, and the seconds after which what is known counts half.
WEIGHT, HALF_LIFE = 0.2, 86_400.0
#: What is supposed of an answer's length counts as so many answers; all that were seen, as at most so many.
SUPPOSED, MOST_ANSWERS = 4.0, 50.0
#: Shorter samples say more about overhead than about speed.
MIN_PREFILL_TOKENS, MIN_DECODE_TOKENS = 16, 4
#: Ollama counts milliseconds as loading where nothing was loaded.
MIN_LOAD_SECONDS = 0.25
LONGEST_OVERHEAD = 5.0
#: Mean and variance of ln(actual / expected) before anything was seen: late is three times what was expected.
UNSEEN = (0.0, 0.45)
#: Nothing is known better than this, and no sample counts as further off (a factor of 20).
LEAST_VARIANCE, FURTHEST = 0.02, 3.0
#: What company on a server may cost at most, as a share of the time of a token for each answer beside it.
MOST_CROWDING = 2.0
#: Fewer seconds than any clock tells; more tokens, or seconds, than any answer has.
LEAST, MOST = 1e-9, 1e9
#: Standard deviations to the 95th percentile.
Z95 = 1.645


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds: what is expected, and what is exceeded one time in twenty."""

    mean: float
    p95: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """One answer's times. `first` is from the moment that it is sent to its first token."""

    queue: Estimate
    load: Estimate
    prefill: Estimate
    decode: Estimate
    first: Estimate


def forecast(price: Price) -> Forecast:
    """What an answer at this price will take."""
    errors = price.candidate.habits.errors
    return Forecast(
        queue=_queue(price),
        load=_estimate(price.load, errors.get("load")),
        prefill=_estimate(price.prefill, errors.get("prefill")),
        decode=_estimate(price.decode, errors.get("decode")),
        first=_estimate(first_token(price), errors.get("first")),
    )


def fold(before: Habits, *, category: Category, characters: int, finish: str, timings: Timings,
         expected: Price | None = None, company: int = 0, age: float = 0.0) -> Habits:
    """What is known after one more exchange. `expected` is the price at which it was sent, `company` how many
    answers the server gave beside it, `age` the seconds since the exchange before. A cut answer says nothing
    about how long answers are, one in company little about the speed alone."""
    timings, weight = _sound(timings), 1 - (1 - WEIGHT) * _left(age)
    after = _speeds(before, timings, company, weight)
    prompt, answer = timings.prompt_tokens or 0, timings.completion_tokens or 0
    if prompt >= 1:
        after = replace(after, characters_per_token=_mean(before.characters_per_token,
                                                          max(0.5, characters / prompt), weight))
    if answer and finish == "stop":
        after = _length(after, category, answer, age)
    if expected is None:
        return after
    if expected.cached_tokens and timings.cached_tokens is not None:
        held = min(1.0, timings.cached_tokens / expected.cached_tokens)
        after = replace(after, cache_share=(1 - weight) * before.cache_share + weight * held)
    return replace(after, errors=_errors(before.errors, expected, timings, weight))


def _sound(timings: Timings) -> Timings:
    """Without what no clock and no counter says: a server that sends garbage once must not be taken for slow,
    or for infinitely fast, from then on."""
    odd = [name for name in timings.__slots__
           if (value := getattr(timings, name)) is not None and value != 0 and not LEAST <= value < MOST]
    return replace(timings, **dict.fromkeys(odd)) if odd else timings


def _length(before: Habits, category: Category, answer: int, age: float) -> Habits:
    """Lengths scatter by about as much as they are: their mean is that of many answers, not of the last
    five."""
    usual = before.answer_tokens.get(category, ANSWER_TOKENS[category])
    seen = max(0.0, before.answers_seen.get(category, 0.0)) * _left(age) + 1
    weight = 1 / min(SUPPOSED + seen, MOST_ANSWERS)
    return replace(before,
                   answer_tokens={**before.answer_tokens, category: _mean(usual, answer, weight)},
                   answers_seen={**before.answers_seen, category: min(seen, MOST_ANSWERS)})


def _left(age: float) -> float:
    """The share by which what was known still counts after so many seconds."""
    return float(0.5 ** (max(0.0, age) / HALF_LIFE))


def _speeds(before: Habits, timings: Timings, company: int, weight: float) -> Habits:
    after = before
    fresh = (timings.prompt_tokens or 0) - (timings.cached_tokens or 0)
    if fresh >= MIN_PREFILL_TOKENS and timings.prompt_seconds:
        after = replace(after, prefill_speed=_mean(before.prefill_speed, fresh / timings.prompt_seconds,
                                                   weight))
    answer = timings.completion_tokens or 0
    if answer >= MIN_DECODE_TOKENS and timings.decode_seconds:
        speed = answer / timings.decode_seconds
        if company and before.decode_speed:
            cost = min(max(0.0, (before.decode_speed / speed - 1) / company), MOST_CROWDING)
            after = replace(after, crowding=(1 - weight) * before.crowding + weight * cost)
        else:
            after = replace(after, decode_speed=_mean(before.decode_speed, speed, weight))
    loading = timings.load_seconds or 0.0
    if loading >= MIN_LOAD_SECONDS:
        after = replace(after, load_seconds=_mean(before.load_seconds, loading, weight))
    if timings.total_seconds:
        after = replace(after, service_seconds=_mean(before.service_seconds,
                                                     timings.total_seconds - loading, weight))
        if timings.prompt_seconds is not None and timings.decode_seconds is not None:
            rest = timings.total_seconds - timings.prompt_seconds - timings.decode_seconds - loading
            after = replace(after, overhead=_mean(before.overhead, min(max(0.0, rest), LONGEST_OVERHEAD),
                                                  weight))
    return after


def _errors(before: Mapping[str, tuple[float, float]], expected: Price, timings: Timings,
            weight: float) -> dict[str, tuple[float, float]]:
    """How far off each expectation was. The decode's is of what the tokens that came should have taken."""
    share = (timings.completion_tokens or 0) / max(1, expected.answer_tokens)
    seen = {"load": (expected.load, timings.load_seconds),
            "prefill": (expected.prefill, timings.prompt_seconds),
            "decode": (expected.decode * share, timings.decode_seconds),
            "first": (first_token(expected), timings.first_token_seconds)}
    after = dict(before)
    for name, (meant, took) in seen.items():
        if meant > 0 and took:
            after[name] = _error(before.get(name, UNSEEN), log(took / meant), weight)
    return after


def _error(before: tuple[float, float], sample: float, weight: float) -> tuple[float, float]:
    """Exponentially weighted mean and variance (Finch 2009, eq. 124 and 143)."""
    mean, variance = before
    off = min(max(sample, -FURTHEST), FURTHEST) - mean
    return mean + weight * off, (1 - weight) * (variance + weight * off * off)


def _estimate(mean: float, error: tuple[float, float] | None) -> Estimate:
    bias, variance = error or UNSEEN
    late = exp(bias + Z95 * sqrt(max(variance, LEAST_VARIANCE)))
    return Estimate(mean, mean * late)


def _queue(price: Price) -> Estimate:
    """The wait for a slot: each of those ahead leaves one after an exponential time, so the variances add."""
    ahead = max(0, price.busy - price.slots + 1)
    return Estimate(price.queue, price.queue * (1 + Z95 / sqrt(ahead)) if ahead else price.queue)


def _mean(before: float, sample: float, weight: float) -> float:
    return (1 - weight) * before + weight * sample if before else sample
