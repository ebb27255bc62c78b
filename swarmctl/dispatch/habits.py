"""What exchanges taught of each (host, model), kept: its speeds, its overhead, how its tokenizer cuts, how
long it talks, how far off all that was.

`up` measures the start, every exchange refines it (routing.latency). One small file a server in state,
written by rename: when two terminals write at once one sample is lost, which a mean does not mind.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from swarmctl.atomic import write_whole
from swarmctl.errors import Garbled
from swarmctl.routing.cost import Habits
from swarmctl.routing.latency import fold
from swarmctl.typed import load

if TYPE_CHECKING:
    from pathlib import Path

    from swarmctl.exchange import Category, Timings
    from swarmctl.fleet.snapshot import Served
    from swarmctl.paths import Paths
    from swarmctl.routing.cost import Price

#: How much of what was learned may be lost with a process that stays.
WRITE_SECONDS = 0.5


def read_habits(paths: Paths, host: str, served: Served) -> Habits:
    """The habits of one server: what was learned since `up` measured this very model there, or that
    measurement."""
    found = _read(_file(paths, host, served.server), served.digest)
    return found or Habits(served.prefill_speed, served.decode_speed, served.overhead)


def last_used(paths: Paths, host: str, server: str) -> float | None:
    """When a server last answered a question of ours, in seconds since 1970; None where it never did."""
    try:
        return _file(paths, host, server).stat().st_mtime
    except OSError:
        return None


@dataclass(slots=True)
class Learned:
    """What a process that stays has learned of one server's model since it last wrote it down."""

    digest: str
    habits: Habits
    used: float
    written: float


def learn(paths: Paths, price: Price, *, category: Category, characters: int, finish: str, timings: Timings,
          company: int = 0, memory: dict[tuple[str, str], Learned] | None = None) -> Habits:
    """Fold one exchange, sent at a price, into what is known by now, and store it. A process with a `memory`
    writes at most every WRITE_SECONDS. Raises OSError."""
    candidate, now = price.candidate, time.time()
    key, file = (candidate.host, candidate.server), _file(paths, candidate.host, candidate.server)
    known = memory.get(key) if memory is not None else None
    if known is not None and known.digest == candidate.digest:
        before, used, written = known.habits, known.used, known.written
    else:
        before, written = _read(file, candidate.digest) or candidate.habits, 0.0
        used = last_used(paths, candidate.host, candidate.server) or now
    after = fold(before, category=category, characters=characters, finish=finish, timings=timings,
                 expected=price, company=company, age=now - used)
    due = not 0 <= now - written < WRITE_SECONDS
    if memory is not None:
        memory[key] = Learned(candidate.digest, after, now, now if due else written)
    if due:
        write_whole(file, json.dumps({"digest": candidate.digest, **asdict(after)}))
    return after


def _read(file: Path, digest: str) -> Habits | None:
    """What was learned of this very model; None where nothing that can be read was."""
    try:
        raw: dict[str, Any] = load(file)
        if raw.pop("digest") != digest:
            return None
        lengths = {str(key): float(value) for key, value in raw.pop("answer_tokens").items()}
        seen = {str(key): float(value) for key, value in raw.pop("answers_seen", {}).items()}
        errors = {str(key): (float(pair[0]), float(pair[1])) for key, pair in raw.pop("errors", {}).items()}
        found = Habits(**{key: float(value) for key, value in raw.items()}, answer_tokens=lengths,
                       answers_seen=seen, errors=errors)
    except (OSError, Garbled, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError):
        return None
    return found if found.characters_per_token > 0 else None


def _file(paths: Paths, host: str, server: str) -> Path:
    return paths.state / "habits" / f"{host}@{server}.json"
