"""`swarmctl status --watch`: the terminal's side of it.

It draws on the alternate screen, so that what was there comes back, and only when something may have changed:
a look's worth of time went by, or the terminal has another size.
"""

from __future__ import annotations

import shutil
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING

from swarmctl.errors import UsageError

if TYPE_CHECKING:
    from swarmctl.cli.context import Context

#: How soon another size of the terminal is seen, in seconds.
STEP = 0.2


def watch(context: Context, interval: float) -> None:
    """Draw until Ctrl-C. Raises UsageError where there is no terminal, SwarmError where nothing is up."""
    if not sys.stdout.isatty():
        raise UsageError("--watch needs a terminal to draw on",
                         hint="`swarmctl status --json` is for programs, `swarmctl metrics` for Prometheus")
    from rich.console import Console, Group
    from rich.live import Live

    from swarmctl.cli.watch_view import Room, lines
    from swarmctl.verbs.watch import Watching

    console = Console(highlight=False)
    with closing(Watching(context.paths, context.inventory, interval, context.clock)) as watching:
        picture = watching.picture()
        with Live(console=console, screen=True, auto_refresh=False) as live:
            due, size = 0.0, (0, 0)
            while True:
                now = time.monotonic()
                if now >= due:
                    picture, due = watching.picture(), now + (interval if size[0] else STEP)
                elif shutil.get_terminal_size() == size:
                    time.sleep(min(STEP, due - now))
                    continue
                size = shutil.get_terminal_size()
                live.update(Group(*lines(picture, Room(*size))), refresh=True)
