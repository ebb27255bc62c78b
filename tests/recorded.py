"""Exchanges, ratings and comparisons for tests of the ledger, each a moment after the one before."""

from __future__ import annotations

from dataclasses import replace

from swarmctl.exchange import Attempt, Comparison, Exchange, Message, Rating, Timings, new_id
from swarmctl.paths import Paths

START = 1_795_000_000_000  # 2026-11-18, in milliseconds


def paths_under(folder):
    return Paths.from_environ({"SWARMCTL_HOME": str(folder), "HOME": str(folder)})


def identity(moment: int) -> str:
    return new_id(START + moment, moment)


def exchange(moment: int = 0, question: str = "what is two and two?", answer: str = "four",
             **changes) -> Exchange:
    made = Exchange(
        id=identity(moment), at=f"2026-11-18T10:{moment // 60 % 60:02d}:{moment % 60:02d}.000Z",
        messages=(Message("system", "be brief"), Message("user", question)), answer=answer, finish="stop",
        category="routine", host="spinoza", runtime="llamacpp", model="tiny-small", digest="d" * 64,
        template="t" * 64, conversation=identity(moment), terminal="pts-1", params={"max_tokens": 64},
        timings=Timings(prompt_tokens=12, prompt_seconds=0.05, completion_tokens=4, decode_seconds=0.1,
                        first_token_seconds=0.06, total_seconds=0.2),
        attempts=(Attempt("calisota", "tiny-large", "connection refused"),),
        route={"reason": "cheapest", "prices": [{"host": "spinoza", "model": "tiny-small", "total": 1.25}],
               "excluded": [{"host": "worlock", "model": "tiny-large", "reason": "off"}]})
    return replace(made, **changes)


def rating(moment: int, of: Exchange, score: float | None = 1.0, **changes) -> Rating:
    made = Rating(id=identity(moment), at="2026-11-18T11:00:00.000Z", exchange=of.id, model=of.model,
                  digest=of.digest, category=of.category, host=of.host, score=score, terminal="pts-1")
    return replace(made, **changes)


def comparison(moment: int, a: Exchange, b: Exchange, choice: str = "a") -> Comparison:
    return Comparison(id=identity(moment), at="2026-11-18T12:00:00.000Z", a=a.id, b=b.id, model_a=a.model,
                      model_b=b.model, category=a.category, left=a.id, choice=choice)
