"""`swarmctl ask`."""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmctl.cli.streaming import SilentSink, TerminalSink, show_cascade, show_footer, show_route, show_wait
from swarmctl.cli.toolcalls import check_choice, read_results, read_tools, reads_stdin
from swarmctl.dispatch.question import Answered, Asked, Attachment
from swarmctl.dispatch.record import Unrecorded
from swarmctl.errors import SwarmError, UsageError
from swarmctl.ledger.terminal import recall, terminal_id
from swarmctl.verbs.ask import ask as ask_verb

if TYPE_CHECKING:
    from swarmctl.cli.context import Context
    from swarmctl.dispatch.swarm import Swarm

#: A bigger attachment is a corpus, and belongs to bulk work.
MAX_ATTACHMENT = 8 << 20
EXAMPLE = 'swarmctl ask "What is the capital of France?"'


def ask(
    ctx: typer.Context,
    prompt: Annotated[list[str] | None, typer.Argument(
        help="The question. Without one, or as `-`, it is read from stdin; with one, piped input comes along "
             "as a file.", show_default=False)] = None,
    file: Annotated[list[Path] | None, typer.Option(
        "--file", "-f", help="Attach a text file; may be repeated. `-` is stdin.",
        show_default=False)] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="The system prompt.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Ask this model only.")] = None,
    host: Annotated[str | None, typer.Option("--host", "-H", help="Ask on this host only.")] = None,
    go_on: Annotated[bool, typer.Option(
        "--continue", "-c", help="Continue this terminal's last conversation.")] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(
        min=0.0, max=5.0, help="0 always takes the likeliest token.")] = None,
    seed: Annotated[int | None, typer.Option(help="Sample the same way again.")] = None,
    schema: Annotated[str | None, typer.Option(
        help="A JSON Schema that the answer must satisfy: a file, or the schema itself.")] = None,
    tools: Annotated[str | None, typer.Option(
        help="Tools that the model may ask to have called: a JSON file of functions in OpenAI's form, or the "
             "JSON itself. The calls are printed; nothing is run.")] = None,
    tool_choice: Annotated[str | None, typer.Option(
        help="auto, none, required, or the name of the tool that must be called.")] = None,
    tool_result: Annotated[list[str] | None, typer.Option(
        "--tool-result", metavar="CALL=FILE", show_default=False,
        help="The result of a call that the last answer asked for, by its id; `-` is stdin. May be repeated; "
             "the conversation goes on, with or without a further question.")] = None,
    priority: Annotated[int, typer.Option(
        min=-9, max=9, help="Where every slot is taken: higher comes earlier, each step as if it had been "
                            "asked ten seconds before.")] = 0,
    important: Annotated[bool, typer.Option(
        "--important", help="Spend this question on no experiment: see `swarmctl route`.")] = False,
    explain: Annotated[bool, typer.Option("--explain",
                                          help="Show the whole table of prices on stderr.")] = False,
    as_json: Annotated[bool, typer.Option(
        "--json", help="Print the exchange as one JSON object when it is whole.")] = False,
) -> None:
    """Ask the swarm a question.

    The answer streams to stdout, from the cheapest host and model that is likely to answer well; --explain
    shows why. If that host fails, the next one answers. Everything is recorded: `swarmctl log` lists it,
    `swarmctl rate` rates it. With no inventory at all, this machine answers with the tiny model that ships
    with swarmctl.
    """
    context: Context = ctx.obj
    results = tool_result or []
    text, attachments = ("", []) if results and not prompt and not file else read_question(
        prompt, file or [], with_pipe=not reads_stdin(results))
    asked = Asked(text, tuple(attachments), system, model, host, max_tokens, temperature, seed,
                  read_schema(schema) if schema else None, tools=read_tools(tools) if tools else (),
                  tool_choice=tool_choice, priority=priority, important=important)
    if go_on or results:
        asked = _with_results(context, continued(context, asked), results)
    check_choice(tool_choice, asked.tools)
    swarm = find_swarm(context)
    terminal = terminal_id(context.environ)
    sink = (SilentSink if as_json else TerminalSink)(sys.stdout, sys.stderr)
    try:
        answered = ask_verb(swarm, asked, sink, terminal=terminal, clock=context.clock,
                            routed=show_route if explain else None, waiting=show_wait, watch=sink.watch)
    except Unrecorded as exc:
        if as_json:
            row = {**exc.exchange.to_record(), "recorded": False}
            sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")
        raise
    finally:
        sink.end()
    if explain:
        show_cascade(answered.exchange)
    if answered.woken:
        say(f"{answered.woken} sleeps and answers such questions better; it is being woken")
    if as_json:
        print_json(answered)
    else:
        show_footer(answered.exchange)


