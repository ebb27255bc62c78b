"""Run the demo, keep what it showed in docs/demo.txt, and its best part in the README. For `make record`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "docs" / "demo.txt"
README = ROOT / "README.md"
BEGIN, END = "<!-- demo: written by `make record` -->", "<!-- demo end -->"
#: The headings whose part of the record the README shows.
SHOWN = ("A routine question", "A harder one", "A long attachment", "Ratings steer")
WIDTH = 100
LIMIT = 900


def main() -> None:
    """Run, write both files."""
    environ = {**os.environ, "COLUMNS": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run([ROOT / "demo" / "run.sh"], env=environ, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, timeout=LIMIT)
    sys.stdout.write(done.stdout)
    if done.returncode != 0:
        raise SystemExit(done.returncode)
    record = clean(done.stdout)
    RECORD.write_text(record, encoding="utf-8")
    README.write_text(splice(README.read_text(encoding="utf-8"), excerpt(record)), encoding="utf-8")


def clean(shown: str) -> str:
    """The record as it is kept: no trailing blanks, no temporary folder's name, no machine's name."""
    text = re.sub(r"\S*/swarm-\w{6}", "/tmp/swarm", shown)  # noqa: S108  only a name in a text
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def excerpt(record: str) -> str:
    """The parts under the headings of SHOWN."""
    parts = re.split(r"(?m)^(?=━━ \d)", record)
    kept = [part.strip() for part in parts if any(heading in part.partition("\n")[0] for heading in SHOWN)]
    if len(kept) != len(SHOWN):
        raise SystemExit(f"the demo no longer has the headings {SHOWN}")
    return "\n\n".join(kept)


def splice(readme: str, shown: str) -> str:
    """Put the excerpt between the README's two marks."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit("README.md has lost its demo marks")
    return f"{before}{BEGIN}\n\n```text\n{shown}\n```\n\n{END}{after}"


if __name__ == "__main__":
    main()
