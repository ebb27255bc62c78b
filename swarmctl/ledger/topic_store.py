"""Topics on disk: `topics.json`, which is written last and names everything else, and the vectors of the
prompts as Parquet. Both are replaced whole; what was left by a run that was killed is not named, and goes
with the next.
"""

from __future__ import annotations

import errno
import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from swarmctl.atomic import write_whole
from swarmctl.errors import DiskFull, LedgerError
from swarmctl.learning.labels import normal
from swarmctl.learning.topics import NONE, Clustered, Topic
from swarmctl.ledger.journal import make_private_folder
from swarmctl.ledger.parquet import read_columns, write_parquet

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from swarmctl.paths import Paths

VERSION = 1
COLUMNS = {"key": "VARCHAR", "vector": "FLOAT[]", "topic": "INTEGER", "similarity": "FLOAT", "old": "BOOLEAN"}


#: A prompt's first characters say what it is about, and no embedding model takes all of a long one.
HEAD = 800


def prompt_key(text: str) -> str:
    """What a prompt's vector is kept under."""
    return sha256(normal(text).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def to_embed(text: str, head: int = HEAD) -> str:
    """As much of a prompt as is embedded."""
    return " ".join(text[:head].split()) or "?"


@dataclass(frozen=True, slots=True)
class Placed:
    """A prompt's vector and where it was sorted. `old` tells that it was there at the last clustering."""

    vector: tuple[float, ...]
    topic: int
    similarity: float
    old: bool


@dataclass(frozen=True, slots=True)
class State:
    """All that is kept. `model` and `digest` are of what made the vectors; `retired` the topics that are no
    more, as (id, name, when); `placed` has one entry for each different prompt, by its key."""

    model: str
    digest: str
    method: str
    clustered: Clustered
    topics: tuple[Topic, ...]
    next_id: int
    retired: tuple[tuple[int, str, str], ...] = ()
    placed: Mapping[str, Placed] = field(default_factory=dict)


def read_state(paths: Paths) -> State | None:
    """What was kept; None where nothing was. Raises LedgerError where it cannot be used."""
    file = paths.topics / "topics.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        if raw["version"] != VERSION:
            raise LedgerError(f"{file} was written by another swarmctl", hint=_again(file))
        clustered = Clustered(float(raw["clustered"]["seconds"]), int(raw["clustered"]["prompts"]),
                              {int(key): float(share) for key, share in raw["clustered"]["shares"].items()})
        topics = tuple(Topic(**{**one, "terms": tuple(one["terms"]), "centroid": tuple(one["centroid"])})
                       for one in raw["topics"])
        placed = {key: Placed(tuple(vector), topic, similarity, old) for key, vector, topic, similarity, old
                  in read_columns(paths.topics / raw["vectors"], tuple(COLUMNS))}
        return State(raw["model"], raw["digest"], raw["method"], clustered, topics, int(raw["next_id"]),
                     tuple((int(one), str(name), str(when)) for one, name, when in raw["retired"]), placed)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise LedgerError(f"cannot read {file}: {exc.strerror}", hint="is it yours to read?") from exc
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise LedgerError(f"{file} is not in our form", hint=_again(file)) from exc


def read_assigned(paths: Paths) -> tuple[dict[int, str], dict[str, int]] | None:
    """The topics' names by id, and the topic of each prompt by its key, without the vectors (and what reads
    Parquet). None where nothing is kept that says so."""
    try:
        raw = json.loads((paths.topics / "topics.json").read_text(encoding="utf-8"))
        if raw["version"] != VERSION:
            return None
        return ({int(one["id"]): str(one["name"]) for one in raw["topics"]},
                {str(key): int(topic) for key, topic in raw["assigned"].items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_state(paths: Paths, state: State) -> None:
    """Keep it. Raises LedgerError, DiskFull: then what was kept before stands."""
    folder = paths.topics
    before = set(folder.glob("vectors-*.parquet"))
    number = 1 + max((int(path.stem.partition("-")[2]) for path in before if path.stem[8:].isdigit()),
                     default=0)
    vectors = folder / f"vectors-{number}.parquet"
    try:
        make_private_folder(folder)
        write_parquet(vectors, _rows(state), COLUMNS)
        vectors.chmod(0o600)
        write_whole(folder / "topics.json", json.dumps(_record(state, vectors.name)) + "\n")
    except OSError as exc:
        with suppress(OSError):
            vectors.unlink(missing_ok=True)
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"the disk is full: {folder} is as it was",
                           hint="free some space and try again") from exc
        raise LedgerError(f"cannot write in {folder}: {exc.strerror or exc}",
                          hint="is it yours to write?") from exc
    for path in before:
        with suppress(OSError):
            path.unlink()


def _rows(state: State) -> Iterable[dict[str, Any]]:
    return ({"key": key, "vector": one.vector, "topic": one.topic, "similarity": one.similarity,
             "old": one.old}
            for key, one in state.placed.items())


def _record(state: State, vectors: str) -> dict[str, Any]:
    return {"version": VERSION, "model": state.model, "digest": state.digest, "method": state.method,
            "clustered": {"seconds": state.clustered.seconds, "prompts": state.clustered.prompts,
                          "shares": {str(key): share for key, share in state.clustered.shares.items()}},
            "topics": [asdict(topic) for topic in state.topics], "next_id": state.next_id,
            "retired": state.retired, "vectors": vectors,
            "assigned": {key: one.topic for key, one in state.placed.items() if one.topic != NONE}}


def _again(file: Path) -> str:
    return f"remove {file.parent}: `swarmctl topics` makes it anew"
