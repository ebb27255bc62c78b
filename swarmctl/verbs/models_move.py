"""`swarmctl models push`, `copy` and `pull`: weights onto hosts, from here, from another host, or from
Ollama's registry."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmctl.errors import CommandFailed, SwarmError, UsageError
from swarmctl.fleet.blobs import Blob, Place, blob_path, size_there
from swarmctl.fleet.one_time_key import sweep
from swarmctl.fleet.pool import over_hosts
from swarmctl.fleet.progress import Teller
from swarmctl.fleet.spread import HOST_LIMIT, Cargo, Moved, ollama_of, reports, spread, target
from swarmctl.fleet.store import describe_file
from swarmctl.inventory import placed_on
from swarmctl.runtimes import ollama_models
from swarmctl.runtimes.ollama_plan import plan_ollama
from swarmctl.steps import CreateModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from swarmctl.fleet.holdings import Holding, Stock
    from swarmctl.fleet.progress import Event
    from swarmctl.fleet.spread import Target
    from swarmctl.fleet.yard import Yard
    from swarmctl.inventory import Host


def push(yard: Yard, file: Path, hosts: Sequence[Host], event: Callable[[Event], None], *,
         name: str | None = None, runtime: str | None = None) -> tuple[Moved, ...]:
    """Copy a GGUF file of this machine to hosts. Raises SwarmError where it is none."""
    if file.is_dir():
        raise UsageError(f"{file} is a folder, and models are pushed as one GGUF file",
                         hint="llama.cpp's convert_hf_to_gguf.py makes one of a safetensors folder")
    called = name or file.stem
    model = describe_file(called, file.absolute(), yard.paths.store / "described")
    cargo = Cargo(Blob(called, model.sha256, model.size), ollama_models.tag_name(called, model.sha256),
                  here=Path(model.path))
    return _move(yard, cargo, hosts, runtime, event)


def copy(yard: Yard, name: str, source: Host, hosts: Sequence[Host], event: Callable[[Event], None], *,
         runtime: str | None = None) -> tuple[Moved, ...]:
    """Copy a model from a host to others. Raises UsageError where it has none of that name, SwarmError where
    its weights cannot be read."""
    if source.name in {host.name for host in hosts}:
        raise UsageError(f"{source.name} is source and destination at once", hint="leave it out of --to")
    stock, found = yard.named(name, source)
    if len(found) > 1:
        have = ", ".join(each.tag or f"blob {each.digest[:12]}" for each in found)
        raise UsageError(f"{source.name} holds several models called {name}: {have}",
                         hint="name the one you mean: a blob by the beginning of its hash")
    one = found[0]
    cargo = _from_ollama(yard, stock, one) if one.runtime == "ollama" else _from_blob(yard, stock, one, name)
    return _move(yard, cargo, hosts, runtime or ("ollama" if one.runtime == "ollama" else None), event)


def pull(yard: Yard, name: str, hosts: Sequence[Host], event: Callable[[Event], None]) -> tuple[Moved, ...]:
    """Have the Ollama of hosts fetch a model from its registry."""
    tag = ollama_models.full_name(name)
    done = {host.name: found for host, found in over_hosts(
        hosts, lambda host: _pull(yard, host, tag, event), timeout=HOST_LIMIT)}
    return reports(hosts, done)


def _pull(yard: Yard, host: Host, tag: str, event: Callable[[Event], None]) -> Moved:
    began, tell = time.monotonic(), Teller(host.name, 1, 1, f"pull {tag}", event)
    ollama = ollama_of(yard.stock(host))
    if any(one.name == tag for one in ollama.tags):
        return Moved(host.name, "there", "ollama", tag)

    def say(stage: ollama_models.Stage) -> None:
        known = stage.done is not None and stage.total
        tell(stage.status, (stage.done or 0) / (stage.total or 1) if known else None)

    try:
        ollama_models.pull(ollama.endpoint, tag, say)
    except SwarmError as exc:
        raise type(exc)(exc.message, host=host.name, hint=exc.hint) from exc
    return Moved(host.name, "moved", "ollama", tag, "from its registry", seconds=time.monotonic() - began)


def _move(yard: Yard, cargo: Cargo, hosts: Sequence[Host], runtime: str | None,
          event: Callable[[Event], None]) -> tuple[Moved, ...]:
    sweep(yard.paths, yard.remote, {host.name for host in yard.inventory.hosts})
    done: dict[str, Moved | SwarmError] = {}
    targets: dict[str, Target] = {}
    for host, stock in yard.stocks(hosts):
        try:
            if isinstance(stock, SwarmError):
                raise stock
            targets[host.name] = target(cargo, stock, runtime, yard.inventory.ssh_config,
                                        _wished(yard, stock, cargo.tag))
        except SwarmError as exc:
            done[host.name] = exc
    wanted = [targets[host.name] for host in hosts if host.name in targets]
    return reports(hosts, done | spread(cargo, wanted, yard.paths, event,
                                        between=yard.inventory.between_hosts))


def _wished(yard: Yard, stock: Stock, tag: str) -> dict[str, Any] | None:
    """What `up` would make this very model with on that host, so that it finds nothing to do later; None
    where it would make none."""
    if not placed_on(stock.host, "ollama"):
        return None
    try:
        steps = plan_ollama(yard.want(stock.host), replace(stock.seen, ollamas=tuple(
            replace(one, models=()) for one in stock.seen.ollamas)))
    except (SwarmError, KeyError):
        return None  # `up` will say what is wrong; this model may be brought there all the same
    made = next((step for step in steps if isinstance(step, CreateModel) and step.tag == tag), None)
    return {"parameters": dict(made.parameters)} if made and made.parameters else None


def _from_blob(yard: Yard, stock: Stock, one: Holding, name: str) -> Cargo:
    """A blob under data_dir."""
    path, called = blob_path(stock.seen.data_dir, one.digest), one.model or name
    return Cargo(Blob(called, one.digest, one.size), ollama_models.tag_name(called, one.digest),
                 there=_place(yard, stock, path))


def _from_ollama(yard: Yard, stock: Stock, one: Holding) -> Cargo:
    """A model of an Ollama: its blob lies in that server's folder, under its hash."""
    ollama = next(each for each in stock.ollamas if each.port == one.port)
    try:
        card = ollama_models.card(ollama.endpoint, one.tag)
        size = size_there(stock.remote, card.weights)
    except CommandFailed as exc:
        raise SwarmError(f"{one.tag} lies in {card.weights}, which {stock.seen.user} may not read there",
                         host=one.host, hint="let that user read Ollama's folder (its group is often "
                                             "`ollama`), or push the GGUF from here") from exc
    except SwarmError as exc:
        raise type(exc)(exc.message, host=one.host, hint=exc.hint) from exc
    return Cargo(Blob(one.tag, card.sha256, size), one.tag, there=_place(yard, stock, card.weights),
                 recipe=card.recipe)


def _place(yard: Yard, stock: Stock, path: str) -> Place:
    return Place(stock.remote, path, stock.seen.data_dir, stock.host.ssh, yard.inventory.ssh_config)
