"""`swarmctl topics`. Alone it lists."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmctl.cli.ask import say
from swarmctl.cli.log import ListByDefault
from swarmctl.cli.streaming import printable
from swarmctl.learning.topics import policy
from swarmctl.verbs import topics as verb

if TYPE_CHECKING:
    from swarmctl.cli.context import Context
    from swarmctl.learning.approval import Approval
    from swarmctl.learning.topics import Prompt, Summary
    from swarmctl.verbs.topics import Overview

app = typer.Typer(cls=ListByDefault, rich_markup_mode=None, add_completion=False,
                  pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["-h", "--help"]},
                  help="Show what is asked about, how each topic is liked, and how it moves. Alone it lists.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
WIDTH, CELL = 160, 100


@app.command("list")
def list_topics(
    ctx: typer.Context,
    recluster: Annotated[bool, typer.Option("--recluster", help=(
        "Cluster all prompts anew; topics that survive keep their ids."))] = False,
    method: Annotated[str, typer.Option(metavar="kmeans|hdbscan", help="How to cluster.")] = "kmeans",
    k: Annotated[int | None, typer.Option("--k", min=1, help=(
        "So many topics, with k-means; else chosen by the silhouette."), show_default=False)] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help=(
        "This embedding model; with --in-process a folder or a name of the hub."))] = None,
    host: Annotated[str | None, typer.Option("--host", "-H", help="Embed on this host only.")] = None,
    in_process: Annotated[bool, typer.Option(
        "--in-process",
        help="Embed with sentence-transformers in this process, whatever is served.")] = False,
    as_json: Json = False,
) -> None:
    """List the topics, the largest first; new prompts are sorted in before.

    Approval is the share of good ratings with its 95 % interval. The trend compares the last seven days'
    share of questions with what was before.
    """
    context: Context = ctx.obj
    how = verb.How(recluster, method, k, model, host, in_process)
    found = verb.overview(context.paths, context.inventory, how, context.clock(), say)
    if as_json:
        return _json(_record(found))
    _table(found)
    _footer(found)
    return None


@app.command()
def show(
    ctx: typer.Context,
    topic: Annotated[int, typer.Argument(help="Its id.")],
    limit: Annotated[int, typer.Option("--limit", "-n", min=1,
                                       help="At most so many prompts of each kind.")] = 8,
    as_json: Json = False,
) -> None:
    """Show one topic: its words, typical prompts, the worst rated ones, and how each model is liked there."""
    context: Context = ctx.obj
    found = verb.page(context.paths, topic, context.clock())
    if as_json:
        models = [{"model": model, "digest": digest, **_approval(liked)}
                  for (model, digest), liked in found.models.items()]
        return _json({**_summary(found.summary), "models": models,
                      "typical": [_prompt(one) for one in found.typical[:limit]],
                      "worst": [_prompt(one) for one in found.worst[:limit]]})
    one = found.summary
    lines = [f"topic {one.topic.id}: {', '.join(one.topic.terms)}",
             f"{one.size:,} questions, {one.share:.0%} of all; approval {_share(one.approval)}; since "
             f"{one.topic.since[:10]}"]
    lines += [f"  {model} {digest[:8]}: {_share(liked)}" for (model, digest),
              liked in sorted(found.models.items())]
    for title, prompts in (("typical", found.typical), ("rated worst", found.worst)):
        lines += ["", f"{title}:"] if prompts else []
        lines += [f"  {prompt.exchange}  {' '.join(prompt.text.split())[:CELL]}"
                  for prompt in prompts[:limit]]
    sys.stdout.write("".join(f"{printable(line)}\n" for line in lines))
    return None


def _table(found: Overview) -> None:
    from rich.console import Console
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column, right in (("id", True), ("topic", False), ("asked", True), ("share", True), ("approval",
                                                                                             False),
                          ("trend", False), ("shift", True)):
        grid.add_column(column, no_wrap=True, overflow="ellipsis", justify="right" if right else "left")
    for one in found.summaries:
        shift = "" if one.shift is None else f"{one.shift:.2f}"
        grid.add_row(str(one.topic.id), printable(one.topic.name), f"{one.size:,}", f"{one.share:.0%}",
                     _share(one.approval), _trend(one), shift)
    if found.outliers:
        grid.add_row("", "(like no topic)", f"{found.outliers:,}", f"{found.outliers / found.prompts:.0%}",
                     "", "", "")
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH, markup=False,
            highlight=False).print(grid)


def _footer(found: Overview) -> None:
    state = found.state
    said = f"{found.new:,} new prompts were sorted in; " if found.new and not found.reclustered else ""
    if found.reclustered:
        said = f"clustered anew ({state.method}), as {found.reclustered}; "
    say(f"{said}drift since the last clustering {found.drift:.2f} of 1; vectors by {printable(state.model)}")
    say(policy())
    if found.due:
        say(f"{found.due}: `swarmctl topics --recluster`")


def _trend(one: Summary) -> str:
    if one.trend is None:
        return ""
    return f"{100 * one.trend:+.0f} points" + ("" if one.sure else " (chance)")


def _share(liked: Approval) -> str:
    if liked.share is None:
        return "not rated"
    return f"{liked.share:.0%} ({liked.low:.0%} to {liked.high:.0%}, {liked.votes:g} rated)"


def _record(found: Overview) -> dict[str, Any]:
    state = found.state
    return {"topics": [_summary(one) for one in found.summaries], "prompts": found.prompts,
            "outliers": found.outliers, "new": found.new, "drift": round(found.drift, 4), "due": found.due,
            "reclustered": bool(found.reclustered), "method": state.method, "model": state.model,
            "digest": state.digest, "clustered": state.clustered.seconds, "policy": policy(),
            "retired": [{"id": one, "name": name, "at": at} for one, name, at in state.retired]}


def _summary(one: Summary) -> dict[str, Any]:
    return {"id": one.topic.id, "name": one.topic.name, "terms": one.topic.terms, "since": one.topic.since,
            "size": one.size, "share": round(one.share, 4), **_approval(one.approval),
            "trend": None if one.trend is None else round(one.trend, 4), "trend_is_sure": one.sure,
            "shift": None if one.shift is None else round(one.shift, 4)}


def _approval(liked: Approval) -> dict[str, Any]:
    return {"approval": liked.share, "low": round(liked.low, 4), "high": round(liked.high, 4),
            "ratings": liked.votes}


def _prompt(one: Prompt) -> dict[str, Any]:
    return {"exchange": one.exchange, "text": one.text, "model": one.model, "score": one.score,
            "similarity": round(one.similarity, 4)}


def _json(found: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(found) + "\n")
