"""What exchanges teach of each (host, model): its speeds, its overhead, how its tokenizer cuts, how long it
talks.

`up` measures the start, every exchange refines it by an exponentially weighted mean. One small file a server
in state, written by rename: when two terminals write at once one sample is lost, which a mean does not mind.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from swarmctl.atomic import write_whole
from swarmctl.routing.cost import ANSWER_TOKENS, Habits

if TYPE_CHECKING:
    from pathlib import Path

    from swarmctl.exchange import Category, Timings
    from swarmctl.fleet.snapshot import Served
    from swarmctl.paths import Paths

#: The weight of the newest sample.
WEIGHT = 0.2
#: Shorter samples say more about overhead than about speed.
MIN_PREFILL_TOKENS = 16
MIN_DECODE_TOKENS = 4


def read_habits(paths: Paths, host: str, served: Served) -> Habits:
    """The habits of one server: what was learned since `up` measured this very model there, or that
    measurement."""
    measured = Habits(served.prefill_speed, served.decode_speed, served.overhead)
    try:
        raw = json.loads(_file(paths, host, served.server).read_text(encoding="utf-8"))
        if raw.pop("digest") != served.digest:
            return measured
        lengths = {str(key): float(value) for key, value in raw.pop("answer_tokens").items()}
        return Habits(**{key: float(value) for key, value in raw.items()}, answer_tokens=lengths)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return measured


def last_used(paths: Paths, host: str, server: str) -> float | None:
    """When a server last answered a question of ours, in seconds since 1970; None where it never did."""
    try:
        return _file(paths, host, server).stat().st_mtime
    except OSError:
        return None


def learn(paths: Paths, host: str, server: str, digest: str, before: Habits, *, category: Category,
          characters: int,
          finish: str, timings: Timings) -> Habits:
    """Fold one exchange into the habits and store them."""
    after = fold(before, category=category, characters=characters, finish=finish, timings=timings)
    write_whole(_file(paths, host, server), json.dumps({"digest": digest, **asdict(after)}))
    return after


def fold(before: Habits, *, category: Category, characters: int, finish: str, timings: Timings) -> Habits:
    """Fold one exchange into the habits. Pure. A cut answer says nothing about how long answers are."""
    prompt, cached = timings.prompt_tokens or 0, timings.cached_tokens or 0
    answer = timings.completion_tokens or 0
    fresh = prompt - cached
    new: dict[str, Any] = asdict(before)
    if fresh >= MIN_PREFILL_TOKENS and timings.prompt_seconds:
        new["prefill_speed"] = _mean(before.prefill_speed, fresh / timings.prompt_seconds)
    if answer >= MIN_DECODE_TOKENS and timings.decode_seconds:
        new["decode_speed"] = _mean(before.decode_speed, answer / timings.decode_seconds)
    if prompt:
        new["characters_per_token"] = _mean(before.characters_per_token, max(0.5, characters / prompt))
    if timings.total_seconds and timings.prompt_seconds is not None and timings.decode_seconds is not None:
        rest = timings.total_seconds - timings.prompt_seconds - timings.decode_seconds
        new["overhead"] = _mean(before.overhead, min(max(0.0, rest), 5.0))
    if answer and finish == "stop":
        usual = before.answer_tokens.get(category, ANSWER_TOKENS[category])
        new["answer_tokens"] = {**before.answer_tokens, category: _mean(usual, answer)}
    return Habits(**new)


def _mean(before: float, sample: float) -> float:
    return (1 - WEIGHT) * before + WEIGHT * sample if before else sample


def _file(paths: Paths, host: str, server: str) -> Path:
    return paths.state / "habits" / f"{host}@{server}.json"
