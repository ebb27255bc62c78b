"""`swarmctl compare`."""

from __future__ import annotations

import json
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from swarmctl.cli.ask import find_swarm, read_question, say
from swarmctl.cli.streaming import SilentSink, printable
from swarmctl.dispatch.question import Asked
from swarmctl.dispatch.shadow import fit_when_due
from swarmctl.errors import UsageError
from swarmctl.ledger.terminal import terminal_id
from swarmctl.verbs.compare import Blind, Choice, answer_both, decide, pair_of_models, shadowed

if TYPE_CHECKING:
    from swarmctl.cli.context import Context

KEYS: dict[str, Choice] = {"1": "left", "2": "right", "t": "tie", "b": "both-bad"}


def compare(
    ctx: typer.Context,
    prompt: Annotated[list[str] | None, typer.Argument(help="The question; without one, stdin.",
                                                       show_default=False)] = None,
    model: Annotated[list[str] | None, typer.Option(
        "--model", "-m", help="A model, or MODEL:RELEASE; give two, or none for a model and its canary, "
                              "else the two the router ranks highest.",
        show_default=False)] = None,
    file: Annotated[list[Path] | None, typer.Option("--file", "-f", help="Attach a text file.",
                                                    show_default=False)] = None,
    system: Annotated[str | None, typer.Option("--system", "-s", help="The system prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=5.0,
                                                      help="0 is always the likeliest.")] = None,
    comment: Annotated[str | None, typer.Option("--comment", help="Why; kept with the choice.")] = None,
    choice: Annotated[str | None, typer.Option(
        "--choice", help="1, 2, t (tie) or b (both bad), for scripts; asked for otherwise.")] = None,
    shadow: Annotated[bool, typer.Option("--shadow", help=(
        "Ask nobody: compare the newest two answers that exploration left side by side."))] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the comparison as one JSON object.")] = False,
) -> None:
    """Ask two models the same question, see both answers without their names, and pick the better one.

    Which answer stands first is left to chance. The names are shown after the choice; both answers and the
    choice are recorded.
    """
    context: Context = ctx.obj
    if choice is not None and choice not in KEYS:
        raise UsageError(f"--choice is {choice!r}", hint="1, 2, t (tie) or b (both bad)")
    terminal = terminal_id(context.environ)
    if shadow:
        question, blind = shadowed(context.paths, lambda: bool(secrets.randbits(1)))
        say(printable(question))
    else:
        text, attachments = read_question(prompt, file or [], with_pipe=False)
        swarm = find_swarm(context)
        asked = Asked(text, tuple(attachments), system, max_tokens=max_tokens, temperature=temperature)
        models = pair_of_models(swarm, asked, tuple(model or ()), context.clock())
        blind = answer_both(swarm, asked, models, lambda: SilentSink(sys.stdout, sys.stderr),
                            terminal=terminal, clock=context.clock, coin=lambda: bool(secrets.randbits(1)))
    show = sys.stderr if as_json else sys.stdout
    for number, exchange in ((1, blind.left), (2, blind.right)):
        show.write(f"[{number}]\n{printable(exchange.answer)}\n\n")
    show.flush()
    row = decide(context.paths, blind, KEYS[choice or _pick()], comment=comment, terminal=terminal,
                 now=context.clock())
    if as_json:
        sys.stdout.write(json.dumps(row.to_record(), ensure_ascii=False) + "\n")
    else:
        say(_reveal(blind, row.choice))
    fit_when_due(context.paths)


def _pick() -> str:
    while True:
        sys.stderr.write("Which is better: 1, 2, t (tie), b (both bad)? ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            raise UsageError("no choice was made; both answers are recorded, the comparison is not")
        if line.strip() in KEYS:
            return line.strip()


def _reveal(blind: Blind, choice: str) -> str:
    left, right = blind.left, blind.right
    one, two = left.model, right.model
    if one == two:  # releases of one model: their names end with this
        one, two = f"{one} {left.digest[:8]}", f"{two} {right.digest[:8]}"
    names = f"1 was {one} on {left.host}, 2 was {two} on {right.host}"
    said = {"a": f"{one} is better", "b": f"{two} is better", "tie": "a tie", "both-bad": "both bad"}
    return f"recorded: {said[choice]} ({names})"
