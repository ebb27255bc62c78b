"""The command table, and a group that imports a command's module only when that command runs.

`swarmctl --help` and `ask` stay fast because of this: the table carries the one-line helps, so listing them
loads nothing (tests/test_import_budget.py holds the line).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from swarmctl import __version__
from swarmctl.cli import loading

if TYPE_CHECKING:
    from collections.abc import Mapping

#: command → (module:attribute, one-line help). The attribute is a function, or a typer.Typer for a group.
COMMANDS: Mapping[str, tuple[str, str]] = {
    "ask": ("swarmctl.cli.ask:ask", "Ask the swarm; the cheapest machine likely to answer well answers."),
    "chat": ("swarmctl.cli.chat:chat", "Hold a conversation with the swarm."),
    "rate": ("swarmctl.cli.rate:rate", "Rate the last answer, or another: up, down, 1 to 5, or corrected."),
    "compare": ("swarmctl.cli.compare:compare", "Ask two models blind and pick the better answer."),
    "embed": ("swarmctl.cli.embed:embed", "Turn texts into vectors, as JSON lines or Parquet."),
    "serve": ("swarmctl.cli.serve:app", "Serve the swarm over the APIs of OpenAI, Ollama and Anthropic."),
    "eval": ("swarmctl.cli.eval:evaluate", "Evaluate a served release against another, with evidence."),
    "route": ("swarmctl.cli.route:app", "What the router believes and why; how good that is; learn anew."),
    "topics": ("swarmctl.cli.topics:app", "Show what is asked about, and how each topic is liked."),
    "dataset": ("swarmctl.cli.dataset:app", "Make training sets out of ratings, list them, check them."),
    "improve": ("swarmctl.cli.improve:improve", "Train anew where ratings make it worth it."),
    "review": ("swarmctl.cli.review:app", "What was asked and liked, what changed, what waits for you."),
    "log": ("swarmctl.cli.log:app", "List, show, search, query and export what was asked and rated."),
    "train": ("swarmctl.cli.train:train", "Train a model on a host, by a recipe; detached and resumable."),
    "jobs": ("swarmctl.cli.jobs:app", "Runs of train on all hosts: list, show, follow, cancel, resume."),
    "init": ("swarmctl.cli.init:init", "Write an inventory from ~/.ssh/config or an Ansible inventory."),
    "up": ("swarmctl.cli.up:up", "Make every host what the inventory says; --dry-run shows the plan."),
    "deploy": ("swarmctl.cli.deploy:deploy", "Serve trained weights as a model's canary, once proven fit."),
    "canary": ("swarmctl.cli.deploy:canary", "What votes make of a model's canary; --act does what follows."),
    "promote": ("swarmctl.cli.deploy:promote", "Let a canary, or an older release, serve its model."),
    "down": ("swarmctl.cli.down:down", "Stop what swarmctl started, and nothing else."),
    "upgrade": ("swarmctl.cli.upgrade:upgrade", "Move runtimes to another version, one canary host first."),
    "rollback": ("swarmctl.cli.rollback:rollback", "Have what served before serve again."),
    "status": ("swarmctl.cli.status:status", "Show every host and model server, and whether it generates."),
    "metrics": ("swarmctl.cli.metrics:app", "What Prometheus may know of it; its dashboard, its alerts."),
    "doctor": ("swarmctl.cli.doctor:doctor", "Find what is wrong, and the command that mends it."),
    "cordon": ("swarmctl.cli.standing:cordon", "Take hosts out for new questions; their servers stay."),
    "drain": ("swarmctl.cli.standing:drain", "Cordon a host and wait until it is idle."),
    "uncordon": ("swarmctl.cli.standing:uncordon", "Let hosts have questions again."),
    "idle": ("swarmctl.cli.idle:idle", "Put hosts to sleep that nobody uses, as the inventory says."),
    "sleep": ("swarmctl.cli.idle:sleep", "Put one host to sleep now, unless somebody uses it."),
    "wake": ("swarmctl.cli.wake:wake", "Wake a sleeping host over the network."),
    "logs": ("swarmctl.cli.logs:logs", "Show or follow the log of a host's model servers."),
    "trust": ("swarmctl.cli.trust:trust", "Show a host's SSH key and accept it."),
    "models": ("swarmctl.cli.models:app", "Models on the hosts: list, fit, push, copy, pull, remove."),
    "inventory": ("swarmctl.cli.inventory:app", "Check the inventory, or print its JSON Schema."),
    "runtime": ("swarmctl.cli.runtime:app", "Build llama.cpp on this machine, or list the builds there are."),
    "lab": ("swarmctl.cli.lab:app", "A swarm of three real SSH hosts on this machine, to try it all."),
}


class LazyGroup(TyperGroup):
    """A group over COMMANDS. Help lists the table; a command's module is imported when that command is
    named."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401, ARG002  typer's own signature
        """All commands, in the table's order: the order of the loop."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401, ARG002
        """Import and build one command."""
        if cmd_name not in COMMANDS:
            return None
        where, line = COMMANDS[cmd_name]
        module, attribute = where.split(":")
        found = getattr(import_module(module), attribute)
        if not isinstance(found, typer.Typer):
            single = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
            single.command(name=cmd_name, help=found.__doc__)(found)
            return typer.main.get_command(single)
        command = typer.main.get_command(found)
        command.name, command.help = cmd_name, command.help or line
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401  typer's own signature
        """The command that is named; for one that is not there, those that are written much like it."""
        if args[0] not in COMMANDS and (near := _alike(args[0])):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {' or '.join(near)}?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401, ARG002
        """List the table without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def _alike(name: str) -> list[str]:
    from difflib import get_close_matches

    return get_close_matches(name, COMMANDS)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"swarmctl {__version__}")
        raise typer.Exit


app = typer.Typer(cls=LazyGroup, rich_markup_mode=None, add_completion=True, no_args_is_help=True,
                  pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})


@app.callback()
def root(
    ctx: typer.Context,
    inventory: Annotated[str | None, typer.Option(
        "--inventory", "-i", envvar="SWARMCTL_INVENTORY", metavar="FILE",
        help="The inventory to use instead of the one in the config folder.")] = None,
    version: Annotated[bool, typer.Option(  # noqa: ARG001  eager callback
        "--version", callback=_version, is_eager=True, help="Print the version and exit.")] = False,
) -> None:
    """One language-model service out of a handful of unequal machines.

    swarmctl reaches them over SSH, makes them what the inventory says, sends each question to the cheapest
    machine likely to answer it well, and remembers every answer and rating.
    """
    from swarmctl.cli.context import Context

    loading.end()
    ctx.obj = Context.make(inventory)