def _with_results(context: Context, asked: Asked, results: list[str]) -> Asked:
    """Answer the calls of the conversation's last answer. Its tools stay, unless others are given."""
    from swarmctl.ledger.lookup import find_exchange

    row = find_exchange(context.paths.journal, asked.previous or "")
    kept = (row.get("params") or {}).get("tools") or ()
    return replace(asked, results=read_results(results, asked.history), tools=asked.tools or tuple(kept))


def find_swarm(context: Context) -> Swarm:
    """The swarm of the inventory, or this machine where there is no inventory."""
    from swarmctl.dispatch.swarm import read_swarm

    swarm = read_swarm(context.paths, find_inventory(context), say)
    assert swarm is not None  # there is an inventory, or a snapshot
    return swarm


def find_inventory(context: Context) -> Path:
    """The inventory whose swarm is asked: of this machine, brought up where need be, if there is none.

    Raises UsageError where one was named that is not there.
    """
    from swarmctl.fleet.snapshot import read_fleet

    here = context.paths.this_machine
    if context.inventory != here and context.inventory.exists():
        return context.inventory
    if context.inventory not in (here, context.paths.inventory):
        raise UsageError(f"there is no inventory at {context.inventory}",
                         hint="--inventory, or SWARMCTL_INVENTORY, names it")
    if context.inventory != here and read_fleet(context.paths.fleet) is not None:
        return context.inventory
    if not listens_here(context):
        _serve_here(context)
    return here


def _serve_here(context: Context) -> None:
    """Bring up this machine: what `up` does, for an inventory that nobody had to write."""
    from swarmctl.cli.progress_view import Progress
    from swarmctl.cli.up import Shown
    from swarmctl.fleet.this_machine import must_build, this_machine
    from swarmctl.verbs.up import up

    say("no inventory yet: this machine answers, with the tiny models that ship with swarmctl.\n"
        "  They know capitals, spelling and little else. For a real swarm: swarmctl init, then swarmctl up.\n"
        "  swarmctl down stops the servers that start now.")
    if must_build(context.paths):
        _agree_to_build()
    path = this_machine(context.paths)
    with Progress.on(sys.stderr) as progress:
        reports = up(context.paths, path, Shown(progress, quiet=True))
    for report in reports:
        if report.error:
            raise report.error


def _agree_to_build() -> None:
    """Say that llama.cpp will be built, and ask where somebody is there to say no. In a pipe or a service
    nobody is, and to answer is what was asked for."""
    say("llama.cpp has to be built for this machine first, once: 5 minutes on two idle cores,\n"
        "  half an hour on busy ones.\n"
        "  To do without: Ctrl-C, and name an inventory of hosts (swarmctl -i FILE).\n"
        "  To do it at another time: swarmctl runtime build. What is cut goes on where it was.")
    from swarmctl.cli.confirm import agreed

    asked = sys.stdin.isatty() and sys.stderr.isatty()
    if asked and not agreed("build it now?", default=True):
        raise SwarmError("nothing was built", hint="swarmctl init writes an inventory of hosts; "
                                                   "swarmctl runtime build builds here")


