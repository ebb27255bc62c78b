"""Learning where the router is unsure, with a small and bounded share of questions.

Somebody else than the cheapest may answer where that model's quality is uncertain, where it could be the
better choice if it is as good as it may be, and where trying costs little in expectation. Which questions are
spent on it follows from the exchange's id alone: no state, and nobody can spend more than the share. Where
nobody ever rated an answer nothing would be learned, and nothing is tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from swarmctl.routing.cost import GOOD_ENOUGH

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmctl.routing.cost import Price

#: The least width of a 95 % interval that is worth narrowing.
UNSURE = 0.1
#: The most that trying may cost in expectation, in seconds of a person's time.
MOST_REGRET = 15.0
#: The share of explored questions that two models answer: the person gets the usual answer, and the other one
#: is recorded beside it, as a pair to be compared.
SHADOW = 0.25


@dataclass(frozen=True, slots=True)
class Trial:
    """What is tried, and why. In a `shadow` it answers beside the usual one, not instead of it."""

    price: Price
    shadow: bool
    why: str


def decide(prices: Sequence[Price], identity: str, share: float, bad_answer: float) -> Trial | None:
    """Whether to try another model on this exchange; None mostly. `prices` are in the order in which they are
    to be tried, `bad_answer` is the tariff's."""
    if not any(price.ratings for price in prices) or not drawn("explore", identity, share):
        return None
    first = prices[0]
    worth = [(hope, one) for one in prices[1:] if one.candidate.digest != first.candidate.digest
             and one.high - one.low >= UNSURE and one.total - first.total <= MOST_REGRET
             and (hope := first.total - at_best(one, bad_answer)) > 0]
    if not worth:
        return None
    hope, found = max(worth, key=lambda pair: pair[0])
    why = (f"to learn about {found.candidate.model}: {found.low:.0%} to {found.high:.0%} good, "
           f"at best {hope:.1f} s cheaper, in expectation {found.total - first.total:+.1f} s")
    return Trial(found, drawn("shadow", identity, SHADOW), why)


def at_best(price: Price, bad_answer: float) -> float:
    """The price, were the model as good as it may be."""
    return price.total - price.risk + max(0.0, GOOD_ENOUGH - price.high) * bad_answer


def drawn(purpose: str, identity: str, share: float) -> bool:
    """Whether an exchange is among that share of all; each purpose draws anew."""
    return int(sha256(f"{purpose}:{identity}".encode()).hexdigest()[:8], 16) / 2**32 < share
