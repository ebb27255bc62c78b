"""`swarmctl serve`: the gateway, its keys and its service unit."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from swarmctl.cli.ask import find_inventory
from swarmctl.errors import UsageError
from swarmctl.gateway.bounds import DEFAULT_BOUNDS
from swarmctl.verbs import serve as verb

if TYPE_CHECKING:
    from swarmctl.cli.context import Context
    from swarmctl.gateway.keys import Key

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, invoke_without_command=True,
                  add_completion=False)
key_app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True)
app.add_typer(key_app, name="key", help="API keys: who may ask, how much, and for what.")

Host = Annotated[str, typer.Option("--host", "-H", help="The address to listen on. Others than this machine "
                                                        "are let in with an API key only.")]
Port = Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="0 takes a free one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@app.callback(invoke_without_command=True)
def serve(
    ctx: typer.Context,
    host: Host = "127.0.0.1",
    port: Port = verb.PORT,
    log_file: Annotated[Path | None, typer.Option(
        "--log", metavar="FILE", help="Append a JSON line a request here; else to stderr.")] = None,
    log_prompts: Annotated[bool, typer.Option(
        "--log-prompts", help="Log what is asked, too; the journal has it either way.")] = False,
    at_once: Annotated[int, typer.Option(
        min=1, max=4096, help="Requests under way at a time; further ones are told to come again.")] =
        DEFAULT_BOUNDS.at_once,
    drain: Annotated[float, typer.Option(
        min=0, help="Seconds that answers under way get to finish at the end.")] = DEFAULT_BOUNDS.drain,
) -> None:
    """Serve the swarm over HTTP, to programs that speak OpenAI (base URL …/v1), Ollama or Anthropic.

    Every request takes the way of `ask`: routed, answered, recorded. Model names are auto, auto:fast,
    auto:best, or those of the swarm. With no inventory at all, this machine answers, as for `ask`. Ends with
    SIGTERM or Ctrl-C, once what is under way is answered.
    """
    if ctx.invoked_subcommand:
        return
    context: Context = ctx.obj
    bounds = replace(DEFAULT_BOUNDS, at_once=at_once, drain=drain)
    serving = verb.Serving(host, port, bounds, log_prompts)
    find = partial(find_inventory, context)
    if log_file is None:
        verb.run(context.paths, find, serving, clock=context.clock, log=sys.stderr, say=_say)
        return
    with _opened(log_file.expanduser()) as log:
        verb.run(context.paths, find, serving, clock=context.clock, log=log, say=_say)


@app.command()
def unit(
    ctx: typer.Context,
    host: Host = "127.0.0.1",
    port: Port = verb.PORT,
    install: Annotated[bool, typer.Option(
        "--install", help="Write it to ~/.config/systemd/user instead of printing it.")] = False,
) -> None:
    """Print a systemd user unit that keeps the gateway running, or install it."""
    context: Context = ctx.obj
    text = verb.unit(context.inventory, context.environ, host, port)
    if not context.inventory.exists():
        _say(f"there is no inventory at {context.inventory}: until there is one, the service answers from\n"
             "  this machine, and builds llama.cpp first where that was not done.\n"
             "  swarmctl init writes an inventory; swarmctl runtime build builds now")
    if not install:
        sys.stdout.write(text)
        return
    path = verb.install_unit(text, context.environ)
    _say(f"wrote {path}\n  systemctl --user daemon-reload\n  systemctl --user enable --now {path.name}\n"
         "  loginctl enable-linger   # so that it runs when you are not logged in")


@key_app.command()
def add(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="What exchanges and logs will call it.")],
    requests_per_minute: Annotated[int | None, typer.Option("--rpm", min=1, show_default=False,
                                                            help="Requests a minute.")] = None,
    tokens_per_day: Annotated[int | None, typer.Option(
        "--tokens-per-day", min=1, show_default=False, help="Tokens read and made, a day in UTC.")] = None,
    at_once: Annotated[int | None, typer.Option(min=1, show_default=False,
                                                help="Requests under way at a time.")] = None,
    priority: Annotated[int, typer.Option(
        min=-9, max=9, help="Where every slot is taken: higher comes earlier, each step as if it had been "
                            "asked ten seconds before.")] = 0,
    scope: Annotated[list[str] | None, typer.Option(
        show_default=False, help="ask, feedback (on one's own answers), rate (any answer), metrics; may be "
                                 "repeated. Without: ask and feedback.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key. It is shown once; only its hash is kept."""
    context: Context = ctx.obj
    made, secret = verb.make_key(
        context.paths, name, context.clock(), scopes=tuple(scope or ()),
        requests_per_minute=requests_per_minute, tokens_per_day=tokens_per_day, at_once=at_once,
        priority=priority)
    if as_json:
        sys.stdout.write(json.dumps({**_shown(made), "key": secret}) + "\n")
        return
    sys.stdout.write(f"{secret}\n")
    _say("this is shown once; a running gateway takes it at once, and asks everybody for a key from now on")


@key_app.command(name="list")
def list_keys(ctx: typer.Context, as_json: AsJson = False) -> None:
    """List the API keys with their limits."""
    context: Context = ctx.obj
    found = verb.keys(context.paths)
    if as_json:
        sys.stdout.write(json.dumps([_shown(one) for one in found], indent=1) + "\n")
        return
    if not found:
        _say("no API keys: the gateway serves this machine alone, and asks for none")
        return
    _table(found)


@key_app.command()
def revoke(ctx: typer.Context, name: Annotated[str, typer.Argument(help="The key's name.")]) -> None:
    """Take an API key back. A running gateway refuses it from its next request on."""
    context: Context = ctx.obj
    verb.revoke(context.paths, name)
    left = len(verb.keys(context.paths))
    _say(f"revoked {name}; {left or 'no'} key{'' if left == 1 else 's'} left")
    if not left:
        _say("a gateway on loopback asks nobody for a key from now on: every program of this machine may ask")


def _opened(path: Path) -> TextIO:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as exc:
        raise UsageError(f"--log {path}: {exc.strerror}") from exc


def _shown(key: Key) -> dict[str, object]:
    return {name: value for name, value in asdict(key).items() if name != "sha256"}


def _table(found: tuple[Key, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("name", "made", "may", "requests/min", "tokens/day", "at once", "priority"):
        table.add_column(title)
    for key in found:
        limits = (key.requests_per_minute, key.tokens_per_day, key.at_once)
        table.add_row(key.name, key.made[:10], ", ".join(key.scopes),
                      *("" if limit is None else f"{limit:,}" for limit in limits), f"{key.priority or ''}")
    Console().print(table)


def _say(line: str) -> None:
    with suppress(OSError):  # the terminal may be gone; what is under way must still be recorded
        sys.stderr.write(f"swarmctl: {line}\n")
        sys.stderr.flush()
