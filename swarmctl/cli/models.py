"""`swarmctl models`: list, fit, push, copy, pull, remove, prune."""

from __future__ import annotations

import json
import sys
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmctl.cli.confirm import confirm_removal
from swarmctl.cli.history import history
from swarmctl.errors import SomeHostsFailed, SwarmError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from swarmctl.cli.context import Context
    from swarmctl.fleet.holdings import Holding, Stock
    from swarmctl.fleet.progress import Event
    from swarmctl.fleet.spread import Moved
    from swarmctl.fleet.yard import Yard
    from swarmctl.runtimes.placement import Share
    from swarmctl.verbs.models import Row

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True,
                  pretty_exceptions_enable=False,
                  help="List, fit, push, copy, pull, remove and prune the models on the hosts.")

app.command("history")(history)

HOSTS = typer.Option("--host", metavar="HOST", help="Only this host; may be given several times.")
TO = typer.Option("--to", metavar="HOST", help="A host to bring it to; may be given several times.")
AS_JSON = typer.Option("--json", help="Print JSON.")
YES = typer.Option("--yes", "-y", help="Do not ask.")
RUNTIME = typer.Option("--runtime", help="llamacpp or ollama, where a host has both.")


@app.command("list")
def listing(ctx: typer.Context, host: Annotated[list[str] | None, HOSTS] = None,
            as_json: Annotated[bool, AS_JSON] = False) -> None:
    """List every model on every host: digest, size, quantisation, loaded, last used, wanted or not.

    The digest of a blob is the sha256 of its weights; Ollama's is that of its manifest. Looking loads
    nothing. Exits with 3 when a host cannot be reached.
    """
    from swarmctl.verbs.models import listing as verb

    yard = _yard(ctx)
    found = {each.name: rows for each, rows in verb(yard, host or ())}
    rows = [row for each in yard.chosen(host or ()) if not isinstance(one := found[each.name], SwarmError)
            for row in one]
    if as_json:
        _print_json([row.to_record() for row in rows])
    else:
        _table(("host", "runtime", "model", "quant", "size", "digest", "loaded", "used", "wanted"),
               [_row_cells(row) for row in rows])
    _verdict({name: rows for name, rows in found.items() if isinstance(rows, SwarmError)})


@app.command("fit")
def fit(ctx: typer.Context, host: Annotated[list[str] | None, HOSTS] = None,
        as_json: Annotated[bool, AS_JSON] = False) -> None:
    """Show how the wanted models fit each host's memory: weights, cache, headroom, and what evicts what.

    Exits with 1 when a model cannot fit, with the sum that says so.
    """
    from swarmctl.runtimes.placement import refusal
    from swarmctl.verbs.models import fits

    yard = _yard(ctx)
    found = {each.name: shares for each, shares in fits(yard, host or ())}
    shares = [share for each in yard.chosen(host or ())
              if not isinstance(one := found[each.name], SwarmError) for share in one]
    if as_json:
        _print_json([_share_record(share) for share in shares])
    else:
        _table(("host", "runtime", "model", "weights", "cache", "headroom", "needs", "has", "fits"),
               [_share_cells(share) for share in shares])
        for share in shares:
            sys.stderr.write(f"{share.host}: {share.model}: {share.where}{_evicts(share)}\n")
    _verdict({name: error for name, error in found.items() if isinstance(error, SwarmError)})
    refused = refusal(shares)
    if refused:
        raise refused


@app.command("push")
def push(ctx: typer.Context,
         file: Annotated[Path, typer.Argument(help="A GGUF file of this machine, or a Hugging Face folder "
                                                   "with safetensors weights.")],
         to: Annotated[list[str], TO],
         name: Annotated[str | None, typer.Option(help="What to call it; the file's name otherwise.")] = None,
         runtime: Annotated[str | None, RUNTIME] = None,
         outtype: Annotated[str, typer.Option(help="Of a folder: the weights of the GGUF that is made of it: "
                                                   "f16, bf16, f32 or q8_0.")] = "f16",
         quantize: Annotated[str | None, typer.Option(help="Of a folder: what the GGUF is quantised to then, "
                                                           "such as Q4_K_M.")] = None,
         as_json: Annotated[bool, AS_JSON] = False) -> None:
    """Copy a model to hosts: a blob for llama.cpp, a model in Ollama. Sends nothing that is there.

    Ollama takes a folder as it is, unless --outtype or --quantize asks for something else or it does not know
    the architecture. For the others a GGUF is made of it on this machine, which needs torch and transformers.
    """
    from swarmctl.verbs.models_move import push as verb

    yard = _yard(ctx)
    with _progress() as event:
        moved = verb(yard, file, yard.chosen(to), event, name=name, runtime=_runtime(runtime),
                     outtype=outtype, quantise=quantize)
    _show_moved(moved, as_json)


