"""`swarmctl eval`."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmctl.cli.context import Context
    from swarmctl.evaluation.evaluate import Watch


def evaluate(
    ctx: typer.Context,
    new: Annotated[str, typer.Argument(metavar="MODEL[:RELEASE]", help="What is evaluated, as served.")],
    against: Annotated[str | None, typer.Option(
        "--against", metavar="MODEL[:RELEASE]", help="What it is compared with.",
        show_default="what serves the model now")] = None,
    dataset: Annotated[str, typer.Option(
        "--dataset", help="Whose held-out prompts are asked: a data set's name or folder, latest, or none.",
        )] = "latest",
    capability: Annotated[Path | None, typer.Option(
        "--capability", metavar="FILE", help="Questions that it must not have unlearned (JSON lines).",
        show_default=False)] = None,
    by: Annotated[str, typer.Option("--by", help="What decides: references, votes or judge.")] = "references",
    measure: Annotated[str, typer.Option(
        "--measure", help="How answers are compared with references: exact, f1, contains or number.")] = "f1",
    judge: Annotated[str | None, typer.Option("--judge", metavar="MODEL", help="A model that compares.",
                                              show_default=False)] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=5.0, help="How the answers are drawn.",
                                                      show_default="the server's own")] = None,
    samples: Annotated[int, typer.Option(min=1, max=100, help="Answers to each prompt.")] = 1,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 512,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many prompts of each kind.",
                                              show_default="all")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Evaluate a served release against another on prompts that training never saw.

    Both are asked the same; every measure is reported apart, and one of them decides together with the
    capability set: better, worse, or no clear difference. The report is written as JSON, Markdown and HTML.
    """
    from swarmctl.evaluation import report
    from swarmctl.evaluation.answering import Style
    from swarmctl.verbs.evaluate import Asked, run

    context: Context = ctx.obj
    asked = Asked(new, against, None if dataset == "none" else dataset, capability, by, measure, judge,
                  Style(temperature, max_tokens, samples), limit)
    at = datetime.fromtimestamp(context.clock(), UTC).isoformat(timespec="seconds")
    with watching() as watch:
        done = run(context.paths, asked, watch, at=at)
    if as_json:
        sys.stdout.write(json.dumps(done.report) + "\n")
    else:
        sys.stdout.write(report.markdown(done.report))
    sys.stderr.write(f"written: {done.folder / 'report.html'} (and .md, .json)\n")


@contextmanager
def watching() -> Iterator[Watch]:
    """Progress on stderr while the block runs."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from swarmctl.evaluation.evaluate import Watch

    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                  console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        tasks = {}

        def tick(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=of)
            bars.update(tasks[what], completed=done, total=of)

        def lost(host: str, why: str) -> None:
            sys.stderr.write(f"{host}: {why}; its questions go elsewhere\n")

        yield Watch(tick, lost)
