"""`swarmctl models history`: what was live where, when, on what evidence, by whom."""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from swarmctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmctl.cli.context import Context
    from swarmctl.fleet.releases import Release


OWN = "the inventory's own weights"


def history(
    ctx: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Only this model.",
                                                show_default="all")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what was deployed, promoted, rolled back and refused: when, on what evidence, by whom.

    Only what was done through this machine's data folder is known here. With --json each record is whole.
    """
    from swarmctl.verbs.releases import history as verb

    context: Context = ctx.obj
    found = verb(context.paths, model)
    if not found and model is not None:
        from swarmctl.fleet.inventory_file import read_inventory

        models = read_inventory(context.inventory).models
        if model not in models:
            raise UsageError(f"the inventory has no model {model}", hint=f"it has {', '.join(models)}")
    if as_json:
        typer.echo(json.dumps([one.to_record() for one in found], indent=1))
    elif found:
        typer.echo(history_text(found))
    else:
        sys.stderr.write("swarmctl: nothing was deployed yet; `swarmctl deploy` does it\n")


def history_text(records: Sequence[Release]) -> str:
    """One line a record, with the reason below it."""
    model, release = (max(len(getattr(one, name)) for one in records) for name in ("model", "release"))
    lines = []
    for one in records:
        at = datetime.fromisoformat(one.at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        what = f"{one.action} {one.share:.0%}" if one.action == "share" else one.action
        lines.append(f"{at}  {one.model:{model}}  {one.release:{release}}  {what:12}  {one.by}".rstrip())
        lines += [f"    {line}" for line in (*_evidence(one), one.reason) if line]
    return "\n".join(lines)


def _evidence(one: Release) -> Sequence[str]:
    """What was measured, in a few words."""
    measured = one.evidence.get("perplexity") or {}
    said = []
    if one.run:
        said.append(f"run {one.run}" + (f" on {one.dataset}" if one.dataset else ""))
    if one.hosts:
        said.append(f"only on {', '.join(one.hosts)}")
    like = (one.evidence.get("likeness") or {}).get("kl_mean")
    if one.adapter:
        said.append(f"an adapter over {one.over or OWN}")
    if one.adapter and isinstance(like, int | float):
        said.append(f"{like:.2g} nats from what was trained")
    if isinstance(measured.get("kl_mean"), int | float):
        said.append(f"{one.evidence['quantise'].get('kind')}: {measured['kl_mean']:.4f} nats from 16 bits")
    return ("; ".join(said),)
