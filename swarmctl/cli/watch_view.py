"""`status --watch` as lines of text: a picture, a width and a height → what the terminal shows. Pure.

At the top the alerts and the hosts with their GPUs and servers, then how answers are liked, and below, as far
as the height allows, the latest questions. From WIDE columns on, opinions stand beside the hosts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from rich.cells import cell_len, set_cell_size
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from swarmctl.facts.pulse import GpuPulse, Pulse
    from swarmctl.monitor.hosts import ServerSeen
    from swarmctl.monitor.recent import Recent
    from swarmctl.verbs.watch import HostView, Picture

WIDE, GAP = 132, 3
MOST_ALERTS, FEWEST_RECENT, MOST_OPINIONS = 4, 4, 6
BUSY, FULL = 0.7, 0.9
SPARKS = " ▁▂▃▄▅▆▇█"
#: The sparkline's buckets, in seconds.
BUCKET = 10.0
RATE_WINDOW = 60.0
STATES = {"ready": "green", "looking": "dim", "idle": "dim", "loading": "yellow", "degraded": "red",
          "unreachable": "red", "off": "dim", "asleep": "dim", "cordoned": "yellow", "draining": "yellow",
          "upgrading": "yellow"}
#: A host whose state is early in this list is shown first where there is no room for all.
URGENT = ("unreachable", "degraded", "loading", "upgrading", "draining", "cordoned")
TITLE, DIM, LABEL = "bold cyan", "dim", "bright_black"


@dataclass(frozen=True, slots=True)
class Room:
    """A terminal's size."""

    width: int
    height: int


def lines(picture: Picture, room: Room) -> list[Text]:
    """At most `height` lines, each at most `width` cells wide."""
    shown = [_head(picture, room.width), *_alerts(picture, room.width)]
    left = room.width if room.width < WIDE else room.width * 3 // 5
    space = room.height - len(shown) - FEWEST_RECENT - 4
    hosts = _hosts(picture, left, max(3, space))
    if room.width >= WIDE:
        shown += _beside(hosts, _opinions(picture, room.width - left - GAP, max(3, space)), left)
    else:
        shown += hosts
        spare = room.height - len(shown) - FEWEST_RECENT - 4
        if spare >= 3:
            shown += [Text(""), *_opinions(picture, room.width, min(spare - 1, MOST_OPINIONS))]
    shown += _recent(picture, Room(room.width, room.height - len(shown)))
    return [_fitted(line, room.width) for line in shown[:room.height]]


def _head(picture: Picture, width: int) -> Text:
    up = sum(view.seen.up for view in picture.hosts)
    late = [row for row in picture.recent if row.at >= picture.now - RATE_WINDOW]
    tokens = sum(row.tokens for row in late) / RATE_WINDOW
    total = len(picture.hosts)
    said = Text.assemble(
        ("swarmctl", TITLE), "  ", (f"{up}/{total}", "green" if up == total else "yellow"), (" hosts", DIM),
        "   ", f"{len(late)}", (" questions/min", DIM), "   ", f"{tokens:.0f}", (" tokens/s", DIM), "   ",
        (f"{picture.waiting}", "yellow" if picture.waiting else ""), (" waiting", DIM))
    clock = datetime.fromtimestamp(picture.now).astimezone().strftime("%H:%M:%S")
    room = width - cell_len(said.plain) - len(clock) - 4
    if room >= 6:
        said.append("  ")
        said.append(_spark(picture, min(room, 60)), "cyan")
    said.append(" " * max(1, width - cell_len(said.plain) - len(clock)))
    return said.append(clock, DIM)