@app.command("copy")
def copy(ctx: typer.Context,
         name: Annotated[str, typer.Argument(help="A model, an Ollama tag, or the start of a digest.")],
         source: Annotated[str, typer.Option("--from", metavar="HOST", help="The host that has it.")],
         to: Annotated[list[str], TO],
         runtime: Annotated[str | None, RUNTIME] = None,
         as_json: Annotated[bool, AS_JSON] = False) -> None:
    """Copy a model from one host to others, without the internet.

    The bytes go straight between the hosts where one's SSH reaches the other, else through this machine's
    memory.
    """
    from swarmctl.verbs.models_move import copy as verb

    yard = _yard(ctx)
    (origin,) = yard.chosen((source,))
    with _progress() as event:
        moved = verb(yard, name, origin, yard.chosen(to), event, runtime=_runtime(runtime))
    _show_moved(moved, as_json)


@app.command("pull")
def pull(ctx: typer.Context,
         name: Annotated[str, typer.Argument(help="A model of Ollama's registry, as name:tag.")],
         host: Annotated[list[str], typer.Option("--host", metavar="HOST", help="Where; may be repeated.")],
         as_json: Annotated[bool, AS_JSON] = False) -> None:
    """Have the Ollama of hosts fetch a model from its registry."""
    from swarmctl.verbs.models_move import pull as verb

    yard = _yard(ctx)
    with _progress() as event:
        moved = verb(yard, name, yard.chosen(host), event)
    _show_moved(moved, as_json)


@app.command("remove")
def remove(ctx: typer.Context,
           name: Annotated[str, typer.Argument(help="A model, an Ollama tag, or the start of a digest.")],
           host: Annotated[str, typer.Option("--host", metavar="HOST", help="The host that has it.")],
           yes: Annotated[bool, YES] = False,
           as_json: Annotated[bool, AS_JSON] = False) -> None:
    """Remove a model from a host, unless a server uses it or the inventory wants it there."""
    from swarmctl.verbs.models import refused
    from swarmctl.verbs.models import remove as verb

    yard = _yard(ctx)
    (at,) = yard.chosen((host,))
    stock, found = yard.named(name, at)
    for one in found:
        why = refused(one)
        if why:
            raise UsageError(f"{host}: {_title(one)} stays: {why}",
                             hint="take it out of the inventory, run `swarmctl up`, then remove it")
    if not yes:
        confirm_removal(f"{', '.join(_title(one) for one in found)} from {host}")
    freed = verb(yard, stock, found)
    _show_removed({host: found}, freed, as_json=as_json, dry=False)


@app.command("prune")
def prune(ctx: typer.Context, host: Annotated[list[str] | None, HOSTS] = None,
          dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
          yes: Annotated[bool, YES] = False,
          as_json: Annotated[bool, AS_JSON] = False) -> None:
    """Remove what swarmctl put on hosts and nobody wants any more: blobs and Ollama models of its own naming.

    What a server uses, what is loaded, what the inventory wants and what an owner put there stays.
    """
    from swarmctl.verbs.models import waste

    yard = _yard(ctx)
    found = {each.name: one for each, one in waste(yard, host or ())}
    failed = {name: one for name, one in found.items() if isinstance(one, SwarmError)}
    going = {name: one for name, one in found.items() if not isinstance(one, SwarmError) and one[1]}
    size = sum(one.size for _, what in going.values() for one in what)
    if going and not dry_run:
        if not yes:
            for name, (_, what) in going.items():
                sys.stderr.write(f"{name}: {', '.join(_title(one) for one in what)}\n")
            confirm_removal(f"{sum(len(what) for _, what in going.values())} models, {_size(size)}",
                            can_look=True)
        size = _remove_all(yard, going, failed)
    _show_removed({name: what for name, (_, what) in going.items() if name not in failed}, size,
                  as_json=as_json, dry=dry_run)
    _verdict(failed)


