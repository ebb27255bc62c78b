"""`swarmctl rate`: up, down, 1 to 5, a comment, a correction, or take it back."""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from swarmctl.cli.streaming import printable
from swarmctl.dispatch.shadow import fit_when_due
from swarmctl.errors import UsageError
from swarmctl.ledger.lookup import is_id
from swarmctl.ledger.terminal import terminal_id
from swarmctl.verbs import rate as verb

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.cli.context import Context
    from swarmctl.exchange import Rating
    from swarmctl.verbs.rate import Rated

SHOWN = 60


def rate(
    ctx: typer.Context,
    value: Annotated[str | None, typer.Argument(metavar="[up|down|1-5]", help="What the answer was worth.",
                                                show_default=False)] = None,
    exchange: Annotated[str | None, typer.Argument(
        metavar="[ID]", show_default=False,
        help="The answer's id, or any 4 or more characters of its beginning or end.")] = None,
    comment: Annotated[str | None, typer.Option("--comment", "-m", help="Say why.")] = None,
    correct: Annotated[bool, typer.Option("--correct", "-e", help="Correct the answer in $EDITOR.")] = False,
    correction: Annotated[str | None, typer.Option(
        "--correction", metavar="TEXT", help="What it should have answered; - reads it from stdin.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take back the rating that stands.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rating as JSON.")] = False,
) -> None:
    """Rate the last answer of this terminal, or the one with the given id.

    What is not said anew stays: a comment keeps the thumb, a thumb keeps the comment. A correction that comes
    without a rating counts as down.
    """
    context: Context = ctx.obj
    if value is not None and exchange in (None, *verb.VALUES) and value not in verb.VALUES and is_id(value):
        value, exchange = exchange, value
    opinion = verb.Opinion(value, comment, _correction(context, correct, correction))
    if undo and opinion != verb.Opinion():
        raise UsageError("--undo takes back and says nothing new", hint="use it alone, or with an id")
    rated = _rate(context, opinion if not undo else None, exchange)
    _show(rated, as_json)


def rate_line(context: Context, value: str, comment: str | None) -> str:
    """Rate the last answer of this terminal and say what was done, in one line."""
    return sentence(_rate(context, verb.Opinion(value, comment), None))


def sentence(rated: Rated) -> str:
    """What was done, in one line that names the answer."""
    exchange = rated.exchange
    answer = " ".join(str(exchange.get("answer", "")).split()) or "(no answer)"
    short = answer if len(answer) <= SHOWN else f"{answer[:SHOWN - 1]}…"
    what = f"took back {said(rated.rating)}" if rated.rating.undoes else f"rated {said(rated.rating)}"
    still = f"; {said(rated.standing)} stands" if rated.rating.undoes and rated.standing else ""
    return printable(f"{what}: {short} ({exchange['model']} on {exchange['host']}){still}")


def said(rating: Rating) -> str:
    """A rating in a few words: up; 4 of 5, commented; down, corrected."""
    if rating.stars is not None:
        worth = f"{rating.stars} of 5"
    elif rating.score is not None:
        worth = "up" if rating.score > 0 else "down"
    else:
        worth = "without a score"
    parts = [worth, *(["commented"] if rating.comment else []), *(["corrected"] if rating.correction else [])]
    return ", ".join(parts)


def _rate(context: Context, opinion: verb.Opinion | None, exchange: str | None) -> Rated:
    terminal, now = terminal_id(context.environ), context.clock()
    if opinion is None:
        return verb.undo(context.paths, terminal=terminal, now=now, id_part=exchange)
    rated = verb.rate(context.paths, opinion, terminal=terminal, now=now, id_part=exchange)
    fit_when_due(context.paths)
    return rated


def _correction(context: Context, correct: bool, text: str | None) -> Callable[[str], str] | None:
    if correct and text is not None:
        raise UsageError("--correct opens an editor and --correction brings the text: use one of them")
    if correct:
        return partial(verb.edit, verb.editor(context.environ))
    if text == "-":
        text = sys.stdin.buffer.read().decode("utf-8", "surrogateescape").removesuffix("\n")
    return None if text is None else lambda _: text


def _show(rated: Rated, as_json: bool) -> None:
    if rated.note:
        sys.stderr.write(f"{rated.note}\n")
    if as_json:
        sys.stdout.write(json.dumps(rated.rating.to_record()) + "\n")
    else:
        sys.stdout.write(sentence(rated) + "\n")