def _spark(picture: Picture, width: int) -> str:
    """How many questions came in each of the last buckets, the newest on the right."""
    counts = [0] * width
    for row in picture.recent:
        place = int((picture.now - row.at) // BUCKET)
        if 0 <= place < width:
            counts[width - 1 - place] += 1
    most = max(*counts, 1)
    return "".join(SPARKS[-(-count * (len(SPARKS) - 1) // most)] for count in counts)


def _alerts(picture: Picture, width: int) -> list[Text]:
    shown = [Text.assemble((" ▲ ", "bold red"), (host, "bold"), "  ", (_plain(text), "red"))
             for host, text in picture.alerts[:MOST_ALERTS]]
    if len(picture.alerts) > MOST_ALERTS:
        shown.append(Text(f"   and {len(picture.alerts) - MOST_ALERTS} more: swarmctl doctor", "red"))
    return [*shown, Text("─" * width, LABEL)]


def _hosts(picture: Picture, width: int, height: int) -> list[Text]:
    """As many hosts as there is room for, the troubled ones first where not all fit."""
    blocks = [(view, list(_host(view, width))) for view in picture.hosts]
    if sum(len(block) for _, block in blocks) > height:
        rank = {state: place for place, state in enumerate(URGENT)}
        blocks.sort(key=lambda pair: rank.get(pair[0].state, len(URGENT)))
    shown: list[Text] = []
    for place, (_, block) in enumerate(blocks):
        if len(shown) + len(block) > height - (place < len(blocks) - 1) and shown:
            states = [view.state for view, _ in blocks[place:]]
            said = ", ".join(f"{states.count(one)} {one}" for one in dict.fromkeys(states))
            return [*shown, Text(f"  … and {len(blocks) - place} more hosts: {said}", DIM)]
        shown += block
    return shown


def _host(view: HostView, width: int) -> Iterator[Text]:
    grid = _Grid(width)
    name = Text.assemble(("● ", STATES.get(view.state, "")), (view.seen.entry.name, "bold"))
    state = Text(view.state, STATES.get(view.state, ""))
    if not view.seen.up or view.seen.pulse is None:
        yield Text.assemble(grid.cut(name, grid.first), " ", state, "  ", (_plain(view.detail), DIM))
        return
    pulse = view.seen.pulse
    memory = 1 - pulse.memory_available / pulse.memory if pulse.memory else None
    disk = 1 - pulse.disk_free / pulse.disk if pulse.disk else None
    yield grid.row(_pair(name, state, grid.first), grid.bar("cpu", _cpu(view, pulse)),
                   grid.bar("mem", memory), grid.bar("disk", disk))
    for gpu in pulse.gpus:
        yield _gpu(gpu, grid)
    for server in view.seen.servers:
        yield _server(server, grid)


def _cpu(view: HostView, pulse: Pulse) -> float | None:
    if view.seen.busy is not None:
        return view.seen.busy
    return min(1.0, pulse.load / pulse.threads) if pulse.load is not None else None


def _gpu(gpu: GpuPulse, grid: _Grid) -> Text:
    memory = gpu.memory_used / gpu.memory if gpu.memory and gpu.memory_used is not None else None
    heat = f"{gpu.temperature:.0f} °C" if gpu.temperature is not None else ""
    power = f"{gpu.power:.0f} W" if gpu.power is not None else ""
    return grid.row(Text(f"  {_plain(gpu.name)}", LABEL), grid.bar("gpu", gpu.busy), grid.bar("mem", memory),
                    Text("  ".join(word for word in (heat, power) if word)))


def _server(server: ServerSeen, grid: _Grid) -> Text:
    served = server.served
    name = f"{served.model}:{served.release}" if served.release else served.model
    if not server.up:
        return Text.assemble(grid.cut(Text(f"  {name}"), grid.first), "  ", (_plain(server.detail), "red"))
    slots = Text()
    if server.slots:
        busy = server.busy or 0
        blocks = min(server.slots, grid.bars)
        lit = -(-busy * blocks // server.slots)
        slots = Text.assemble(("■" * lit, "green"), ("□" * (blocks - lit), LABEL),
                              f" {busy}/{server.slots}", (" busy", DIM))
    speed = served.prefill_speed if served.embedding else served.decode_speed
    token = Text("no token", "red") if server.generates is False else Text("loading", "yellow")
    if server.loaded and server.generates is not False:
        token = Text.assemble((f"token {server.token_seconds * 1000:.0f} ms", DIM)) \
            if server.token_seconds is not None else Text("")
    elif not server.loaded:
        token = Text("on demand" if served.runtime == "ollama" else "loading", "yellow")
    what = " vectors" if served.embedding else " canary" if served.canary else ""
    return grid.row(Text.assemble(f"  {name}", (what, DIM)), slots,
                    Text.assemble(f"{speed:.0f}", (" tokens/s", DIM)) if speed else Text(""), token)


def _opinions(picture: Picture, width: int, height: int) -> list[Text]:
    """How answers are liked, by model and category."""
    if not picture.approval:
        return [Text("no ratings yet: swarmctl rate up", DIM)]
    rows = picture.approval[:max(1, height - 1)]
    models = max(len(model) for model, _, _ in rows)
    kinds = max(len(category) for _, category, _ in rows)
    bar = max(6, min(24, width - models - kinds - 32))
    shown = [Text("good answers, with their 95 % interval", LABEL)]
    for model, category, found in rows:
        share = found.share or 0.0
        colour = "red" if found.high < 0.5 else "green" if found.low >= 0.5 else "yellow"
        shown.append(Text.assemble(
            model.ljust(models), " ", (category.ljust(kinds), DIM), " ", *_bar(share, bar, colour),
            f" {share:4.0%}", (f"  {found.low:.0%} to {found.high:.0%}, {_votes(found.votes)}", DIM)))
    return shown


def _votes(count: float) -> str:
    return "1 vote" if count == 1 else f"{count:g} votes"


def _recent(picture: Picture, room: Room) -> list[Text]:
    """The latest questions, the newest first."""
    shown = [Text("─" * room.width, LABEL)]
    if not picture.recent:
        return [*shown, Text("no questions yet: swarmctl ask …", DIM)]
    where = min(30, max(16, room.width // 4))
    question = room.width - where - 32
    shown.append(Text("time     " + "question".ljust(question + 2) + "answered by".ljust(where - 1)
                      + "   first   whole tok/s", LABEL))
    for row in picture.recent[:max(0, room.height - 2)]:
        shown.append(_asked(picture, row, question, where))
    return shown


def _asked(picture: Picture, row: Recent, question: int, where: int) -> Text:
    clock = datetime.fromtimestamp(row.at).astimezone().strftime("%H:%M:%S")
    failed = row.finish in ("error", "cancelled")
    score = picture.scores.get(row.id)
    mark = ("▲", "green") if score is not None and score > 0 else \
        ("▼", "red") if score is not None and score < 0 else ("·", DIM) if score is not None else (" ", "")
    by = f"{row.model} {row.host}" + (" ↑" if row.escalated else f" ↻{row.tries}" if row.tries else "")
    return Text.assemble(
        (clock, DIM), " ", (set_cell_size(_plain(row.question), question - 1), "red" if failed else ""), " ",
        mark, " ", (set_cell_size(by, where - 1), DIM),
        *((f"{row.finish:>22}", "red"),) if failed else (
            f"{_span(row.first):>8}", f"{_span(row.total):>8}", (f"{row.speed or 0:6.0f}", DIM)))


class _Grid:
    """Columns that line up from host to host: a name, then three of equal width."""

    def __init__(self, width: int) -> None:
        self.first = max(22, min(36, width // 4))
        self.rest = (width - self.first - 3) // 3
        self.bars = max(4, self.rest - 12)

    def row(self, first: Text, *cells: Text) -> Text:
        made = self.cut(first, self.first)
        for cell in cells:
            made.append(" ")
            made.append_text(self.cut(cell, self.rest))
        return made

    def bar(self, label: str, share: float | None) -> Text:
        if share is None:
            return Text(f"{label:<4} -", LABEL)
        colour = "red" if share >= FULL else "yellow" if share >= BUSY else "green"
        return Text.assemble((f"{label:<4} ", LABEL), *_bar(share, self.bars, colour), f" {share:4.0%}")

    @staticmethod
    def cut(text: Text, width: int) -> Text:
        made = text.copy()
        made.truncate(width, overflow="ellipsis", pad=True)
        return made


def _pair(left: Text, right: Text, width: int) -> Text:
    """One text at the left of a column, one at its right."""
    room = width - cell_len(right.plain) - 1
    return Text.assemble(_Grid.cut(left, room), right, " ")


def _bar(share: float, width: int, colour: str) -> tuple[tuple[str, str], tuple[str, str]]:
    lit = round(min(1.0, max(0.0, share)) * width)
    return ("━" * lit, colour), ("━" * (width - lit), LABEL)


def _beside(left: Sequence[Text], right: Sequence[Text], width: int) -> list[Text]:
    made = []
    for place in range(max(len(left), len(right))):
        line = _Grid.cut(left[place] if place < len(left) else Text(""), width)
        line.append(" " * GAP)
        made.append(line.append_text(right[place]) if place < len(right) else line)
    return made


def _fitted(line: Text, width: int) -> Text:
    made = line.copy()
    made.truncate(width, overflow="ellipsis")
    return made


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _plain(text: str) -> str:
    """What a terminal shows as it stands: no escapes, no line breaks."""
    return " ".join("".join(each if each.isprintable() else " " for each in text[:2000]).split())