def listens_here(context: Context) -> bool:
    """Whether this machine stands in for an inventory, and any of its servers takes connections."""
    import socket

    from swarmctl.fleet.snapshot import read_fleet

    fleet = read_fleet(context.paths.fleet)
    if fleet is None or fleet.inventory != str(context.paths.this_machine):
        return False
    for port in (served.port for entry in fleet.hosts for served in entry.served):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
        except OSError:
            continue
        return True
    return False


def say(line: str) -> None:
    """Tell the person something that is not the answer."""
    sys.stderr.write(f"swarmctl: {line}\n")
    sys.stderr.flush()


def print_json(answered: Answered) -> None:
    """Print the exchange as recorded, on one line."""
    row: dict[str, Any] = answered.exchange.to_record()
    row["category_reason"] = answered.categorised.reason
    sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_question(prompt: list[str] | None, files: list[Path], *,
                  with_pipe: bool = True) -> tuple[str, list[Attachment]]:
    """Put the question together from the arguments, stdin and files. `with_pipe` takes piped text along as a
    file.

    Raises UsageError.
    """
    words = " ".join(prompt or [])
    attachments = [_attachment(path) for path in files]
    if words in ("", "-"):
        if sys.stdin.isatty() and words == "":
            raise UsageError("no question", hint=EXAMPLE)
        words = _decode(sys.stdin.buffer.read(MAX_ATTACHMENT + 1), "stdin")
    elif with_pipe and _piped() and not any(str(path) == "-" for path in files):
        piped = _decode(sys.stdin.buffer.read(MAX_ATTACHMENT + 1), "stdin")
        if piped.strip():
            attachments.insert(0, Attachment("stdin", piped))
    if not words.strip():
        raise UsageError("the question is empty", hint=EXAMPLE)
    return words.strip(), attachments


def read_schema(given: str) -> dict[str, Any]:
    """Read a JSON Schema from a file, or as it stands. Raises UsageError."""
    source, text = ("--schema", given)
    if not given.lstrip().startswith("{"):
        source = given
        try:
            text = Path(given).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            said = getattr(exc, "strerror", None) or exc
            raise UsageError(f"{given}: cannot be read as a schema: {said}") from exc
    try:
        schema = json.loads(text)
    except ValueError as exc:
        raise UsageError(f"{source}: not JSON: {exc}") from exc
    if not isinstance(schema, dict):
        raise UsageError(f"{source}: a JSON Schema is an object, this is {type(schema).__name__}")
    return schema


def _piped() -> bool:
    """Whether stdin is a pipe or a file, which somebody meant to be read; a terminal or /dev/null is not."""
    mode = os.fstat(sys.stdin.fileno()).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _attachment(path: Path) -> Attachment:
    if str(path) == "-":
        return Attachment("stdin", _decode(sys.stdin.buffer.read(MAX_ATTACHMENT + 1), "stdin"))
    try:
        with path.open("rb") as source:
            raw = source.read(MAX_ATTACHMENT + 1)
    except OSError as exc:
        raise UsageError(f"{path}: {exc.strerror}") from exc
    return Attachment(path.name, _decode(raw, str(path)))


def _decode(raw: bytes, name: str) -> str:
    if len(raw) > MAX_ATTACHMENT:
        raise UsageError(f"{name} is longer than {MAX_ATTACHMENT >> 20} MiB")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise UsageError(f"{name} is not UTF-8 text (byte {exc.start})",
                         hint="only text can be asked about") from exc
    if "\0" in text:
        raise UsageError(f"{name} is not text: it holds NUL bytes")
    return text


def continued(context: Context, asked: Asked) -> Asked:
    """Put the question into this terminal's last conversation. Raises UsageError where there is none."""
    from swarmctl.ledger.lookup import conversation_messages, find_exchange

    last = recall(context.paths, terminal_id(context.environ))
    if last is None:
        raise UsageError("this terminal has no conversation to continue", hint="ask without -c first")
    row = find_exchange(context.paths.journal, last.exchange)
    return replace(asked, history=conversation_messages(context.paths.journal, last.exchange),
                   previous=last.exchange, conversation=last.conversation,
                   holder=(str(row.get("host")), str(row.get("model"))))
