"""A host's share of one CPU, through a control group, so that the lab's hosts are unequal for real.

Needs root and a cpu controller that may be used here (cgroup v1 or v2); where there is none, all hosts are
equally fast, and the lab says so nowhere but in docs/lab.md.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

PERIOD = 100_000  # microseconds
V1 = Path("/sys/fs/cgroup/cpu")
V2 = Path("/sys/fs/cgroup")


def make_share(name: str, share: float) -> Path | None:
    """Make the group and say where; None where no controller may be used."""
    quota = str(round(share * PERIOD))
    for root, setting, value in ((V1, "cpu.cfs_quota_us", quota), (V2, "cpu.max", f"{quota} {PERIOD}")):
        group = root / name
        try:
            if not (root / "cgroup.procs").exists():
                continue
            group.mkdir(exist_ok=True)
            (group / setting).write_text(value, encoding="ascii")
        except OSError:
            remove_share(name)
            continue
        return group
    return None


def remove_share(name: str) -> None:
    """Remove the group, once nothing runs in it."""
    for root in (V1, V2):
        with contextlib.suppress(OSError):
            (root / name).rmdir()


def within(group: Path) -> tuple[str, ...]:
    """The start of a command that runs in the group, with all that it starts."""
    return ("sh", "-c", 'echo $$ > "$1/cgroup.procs" && shift && exec "$@"', "sh", str(group))
