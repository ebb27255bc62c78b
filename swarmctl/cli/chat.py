"""`swarmctl chat`: ask, as a conversation."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import typer

from swarmctl.cli.ask import continued, find_swarm, say
from swarmctl.cli.streaming import TerminalSink, show_footer, show_route, show_wait
from swarmctl.dispatch.question import Asked
from swarmctl.errors import SwarmError, UsageError
from swarmctl.exchange import Message
from swarmctl.ledger.terminal import terminal_id
from swarmctl.verbs.ask import ask as ask_verb

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.cli.context import Context
    from swarmctl.dispatch.swarm import Swarm

HELP = """\
  /rate up|down|1-5 [comment]   rate the last answer     /new           forget the conversation
  /model NAME   /host NAME      ask these only           /system TEXT   set the system prompt
  /explain                      show prices, or stop     /help  /quit   (Ctrl-D quits too)
  A line that ends in \\ goes on in the next; a line of \"\"\" opens a text of many lines and closes it.
"""


@dataclass(slots=True)
class Talk:
    """A conversation as it stands."""

    asked: Asked
    explain: bool = False
    turns: list[Message] = field(default_factory=list)


def chat(
    ctx: typer.Context,
    system: Annotated[str | None, typer.Option("--system", "-s", help="The system prompt.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Ask this model only.")] = None,
    host: Annotated[str | None, typer.Option("--host", "-H", help="Ask on this host only.")] = None,
    go_on: Annotated[bool, typer.Option(
        "--continue", "-c", help="Continue this terminal's last conversation.")] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, max=5.0,
                                                      help="0 is always the likeliest.")] = None,
    explain: Annotated[bool, typer.Option("--explain",
                                          help="Show the table of prices before each answer.")] = False,
) -> None:
    """Hold a conversation with the swarm.

    Each turn is routed, answered and recorded as `ask` does it. /help lists what can be typed besides
    questions.
    """
    context: Context = ctx.obj
    swarm = find_swarm(context)
    talk = Talk(Asked("", system=system, model=model, host=host, max_tokens=max_tokens,
                      temperature=temperature,
                      via="chat"), explain)
    if go_on:
        _pick_up(context, talk)
    read = _reader(context)
    while (line := read()) is not None:
        if line.startswith("/"):
            if not _command(context, talk, line):
                return
        elif line.strip():
            try:
                # The swarm is looked at anew each turn, so that a long talk follows `up` and what was
                # learned.
                swarm = find_swarm(context)
                _turn(context, swarm, talk, line)
            except SwarmError as exc:
                from swarmctl.cli.main import show_error

                show_error(exc)
            except KeyboardInterrupt:
                sys.stdout.write("\n")
                say("stopped; the part that came is recorded")


def _turn(context: Context, swarm: Swarm, talk: Talk, line: str) -> None:
    asked = replace(talk.asked, prompt=line, history=tuple(talk.turns))
    sink = TerminalSink(sys.stdout, sys.stderr)
    try:
        answered = ask_verb(swarm, asked, sink, terminal=terminal_id(context.environ), clock=context.clock,
                            routed=show_route if talk.explain else None, waiting=show_wait,
                            watch=sink.watch)
    finally:
        sink.end()
    show_footer(answered.exchange)
    talk.turns = [*answered.exchange.messages, answered.exchange.answer_message()]
    row = answered.exchange
    talk.asked = replace(talk.asked, previous=row.id, conversation=row.conversation,
                         holder=(row.host, row.model))


def _command(context: Context, talk: Talk, line: str) -> bool:
    """Do what a /command says; False ends the conversation."""
    name, _, rest = line[1:].partition(" ")
    rest = rest.strip()
    if name in ("quit", "exit", "q"):
        return False
    actions: dict[str, Callable[[], None]] = {
        "new": lambda: _set(talk, previous=None, conversation=None, holder=None),
        "model": lambda: _set(talk, model=rest or None),
        "host": lambda: _set(talk, host=rest or None),
        "system": lambda: _set(talk, system=rest or None),
        "rate": lambda: _rate(context, rest),
        "explain": lambda: setattr(talk, "explain", not talk.explain),
        "help": _help,
    }
    if name == "new":
        talk.turns = []
    try:
        actions.get(name, lambda: say(f"/{name} means nothing here; /help lists what does"))()
    except SwarmError as exc:
        from swarmctl.cli.main import show_error

        show_error(exc)
    return True


def _set(talk: Talk, **changes: str | None) -> None:
    talk.asked = replace(talk.asked, **changes)  # type: ignore[arg-type]


def _help() -> None:
    sys.stderr.write(HELP)


def _rate(context: Context, rest: str) -> None:
    from swarmctl.cli.rate import rate_line

    value, _, comment = rest.partition(" ")
    if not value:
        raise UsageError("/rate needs up, down or 1 to 5")
    say(rate_line(context, value, comment.strip() or None))


def _pick_up(context: Context, talk: Talk) -> None:
    talk.asked = continued(context, talk.asked)
    talk.turns = list(talk.asked.history)


def _reader(context: Context) -> Callable[[], str | None]:
    """A function that reads one input, of one line or many; None at the end. Keeps a history where a person
    types."""
    if sys.stdin.isatty():
        _remember_lines(context)
        sys.stderr.write("swarmctl chat: /help for what can be typed, Ctrl-D to end\n")

    def line(prompt: str) -> str | None:
        try:
            return input(prompt if sys.stdin.isatty() else "")
        except EOFError:
            return None
        except KeyboardInterrupt:
            sys.stderr.write("\n")
            return ""

    def read() -> str | None:
        first = line("> ")
        if first is None:
            return None
        if first.strip() == '"""':
            return _block(line)
        while first.endswith("\\"):
            first = first[:-1] + "\n" + (line(". ") or "")
        return first

    return read


def _block(line: Callable[[str], str | None]) -> str:
    lines: list[str] = []
    while (following := line(". ")) is not None and following.strip() != '"""':
        lines.append(following)
    return "\n".join(lines)


def _remember_lines(context: Context) -> None:
    import atexit
    import readline

    path = context.paths.state / "chat_history"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)  # it holds questions
    readline.read_history_file(path)
    readline.set_history_length(1000)
    atexit.register(readline.write_history_file, path)
