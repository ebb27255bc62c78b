"""Fill .venv with exactly what the named locks say, from any Python 3.11 or newer. Run by the Makefile.

    python3 requirements/install.py control runtime

Locks accumulate: asking for `dev` keeps `control` there. When nothing changed this returns at once; two runs
wait for each other, and a run that was cut starts over. Needs nothing but the standard library.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / "bin"
STAMP = VENV / "locks.json"
LOCKS = ("control", "runtime", "dev", "train", "bench")
MINIMUM = (3, 11)
PYTHON = getattr(sys, "_base_executable", sys.executable)


def main(names: list[str]) -> int:
    """Install the named locks and swarmctl itself."""
    unknown = [name for name in names if name not in LOCKS]
    if unknown or not names:
        sys.stderr.write(f"usage: install.py LOCK…   where LOCK is one of {', '.join(LOCKS)}\n")
        return 2
    if sys.version_info < MINIMUM:
        sys.stderr.write(f"swarmctl needs Python 3.11 or newer; this is {sys.version.split()[0]}\n")
        return 1
    with (ROOT / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return install(names)


def install(names: list[str]) -> int:
    """Bring .venv to the union of what it holds and what is asked for."""
    held = read_stamp()
    wanted = [name for name in LOCKS if name in names or name in held.get("locks", {})]
    if held == make_stamp(wanted) and (BIN / "python").exists():
        return 0
    try:
        if not usable_venv(held):
            make_venv()
        STAMP.unlink(missing_ok=True)
        fill_venv(wanted)
    except subprocess.CalledProcessError as failed:
        sys.stderr.write(f"\nThis failed (exit {failed.returncode}): {' '.join(map(str, failed.cmd))}\n")
        return 1
    STAMP.write_text(json.dumps(make_stamp(wanted), indent=1) + "\n", encoding="utf-8")
    return 0


def read_stamp() -> dict:
    """What .venv was last filled with; empty where that is not known."""
    try:
        return json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def make_stamp(names: list[str]) -> dict:
    """What .venv will hold: locks and metadata by hash, and this folder, which an editable install names."""
    return {
        "folder": str(ROOT),
        "python": held_python() or "{}.{}".format(*sys.version_info),
        "project": project_digest(),
        "bootstrap": digest(lock_file("bootstrap")),
        "locks": {name: digest(lock_file(name)) for name in names},
    }


def project_digest() -> str:
    """The hash of what an install takes from pyproject.toml; the tools' settings do not count."""
    import tomllib

    whole = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    metadata = whole["build-system"], whole["project"], whole["tool"]["setuptools"]
    return sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def held_python() -> str | None:
    """The Python of an existing .venv, as '3.11'."""
    for path in sorted((VENV / "lib").glob("python3.*")):
        return path.name.removeprefix("python")
    return None


def usable_venv(held: dict) -> bool:
    """Whether .venv is ours, whole and made in this very folder."""
    return held.get("folder") == str(ROOT) and (BIN / "python").exists() and (BIN / "uv").exists()


def make_venv() -> None:
    """Make .venv anew, with uv in it, installed by hash."""
    say(f"Making .venv with Python {sys.version.split()[0]}")
    shutil.rmtree(VENV, ignore_errors=True)
    if has_ensurepip() or install_ensurepip():
        run(PYTHON, "-m", "venv", VENV)
        pip = (BIN / "python", "-m", "pip")
    elif importable("pip"):
        run(PYTHON, "-m", "venv", "--without-pip", VENV)
        pip = (PYTHON, "-m", "pip", "--python", BIN / "python")
    else:
        sys.exit(cannot_make_venv())
    run(*pip, "install", "--quiet", "--require-hashes", "-r", lock_file("bootstrap"))


def cannot_make_venv() -> str:
    """What a person reads who has neither ensurepip nor pip, and may not install them."""
    version = "{}.{}".format(*sys.version_info)
    return ("This Python cannot make virtual environments (it lacks ensurepip). On Debian and Ubuntu:\n\n"
            f"    sudo apt-get install python{version}-venv\n\nand then the same command again.")


def has_ensurepip() -> bool:
    """Debian ships it apart, in python3.x-venv."""
    return importable("ensurepip")


def install_ensurepip() -> bool:
    """Install Debian's package for it where we may."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    package = "python{}.{}-venv".format(*sys.version_info)
    say(f"Installing {package}")
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "-qq", "update"], env=environ, check=False, stdin=subprocess.DEVNULL)
    done = subprocess.run(["apt-get", "-qq", "install", "-y", package], env=environ, check=False,
                          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    return done.returncode == 0


def importable(module: str) -> bool:
    """Whether this Python has the module."""
    tried = subprocess.run([PYTHON, "-c", f"import {module}"], check=False, stderr=subprocess.DEVNULL)
    return tried.returncode == 0


def fill_venv(names: list[str]) -> None:
    """Make .venv hold what the locks say and nothing else, then swarmctl itself, editable."""
    size = " (torch: some 5 GB on Linux)" if "train" in names else ""
    say(f"Installing the locks {', '.join(names)}{size}")
    uv = (BIN / "uv", "pip")
    python = ("--quiet", "--python", BIN / "python")
    run(*uv, "sync", *python, "--require-hashes", lock_file("bootstrap"), *map(lock_file, names))
    run(*uv, "install", *python, "--no-deps", "--no-build-isolation", "--editable", ROOT)


def lock_file(name: str) -> Path:
    """Where a lock lies."""
    return ROOT / "requirements" / f"{name}.txt"


def digest(path: Path) -> str:
    """A file's SHA-256; empty where the file is missing."""
    return sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def run(*argv: object) -> None:
    """Run a command, show what it says, raise where it fails."""
    subprocess.run([str(part) for part in argv], check=True, stdin=subprocess.DEVNULL, cwd=ROOT)


def say(line: str) -> None:
    """Tell the reader what the next wait is for."""
    sys.stderr.write(f"── {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
