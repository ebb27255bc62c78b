"""What models a host holds, under data_dir/blobs and in its Ollama, and which the inventory wants there.

Looking loads nothing. A blob's name is known from the inventory and from the snapshot; one that neither knows
is listed by its hash alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swarmctl.errors import ServerError, SwarmError
from swarmctl.fleet.store import resolve_model
from swarmctl.fleet.survey import survey
from swarmctl.inventory import placed_on
from swarmctl.runtimes import ollama_models, ollama_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from swarmctl.facts import Facts
    from swarmctl.fleet.shell import ShellRemote
    from swarmctl.fleet.snapshot import Fleet
    from swarmctl.inventory import Host, Inventory
    from swarmctl.paths import Paths
    from swarmctl.runtimes.base import Endpoint, ModelFile
    from swarmctl.runtimes.ollama_models import OllamaRunning, OllamaTag

NAMED = 'grep -o "sha256-[0-9a-f]*" "$1"/servers/*/run /dev/null'
NAMED_TIMEOUT = 20.0


@dataclass(frozen=True, slots=True)
class Known:
    """What this machine knows of models: name and quantisation by sha256, the inventory's own files by name,
    and what of the inventory's models could not be read."""

    by_digest: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    files: Mapping[str, ModelFile] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OllamaStock:
    """An Ollama that answers: where, and what it has and holds in memory."""

    port: int
    endpoint: Endpoint
    tags: tuple[OllamaTag, ...]
    running: tuple[OllamaRunning, ...]


@dataclass(frozen=True, slots=True)
class Stock:
    """One host as it was looked at. `in_use` maps a blob to the servers that name it."""

    host: Host
    remote: ShellRemote
    seen: Facts
    in_use: Mapping[str, tuple[str, ...]]
    ollamas: tuple[OllamaStock, ...] = ()


@dataclass(frozen=True, slots=True)
class Holding:
    """One model on one host. `tag` is its name in Ollama; `digest` the sha256 of a blob, in Ollama that of
    the manifest. `ours` is true for what swarmctl put there, `used_by` names the servers that run it."""

    host: str
    runtime: str
    model: str
    digest: str
    size: int
    quantisation: str
    loaded: bool
    wanted: bool
    ours: bool
    tag: str = ""
    port: int | None = None
    used_by: tuple[str, ...] = ()


def known_models(inventory: Inventory, folder: Path, paths: Paths, fleet: Fleet | None) -> Known:
    """What the inventory and the snapshot say of models. Downloads nothing."""
    by_digest = {served.digest: (served.model, served.quantisation)
                 for entry in (fleet.hosts if fleet else ()) for served in entry.served}
    files: dict[str, ModelFile] = {}
    problems: list[str] = []
    for name, wish in inventory.models.items():
        if wish.pulled:
            continue
        if wish.source.startswith("https://") and wish.sha256:
            digest = wish.sha256.lower()
            by_digest.setdefault(digest, (name, ""))
            if not (paths.store / "models" / f"{digest}.gguf").exists():
                continue
        try:
            files[name] = resolve_model(wish, folder, paths, airgap=inventory.airgap)
        except SwarmError as exc:
            problems.append(exc.message)
            continue
        if adapter := files[name].adapter:
            by_digest[adapter.sha256] = (name, "adapter")
        else:
            by_digest[files[name].sha256] = (name, files[name].quantisation)
    return Known(by_digest, files, tuple(problems))


def take_stock(host: Host, remote: ShellRemote, endpoint: Callable[[Host, int], Endpoint]) -> Stock:
    """Look at a host: one survey, and what its Ollamas say. Raises RemoteErrors."""
    seen = survey(remote, host)
    named = remote.run(("sh", "-c", NAMED, "sh", seen.data_dir), timeout=NAMED_TIMEOUT, check=False).stdout
    in_use: dict[str, tuple[str, ...]] = {}
    for server, digest in re.findall(r"/servers/([^/]+)/run:sha256-([0-9a-f]{64})$", named, re.MULTILINE):
        in_use[digest] = tuple(dict.fromkeys((*in_use.get(digest, ()), server)))
    return Stock(host, remote, seen, in_use, tuple(_ollamas(host, seen, endpoint)))


def holdings(stock: Stock, inventory: Inventory, known: Known) -> tuple[Holding, ...]:
    """All models of a host, those under data_dir first."""
    return (*_blobs(stock, inventory, known), *_tags(stock, inventory, known))


def _ollamas(host: Host, seen: Facts, endpoint: Callable[[Host, int], Endpoint]) -> Iterator[OllamaStock]:
    """The Ollamas that the survey found, and the one the inventory names where it answers."""
    found = {ollama.port for ollama in seen.ollamas}
    for port in sorted(found | ({host.ollama.port} if host.ollama else set())):
        near = endpoint(host, port)
        try:
            yield OllamaStock(port, near, ollama_models.tags(near), ollama_models.running(near))
        except ServerError:
            continue  # what does not answer holds nothing that could be listed


def _blobs(stock: Stock, inventory: Inventory, known: Known) -> Iterator[Holding]:
    wanted = wanted_digests(stock.host, inventory, known)
    live = {server.name for server in stock.seen.servers if server.pid is not None}
    for blob in stock.seen.blobs:
        name, quantisation = known.by_digest.get(blob.sha256, ("", ""))
        yield Holding(stock.host.name, "llamacpp", name, blob.sha256, blob.size, quantisation,
                      loaded=bool(live & set(stock.in_use.get(blob.sha256, ()))),
                      wanted=blob.sha256 in wanted, ours=True, used_by=stock.in_use.get(blob.sha256, ()))


def wanted_digests(host: Host, inventory: Inventory, known: Known) -> set[str]:
    """The blobs that llama.cpp is to have on a host, by their hashes."""
    names = {placement.model for placement, _ in placed_on(host, "llamacpp")}
    files = [known.files[name] for name in names if name in known.files]
    wishes = [inventory.models[name] for name in names]
    found = {file.sha256 for file in files} | {wish.adapter.sha256 for wish in wishes if wish.adapter}
    return found | {sha.lower() for name in names if (sha := inventory.models[name].sha256)}


def _tags(stock: Stock, inventory: Inventory, known: Known) -> Iterator[Holding]:
    wanted = set(_wanted_tags(stock.host, inventory, known))
    for ollama in stock.ollamas:
        loaded = {running.name for running in ollama.running}
        for tag in ollama.tags:
            mine = ollama_names.ours(tag.name)
            yield Holding(stock.host.name, "ollama", mine[0] if mine else tag.name, tag.digest, tag.size,
                          tag.quantisation, loaded=tag.name in loaded, wanted=tag.name in wanted,
                          ours=mine is not None, tag=tag.name, port=ollama.port)


def _wanted_tags(host: Host, inventory: Inventory, known: Known) -> Iterator[str]:
    for placement, _ in placed_on(host, "ollama"):
        wish = inventory.models[placement.model]
        if wish.pulled:
            yield ollama_names.full_name(wish.pulled)
        elif wish.release:
            yield ollama_names.release_tag(wish.served_as, wish.release)
        elif placement.model in known.files:
            yield ollama_names.tag_name(placement.model, known.files[placement.model].sha256)
        elif wish.sha256:
            yield ollama_names.tag_name(placement.model, wish.sha256)