def _remove_all(yard: Yard, going: dict[str, tuple[Stock, tuple[Holding, ...]]],
                failed: dict[str, SwarmError]) -> int:
    from swarmctl.verbs.models import remove as verb

    freed = 0
    for name, (stock, what) in going.items():
        try:
            freed += verb(yard, stock, what)
        except SwarmError as exc:
            failed[name] = exc
    return freed


def _yard(ctx: typer.Context) -> Yard:
    from swarmctl.fleet.yard import Yard

    context: Context = ctx.obj
    return Yard.of(context.paths, context.inventory)


@contextmanager
def _progress() -> Iterator[Callable[[Event], None]]:
    """Events of several threads, one at a time onto stderr."""
    from swarmctl.cli.progress_view import Progress

    lock = threading.Lock()
    with Progress.on(sys.stderr) as progress:
        def event(one: Event) -> None:
            with lock:
                progress.event(one)

        yield event


def _runtime(name: str | None) -> str | None:
    if name not in (None, "llamacpp", "ollama"):
        raise UsageError(f"no runtime is called {name}", hint="there are llamacpp and ollama")
    return name


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        right = name in ("size", "weights", "cache", "headroom", "needs", "has")
        made.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=right)
    for row in rows:
        made.add_row(*row)
    Console(highlight=False, markup=False).print(made)


def _row_cells(row: Row) -> tuple[str, ...]:
    one = row.holding
    used = datetime.fromtimestamp(row.used, UTC).strftime("%Y-%m-%d") if row.used else "-"
    return (one.host, one.runtime, one.tag or one.model or "?", one.quantisation or "?", _size(one.size),
            one.digest[:12], "yes" if one.loaded else "-", used, "yes" if one.wanted else "-")


def _share_cells(share: Share) -> tuple[str, ...]:
    known = share.fits is not None
    sizes = (share.weights, share.cache, share.headroom, share.needs)
    return (share.host, share.runtime, share.model, *(_size(size) if known else "?" for size in sizes),
            _size(share.has), {True: "yes", False: "NO", None: "?"}[share.fits])


def _share_record(share: Share) -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(share), "needs": share.needs, "arithmetic": share.arithmetic}


def _evicts(share: Share) -> str:
    return f"; loading it evicts {', '.join(share.evicts)}" if share.evicts else ""


def _show_moved(moved: Sequence[Moved], as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        _print_json([{**asdict(one), "error": str(one.error) if one.error else None} for one in moved])
    else:
        for one in moved:
            if one.error is None:
                sys.stdout.write(_moved_text(one) + "\n")
    _verdict({one.host: one.error for one in moved if one.error})


def _moved_text(one: Moved) -> str:
    if not one.sent:
        return f"{one.host}  {one.name} ({one.runtime}): {one.state}, no weights were sent"
    speed = one.sent / max(one.seconds, 1e-3)
    why = f"; not straight from another host: {one.why}" if one.why else ""
    return (f"{one.host}  {one.name} ({one.runtime}): {_size(one.sent)} {one.way} in {one.seconds:.1f} s "
            f"({_size(int(speed))}/s){why}")


def _show_removed(what: dict[str, tuple[Holding, ...]], size: int, *, as_json: bool, dry: bool) -> None:
    if as_json:
        records = [{"host": host, "runtime": one.runtime, "model": one.model, "tag": one.tag,
                    "digest": one.digest, "size": one.size} for host, held in what.items() for one in held]
        _print_json({"dry_run": dry, "bytes": size, "removed": records})
        return
    word = "would remove" if dry else "removed"
    for host, held in what.items():
        for one in held:
            sys.stdout.write(f"{host}  {word} {_title(one)}\n")
    sys.stdout.write(f"{word} {_size(size)}\n" if what else "nothing to remove\n")


def _title(one: Holding) -> str:
    name = one.tag or f"{one.model or 'unknown model'} (blob {one.digest[:12]})"
    return f"{name}, {_size(one.size)}"


def _size(size: int) -> str:
    from swarmctl.runtimes.placement import size_text

    return size_text(size)


def _print_json(what: Any) -> None:  # noqa: ANN401  whatever JSON can hold
    sys.stdout.write(json.dumps(what, indent=1) + "\n")


def _verdict(failed: dict[str, SwarmError]) -> None:
    """Say what failed and exit with 3."""
    for error in failed.values():
        sys.stderr.write(f"{error}{f' → {error.hint}' if error.hint else ''}\n")
    if failed:
        raise SomeHostsFailed(f"failed: {', '.join(failed)}")
