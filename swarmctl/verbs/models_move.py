"""`swarmctl models push`, `copy` and `pull`: weights onto hosts, from here, from another host, or from
Ollama's registry."""

from __future__ import annotations

import time
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmctl.errors import CommandFailed, SwarmError, UsageError
from swarmctl.fleet.blobs import Blob, Place, blob_path, size_there
from swarmctl.fleet.folder_cargo import FolderCargo, NotForOllama, Part
from swarmctl.fleet.gguf_make import file_hash, make_gguf
from swarmctl.fleet.one_time_key import sweep
from swarmctl.fleet.pool import over_hosts
from swarmctl.fleet.progress import Teller
from swarmctl.fleet.spread import (
    HOST_LIMIT,
    Cargo,
    Moved,
    ollama_of,
    reports,
    runtime_for,
    spread,
    target,
)
from swarmctl.fleet.store import Store, describe_file
from swarmctl.inventory import placed_on
from swarmctl.runtimes import ollama_models, ollama_names
from swarmctl.runtimes.gguf_header import check_whole
from swarmctl.runtimes.hf_folder import as_sent, read_folder, same_model
from swarmctl.runtimes.ollama_plan import plan_ollama
from swarmctl.steps import CreateModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from swarmctl.fleet.holdings import Holding, Stock
    from swarmctl.fleet.progress import Event
    from swarmctl.fleet.spread import Target
    from swarmctl.fleet.yard import Yard
    from swarmctl.inventory import Host
    from swarmctl.runtimes.hf_folder import HfFolder


def push(yard: Yard, file: Path, hosts: Sequence[Host], event: Callable[[Event], None], *,
         name: str | None = None, runtime: str | None = None, outtype: str = "f16",
         quantise: str | None = None) -> tuple[Moved, ...]:
    """Copy a GGUF file of this machine to hosts, or a Hugging Face folder with safetensors weights: Ollama
    takes such a folder as it is, the rest get the GGUF that is made of it here, in `outtype` and then
    quantised. Raises SwarmError where it is neither."""
    if file.is_dir():
        folder = read_folder(file.resolve())
        return _push_folder(yard, folder, hosts, event, name or folder.path.name, runtime, outtype, quantise)
    if quantise or outtype != "f16":
        raise UsageError("a GGUF is pushed as it is", hint="--outtype and --quantize are for a folder of "
                                                          "safetensors; llama-quantize changes a GGUF")
    if not file.is_file():
        raise UsageError(f"there is no {file}", hint="name a GGUF file, or a Hugging Face folder")
    return _push_gguf(yard, file.absolute(), hosts, event, name or file.stem, runtime)


def _push_gguf(yard: Yard, file: Path, hosts: Sequence[Host], event: Callable[[Event], None], name: str,
               runtime: str | None) -> tuple[Moved, ...]:
    model = describe_file(name, file, yard.paths.store / "described")
    check_whole(name, file)
    cargo = Cargo(Blob(name, model.sha256, model.size), ollama_names.tag_name(name, model.sha256),
                  here=Path(model.path))
    return _move(yard, cargo, hosts, runtime, event)


def _push_folder(yard: Yard, folder: HfFolder, hosts: Sequence[Host], event: Callable[[Event], None],
                 name: str, runtime: str | None, outtype: str, quantise: str | None) -> tuple[Moved, ...]:
    """Ollamas first, as they are; whoever has none, or whose Ollama cannot convert this model, gets a
    GGUF."""
    store, done = Store.of(yard.paths, yard.inventory.airgap), {}
    if not quantise and outtype == "f16":
        able = [host for host in hosts if runtime_for(host, runtime) == "ollama"]
        cargo = _folder_cargo(folder, name, store)
        done = {one.host: one for one in _move(yard, cargo, able, "ollama", event)}
    left = [host for host in hosts
            if host.name not in done or isinstance(done[host.name].error, NotForOllama)]
    if left:
        tell = Teller("this machine", 1, 1, f"convert {name}", event)
        tell("", state="begun")
        try:
            made = make_gguf(folder, name, store, outtype=outtype, quantise=quantise, tell=tell)
        except SwarmError as exc:
            tell(exc.message, state="failed")
            if not done:
                raise
            failed = {host.name: Moved(host.name, "failed", error=_both(done.get(host.name), exc))
                      for host in left}
            return tuple((done | failed)[host.name] for host in hosts)
        tell("", 1.0, state="done")
        done |= {one.host: one for one in _push_gguf(yard, made, left, event, name, runtime)}
    return tuple(done[host.name] for host in hosts)


def _folder_cargo(folder: HfFolder, name: str, store: Store) -> Cargo:
    small = as_sent(folder)
    hashes = {file.name: file_hash(file, store.root) for file in folder.weights}
    whole = same_model({**hashes, **{file: sha256(content).hexdigest() for file, content in small.items()}})
    parts = tuple(Part(Blob(file.name, hashes[file.name], file.stat().st_size), file)
                  for file in folder.weights)
    return Cargo(Blob(name, whole, folder.size), ollama_names.tag_name(name, whole),
                 folder=FolderCargo(folder, parts, small))


def _both(before: Moved | None, exc: SwarmError) -> SwarmError:
    """Why Ollama would not, and why there is no GGUF."""
    if before is None or before.error is None:
        return exc
    return SwarmError(f"{before.error.message}; and to GGUF: {exc.message}", host=before.host, hint=exc.hint)


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
    tag = ollama_names.full_name(name)
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
    return Cargo(Blob(called, one.digest, one.size), ollama_names.tag_name(called, one.digest),
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
