"""Write docs/cli.md from the command line itself: every command's help at a fixed width. For `make docs`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from swarmctl.cli.app import COMMANDS

TARGET = Path(__file__).with_name("cli.md")
WIDTH = 100
INTRODUCTION = """\
# The command line

Written by `make docs` from the program itself; a test compares them. Answers go to stdout, everything else to
stderr. Exit codes: 0 done, 1 failed, 2 usage, 3 some hosts failed.
"""


def main() -> None:
    """Write the page."""
    TARGET.write_text(render(), encoding="utf-8")


def render() -> str:
    """The whole page."""
    sections = [section(())]
    for name in COMMANDS:
        sections += [section((name,)), *(section((name, inner)) for inner in subcommands(name))]
    return "\n".join([INTRODUCTION, *sections])


def section(words: tuple[str, ...]) -> str:
    """One command: its name as a heading, its help as it is printed."""
    heading = "#" * max(2, len(words) + 1)
    return f"{heading} {' '.join(('swarmctl', *words))}\n\n```text\n{help_text(words)}```\n"


def help_text(words: tuple[str, ...]) -> str:
    """What `swarmctl WORDS --help` prints into a terminal of WIDTH columns."""
    environ = {"PATH": os.environ["PATH"], "HOME": "/home/you", "COLUMNS": str(WIDTH),
               "TERMINAL_WIDTH": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb", "LANG": "C.UTF-8"}
    done = subprocess.run([sys.executable, "-m", "swarmctl", *words, "--help"],
                          env=environ, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise SystemExit(f"swarmctl {' '.join(words)} --help failed:\n{done.stderr}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


def subcommands(name: str) -> list[str]:
    """The commands of a group, in its own order; empty for a plain command."""
    from swarmctl.cli.app import LazyGroup

    command = LazyGroup(name="swarmctl").get_command(None, name)
    return list(command.list_commands(None)) if hasattr(command, "list_commands") else []


if __name__ == "__main__":
    main()
