"""How every bench here times a command and prints what it found: medians, in a Markdown table."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Spent:
    """One run of a command. Seconds: on the wall, and of CPU (user and system, children included)."""

    wall: float
    cpu: float
    status: int
    stdout: str
    stderr: str


def run(argv, *, environ=None, timeout=300.0, check=True):
    """Run a command to its end and say what it took."""
    environ = {**(environ or os.environ)}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)  # it would have every start compile every module anew
    before = _children_cpu()
    start = time.perf_counter()
    done = subprocess.run([str(part) for part in argv], env=environ, timeout=timeout, check=False, text=True,
                          stdin=subprocess.DEVNULL, capture_output=True)
    wall = time.perf_counter() - start
    if check and done.returncode != 0:
        said = f"{done.stdout}{done.stderr}"
        raise SystemExit(f"{' '.join(map(str, argv))}\nended with {done.returncode}:\n{said}")
    return Spent(wall, _children_cpu() - before, done.returncode, done.stdout, done.stderr)


def median(values):
    """The middle one."""
    return statistics.median(values)


def milliseconds(seconds):
    """Seconds as a cell."""
    return f"{seconds * 1000:,.0f} ms"


def machine():
    """The line over a table: what it was measured on, and when."""
    load = os.getloadavg()[0]
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return (f"{_cpu_model()}, {os.cpu_count()} cores, {system}, Python {platform.python_version()}, "
            f"load {load:.1f}, {datetime.now(UTC):%Y-%m-%d}.")


def show(title, command, header, rows, note=""):
    """Print one table."""
    print(f"### {title}\n\n`{command}` on {machine()}\n")
    print("| " + " | ".join(header) + " |")
    print("|" + "|".join("---" if not index else "---:" for index in range(len(header))) + "|")
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(f"\n{note}\n" if note else "")


def _children_cpu():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cpu_model():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
