"""`swarmctl inventory check` and `swarmctl inventory schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from swarmctl.cli.context import Context

app = typer.Typer(rich_markup_mode=None, add_completion=False, no_args_is_help=True,
                  pretty_exceptions_enable=False,
                  help="Check the inventory, or print its JSON Schema.")


@app.command()
def check(
    ctx: typer.Context,
    file: Annotated[Path | None, typer.Argument(
        metavar="[FILE]", show_default=False,
        help="The inventory to check, instead of the one in use.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Read an inventory the way `up` does and say what it wishes.

    A mistake names file, line, field and what would be right; all of them are shown at once.
    """
    from swarmctl.verbs.inventory import check_inventory, summary

    context: Context = ctx.obj
    inventory = check_inventory(file.expanduser() if file else context.inventory)
    found = summary(inventory)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    _show(found)


@app.command()
def schema() -> None:
    """Print the JSON Schema (draft 2020-12) that editors check an inventory with."""
    from swarmctl.verbs.inventory import schema_text

    typer.echo(schema_text(), nl=False)


def _show(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for heading in ("host", "reached as", "roles", "models", "data_dir"):
        table.add_column(heading, overflow="fold")
    for host in found["hosts"]:
        models = ", ".join(f"{entry['model']} :{entry['port']}" for entry in host["models"]) or "none"
        table.add_row(host["name"], host["ssh"], ", ".join(host["roles"]), models, host["data_dir"])
    Console(highlight=False, markup=False).print(table)
    typer.echo(f"{found['source']} is a good inventory: {_count(len(found['hosts']), 'host')}, "
               f"{_count(len(found['models']), 'model')}.", err=True)
    for model, path in found["missing_files"].items():
        typer.echo(f"{model}: {path} is not on this machine, and `up` needs it here.", err=True)
    if found["unused_models"]:
        typer.echo(f"No host wants: {', '.join(found['unused_models'])}.", err=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
