"""What `up` last made true, as `ask` and `status` read it: one small JSON file instead of a survey.

Written by rename, so that a reader sees the old one or the new one. It is state, not truth: `up` rewrites it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from swarmctl.atomic import write_whole
from swarmctl.errors import Garbled, SwarmError
from swarmctl.routing.policy import Policy
from swarmctl.runtimes.named import RUNTIMES
from swarmctl.typed import build, items, load

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SNAPSHOT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Served:
    """One model served on one host. Speeds are tokens per second as `up` measured them; exchanges refine them
    elsewhere. `overhead` is the seconds of a request that are neither prefill nor decode. `tag` is the
    server's own name for the model, where it is not `model`. An `embedding` model answers no questions, and
    has no decode speed. `release` is empty where the inventory's own weights are served; a `canary` gets
    `share` of the model's conversations, from 0 to 1. `files` are hash and bytes of its blobs where it is of
    several: `digest` then is of all of them."""

    runtime: str
    server: str
    model: str
    digest: str
    template: str
    port: int
    context: int
    parallel: int
    parameters: int
    size: int
    quantisation: str
    prefill_speed: float
    decode_speed: float
    overhead: float = 0.0
    load_seconds: float = 0.0
    quality: Mapping[str, float] = field(default_factory=dict)
    tag: str = ""
    embedding: bool = False
    release: str = ""
    share: float = 1.0
    canary: bool = False
    files: tuple[tuple[str, int], ...] = ()

    @property
    def called(self) -> str:
        """The name by which its server knows the model."""
        return self.tag or self.model


@dataclass(frozen=True, slots=True)
class HostEntry:
    """One host of the snapshot, with what reaching and pricing it needs. `gpus` is how many GPUs worked when
    `up` last looked; an `intermittent` host may be off without being at fault, and with `wake_on_demand` a
    question that only it answers well wakes it."""

    name: str
    ssh: str
    data_dir: str
    connect_timeout: float
    idle_watts: float
    load_watts: float
    energy_price: float
    currency: str
    roles: tuple[str, ...]
    served: tuple[Served, ...]
    intermittent: bool = False
    gpus: int | None = None
    wake_on_demand: bool = False


@dataclass(frozen=True, slots=True)
class Fleet:
    """The whole snapshot. `inventory` is the absolute path it was made from and `inventory_sha256` its
    content."""

    inventory: str
    inventory_sha256: str
    written: str
    ssh_config: str | None
    value_of_time: float
    cost_of_bad_answer: float
    hosts: tuple[HostEntry, ...]
    routing: Policy = field(default_factory=Policy)


def write_fleet(path: Path, fleet: Fleet) -> None:
    """Replace the snapshot in one rename. Raises SwarmError; the old one then stands."""
    try:
        write_whole(path, json.dumps({"version": SNAPSHOT_VERSION, **asdict(fleet)}, indent=1))
    except OSError as exc:
        raise SwarmError(f"cannot write {path}: {exc.strerror or exc}", hint=(
            f"is the disk full, or {path.parent} not yours? Then `swarmctl up` once more")) from exc


def read_fleet(path: Path) -> Fleet | None:
    """Read the snapshot; None where there is none. Raises SwarmError where it is not one of ours."""
    try:
        return _fleet(load(path))
    except FileNotFoundError:
        return None
    except (OSError, Garbled) as exc:
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise SwarmError(f"{path} cannot be read as a fleet snapshot: {why}",
                         hint="`swarmctl up` writes it anew") from exc


def _fleet(raw: Any) -> Fleet:  # noqa: ANN401  any JSON
    if not isinstance(raw, dict) or raw.pop("version", None) != SNAPSHOT_VERSION:
        raise Garbled(f"it is not of version {SNAPSHOT_VERSION}")
    hosts = tuple(_host(entry, f"hosts.{place}") for place, entry in enumerate(items(raw, "hosts")))
    return build(Fleet, raw, hosts=hosts, routing=build(Policy, raw.get("routing", {}), "routing"))


def _host(raw: Any, where: str) -> HostEntry:  # noqa: ANN401
    served = tuple(_served(entry, f"{where}.served.{place}")
                   for place, entry in enumerate(items(raw, "served", where)))
    return build(HostEntry, raw, where, served=served)


def _served(raw: Any, where: str) -> Served:  # noqa: ANN401
    files = raw.get("files", ()) if isinstance(raw, dict) else ()
    try:
        pairs = tuple((str(sha), int(size)) for sha, size in files)
    except (TypeError, ValueError) as exc:
        raise Garbled(f"{where}.files is {json.dumps(files)[:40]}, not pairs of hash and bytes") from exc
    found = build(Served, raw, where, files=pairs)
    if found.runtime not in RUNTIMES:
        raise Garbled(f"{where}.runtime is {found.runtime!r}, none of {', '.join(RUNTIMES)}")
    return found
