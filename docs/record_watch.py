"""Draw what `swarmctl status --watch` shows of a swarm into docs/watch.svg, for docs/monitoring.md.

    eval "$(swarmctl lab env)"; python docs/record_watch.py [SECONDS]

It looks at the swarm for so many seconds first. The picture is drawn by the code that draws the terminal.
"""

from __future__ import annotations

import re
import sys
import time
from contextlib import closing
from io import StringIO
from pathlib import Path

from rich.console import Console, Group

from swarmctl.cli.context import Context
from swarmctl.cli.watch_view import Room, lines
from swarmctl.verbs.watch import Watching

ROOM = Room(110, 26)
TARGET = Path(__file__).with_name("watch.svg")


def main(seconds: float) -> None:
    """Look, draw, write."""
    context = Context.make()
    with closing(Watching(context.paths, context.inventory, 2.0)) as watching:
        time.sleep(seconds)
        picture = watching.picture()
    console = Console(width=ROOM.width, height=ROOM.height, record=True, force_terminal=True, file=StringIO(),
                      highlight=False)
    console.print(Group(*lines(picture, ROOM)))
    print(console.export_text(clear=False))
    drawn = console.export_svg(title="swarmctl status --watch")
    local = re.sub(r"@font-face \{.*?\}\s*|<!--.*?-->\s*", "", drawn, flags=re.DOTALL)  # no font of the web
    TARGET.write_text(local, encoding="utf-8")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 10.0)
