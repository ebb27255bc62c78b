"""How an answer appears in a terminal: the text on stdout as it comes, everything else on stderr."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, TextIO

from swarmctl.routing.latency import forecast

if TYPE_CHECKING:
    from swarmctl.exchange import Attempt, Chunk, Exchange, ToolCall
    from swarmctl.routing.category import Categorised
    from swarmctl.routing.cost import Price, Route


class TerminalSink:
    """Writes pieces through at once. A restart after the first token is marked where the answer stands, so
    that no reader, person or file, takes the torn part for the answer."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self.out = out
        self.err = err
        self.column_zero = True
        self.thinking = False

    def watch(self, chunk: Chunk) -> None:
        """Show a person who waits that the model reasons, and what. It is no part of the answer."""
        if chunk.thought and self.err.isatty():
            self.err.write(f"\033[2m{printable(chunk.thought)}\033[0m")
            self.err.flush()
            self.thinking = True

    def text(self, piece: str) -> None:
        """Show a piece."""
        if self.thinking:
            self.err.write("\n\n")
            self.thinking = False
        clean = piece if not self.out.isatty() else printable(piece)
        self.out.write(clean)
        self.out.flush()
        self.column_zero = piece.endswith("\n")

    def call(self, call: ToolCall) -> None:
        """Show a call that the model asks for, on a line of its own."""
        self.end()
        self.out.write(f"call {printable(f'{call.id}: {call.name} {_one_line(call.arguments)}')}\n")
        self.out.flush()

    def failed(self, attempt: Attempt, following: Price | None) -> None:
        """Say that a candidate failed, and who is next."""
        onward = f"; {following.candidate.host} is asked instead" if following else ""
        if attempt.tokens:
            where = f"goes to {following.candidate.host} and starts again" if following else "ends here"
            self.end()
            mark = f"{attempt.host} failed in the middle of this answer; the question {where}"
            self.out.write(f"\n--- {mark} ---\n\n")
            self.out.flush()
        self.err.write(f"swarmctl: {attempt.host}: {attempt.error}{onward}\n")
        self.err.flush()

    def end(self) -> None:
        """Finish the line."""
        if not self.column_zero:
            self.out.write("\n")
            self.out.flush()
            self.column_zero = True


class SilentSink(TerminalSink):
    """For --json: nothing of the answer until it is whole; failures still go to stderr."""

    def watch(self, chunk: Chunk) -> None:
        """Keep quiet."""

    def text(self, piece: str) -> None:
        """Keep quiet."""

    def call(self, call: ToolCall) -> None:
        """Keep quiet."""

    def failed(self, attempt: Attempt, following: Price | None) -> None:
        """Say it on stderr only."""
        onward = f"; {following.candidate.host} is asked instead" if following else ""
        self.err.write(f"swarmctl: {attempt.host}: {attempt.error}{onward}\n")


def _one_line(arguments: str) -> str:
    """JSON text without its line breaks; what is no JSON stands as it came."""
    try:
        return json.dumps(json.loads(arguments), ensure_ascii=False)
    except (ValueError, RecursionError):
        return arguments


def printable(text: str) -> str:
    """Make control characters visible: a model must not drive a person's terminal."""
    return "".join(char if char in "\n\t" or char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def show_footer(exchange: Exchange, err: TextIO = sys.stderr) -> None:
    """Say who answered and how to rate it, where a person is watching."""
    if not err.isatty():
        return
    seconds = exchange.timings.total_seconds or 0.0
    tokens = exchange.timings.completion_tokens
    size = f", {tokens} tokens" if tokens else ""
    cut = "; cut at its limit" if exchange.finish == "length" else ""
    onward = "ask --tool-result ID=FILE" if exchange.tool_calls else "rate up|down"
    line = f"{exchange.model} on {exchange.host}{size}, {seconds:.1f} s{cut} · swarmctl {onward}"
    err.write(f"\033[2m— {line}\033[0m\n")


def show_wait(ahead: int, seconds: float) -> None:
    """Say that every slot is taken, in one line."""
    line = f"{ahead} question{'s' if ahead != 1 else ''} ahead" if ahead else "next in line"
    sys.stderr.write(f"swarmctl: every slot is taken; waiting, {line}, about {max(1.0, seconds):.0f} s\n")
    sys.stderr.flush()


def show_route(route: Route, sort: Categorised, err: TextIO = sys.stderr) -> None:
    """Show the whole table of prices, the chosen first, and why the others are out. Plain text: no rich to
    load."""
    err.write(f"{sort.category}: {sort.reason}\n")
    err.write(table(route))
    for out in route.excluded:
        err.write(f"  out: {out.candidate.model} on {out.candidate.host}: {out.reason}\n")
    first, token = route.chosen.candidate, forecast(route.chosen).first
    err.write(f"→ {first.model} on {first.host}: {route.reason}\n")
    err.write(f"  its first token: {token.mean:.2f} s, 19 times in 20 within {token.p95:.2f} s\n\n")
    err.flush()


def show_cascade(exchange: Exchange, err: TextIO = sys.stderr) -> None:
    """Say whether a smaller model was asked first, how sure it was, and what followed from it."""
    said = exchange.route.get("cascade") or {}
    if said.get("decision") == "direct":
        err.write(f"no cascade: {said['why']}\n")
    elif said:
        ends = {"commit": "shown", "escalate": f"{exchange.model} was asked instead"}
        err.write(f"cascade: {said['model']} on {said['host']}, after {said['tokens']} tokens and "
                  f"{said['seconds'] or 0.0:.2f} s: {said['confidence']:.0%} likely good (shown from "
                  f"{said['high']:.0%}, given up from {said['low']:.0%}, {said['before']:.0%} before): "
                  f"{ends.get(said['decision'], said['decision'])}\n")
    err.flush()


def table(route: Route) -> str:
    """The prices, in seconds of a person's time but where a unit stands."""
    head = ("host", "model", "queue", "connect", "load", "prefill", "decode", "energy", "risk", "price", "Wh",
            "good", "ratings")
    rows = [head, *(_row(price) for price in route.prices)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ("  ".join(cell.ljust(width) if i < 2 else cell.rjust(width)
                       for i, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in rows)
    return "".join(f"  {line.rstrip()}\n" for line in lines)


def _row(price: Price) -> tuple[str, ...]:
    seconds = (price.queue, price.connect, price.load, price.prefill, price.decode, price.energy, price.risk,
               price.total)
    return (price.candidate.host, price.candidate.model, *(f"{value:.2f}" for value in seconds),
            f"{price.watt_hours:.4f}", f"{price.good:.0%}", f"{price.ratings:g}")
