"""`swarmctl review`: the digest; show, approve, reject."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmctl.fleet.person import who

if TYPE_CHECKING:
    from swarmctl.cli.context import Context

app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False,
                  invoke_without_command=True,
                  help="What was asked, how it was liked, what changed, and what waits for your word.")

AS_JSON = typer.Option("--json", help="Print JSON.")
Round = Annotated[str, typer.Argument(metavar="ROUND", help="A round's id, as `review` shows it.")]
Comment = Annotated[str, typer.Option("--comment", help="Why; kept with the decision.")]


@app.callback(invoke_without_command=True)
def digest(
    ctx: typer.Context,
    since: Annotated[str, typer.Option(metavar="7d|24h|DATE", help="From when on.")] = "7d",
    write: Annotated[bool, typer.Option("--write", help="Also write it to data/reviews/DATE.md.")] = False,
    as_json: Annotated[bool, AS_JSON] = False,
) -> None:
    """Show the operators' digest: volumes, approval with intervals, topics, worst answers, what changed, what
    waits for a word."""
    if ctx.invoked_subcommand:
        return
    from swarmctl.monitor.digest import markdown
    from swarmctl.verbs.review import review, written

    context: Context = ctx.obj
    found = review(context.paths, since, context.clock(), _topics(context))
    _out(found) if as_json else sys.stdout.write(markdown(found))
    if write:
        sys.stderr.write(f"written: {written(context.paths, found)}\n")


@app.command()
def show(ctx: typer.Context, round_id: Round, as_json: Annotated[bool, AS_JSON] = False) -> None:
    """Show one round of improvement with its evidence."""
    from swarmctl.monitor.digest import round_page
    from swarmctl.verbs.review import show as verb

    context: Context = ctx.obj
    found = verb(context.paths, round_id)
    _out(found) if as_json else sys.stdout.write(round_page(found))


@app.command()
def approve(ctx: typer.Context, round_id: Round, comment: Comment = "",
            as_json: Annotated[bool, AS_JSON] = False) -> None:
    """Sign a round: its release gets its share of the conversations at the next `swarmctl improve`."""
    _sign(ctx.obj, round_id, comment, approve=True, as_json=as_json)


@app.command()
def reject(ctx: typer.Context, round_id: Round, comment: Comment = "",
           as_json: Annotated[bool, AS_JSON] = False) -> None:
    """Refuse a round: its release is taken away at the next `swarmctl improve`."""
    _sign(ctx.obj, round_id, comment, approve=False, as_json=as_json)


def _topics(context: Context) -> list[dict[str, Any]]:
    """What is known of the topics, as it was last sorted."""
    from swarmctl.verbs.topics import sorted_last

    found = sorted_last(context.paths, context.clock())
    return [{"topic": one.topic.id, "name": one.topic.name, "size": one.size, "approval": one.approval.share,
             "low": one.approval.low, "high": one.approval.high, "trend": one.trend}
            for one in (found.summaries if found else ())]


def _sign(context: Context, round_id: str, comment: str, *, approve: bool, as_json: bool) -> None:
    from swarmctl.monitor.digest import summary
    from swarmctl.verbs.improve import sign

    found = sign(context.paths, round_id, approve=approve, by=who(), comment=comment, now=context.clock())
    if as_json:
        _out(summary(found))
    else:
        word = "approved" if approve else "rejected"
        sys.stderr.write(f"{found.id}: {word} by {who()}; `swarmctl improve` goes on with it\n")


def _out(value: Any) -> None:  # noqa: ANN401  JSON
    sys.stdout.write(json.dumps(value, default=str) + "\n")
