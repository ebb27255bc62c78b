"""What is asked of a run's folder on its host: start, state, follow, cancel. Each verb is one short process.

`sh RUN/job VERB` runs this with the run's own Python. All it knows is the folder, so it gives the same
answer to any machine that asks, after any crash. A job lives exactly as long as its lock is held.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from swarmctl.jobs.folder import Folder, read_json

RUN_MARK = "SWARMCTL_RUN"
BEGIN_LIMIT = 120.0  # an overloaded host takes long to start any Python
END_LIMIT = 15.0
BEAT = 3.0
POLL = 0.2
SOON = 0.02  # where the end is near
LAST = b'"stage": "job", "event"'  # in a job's last record


def main(verb: str, *arguments: str) -> int:
    """Run a verb in the folder that is the working directory; it prints one JSON object a line."""
    folder = Folder(Path.cwd())
    if verb == "follow":
        follow(folder, int(arguments[0]))
    elif verb == "start":
        tell(start(folder))
    elif verb == "cancel":
        tell(cancel(folder))
    elif verb == "state":
        tell(state(folder))
    elif verb == "tensorboard":
        tensorboard(folder)
    else:
        sys.stderr.write(f"no verb {verb}\n")
        return 2
    return 0


def state(folder: Folder) -> dict[str, Any]:
    """How the run is: running, done, failed, cancelled, or stopped (killed, or the host went down: resume
    it)."""
    spec = read_json(folder.spec) or {}
    pid, result = folder.holder(), folder.result()
    stages = spec.get("stages", [])
    if pid is not None:
        word = "running"
    elif result is None:
        word = "stopped" if (folder.path / "log").exists() else "new"
    else:
        whole = all(name in result.get("stages", {}) for name in stages)
        word = str(result["status"]) if result["status"] != "done" or whole else "stopped"
    return {"run": spec.get("run", folder.path.name), "state": word, "pid": pid, "stages": stages,
            "last": last_record(folder), "result": result, "size": _size(folder.progress),
            "log": _tail(folder.path / "log") if word in ("stopped", "failed") else ""}


def start(folder: Folder) -> dict[str, Any]:
    """Start the job in a session of its own, unless it runs or is done. What is left of a killed one ends
    first."""
    now = state(folder)
    if now["state"] in ("running", "done"):
        return now
    end_all(folder)
    environ = {**os.environ, RUN_MARK: str(folder.path), "PYTHONUNBUFFERED": "1",
               "HF_HUB_DISABLE_TELEMETRY": "1"}
    with (folder.path / "log").open("ab") as log:
        started = subprocess.Popen((sys.executable, "-m", "swarmctl.jobs", "spec.json"), stdout=log,
                                   stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, env=environ,
                                   cwd=folder.path)
    deadline = time.monotonic() + BEGIN_LIMIT
    while folder.holder() is None and started.poll() is None and time.monotonic() < deadline:
        time.sleep(SOON)
    return state(folder)


def cancel(folder: Folder) -> dict[str, Any]:
    """End the job and all its processes; its checkpoints stay."""
    pid = folder.holder()
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + END_LIMIT
        while folder.holder() is not None and time.monotonic() < deadline:
            time.sleep(POLL)
    end_all(folder)
    if pid is not None and folder.result() is None:  # it was starting, or deaf, and could not say so itself
        folder.end("cancelled", folder.gave(), "cancelled")
    return state(folder)


def follow(folder: Folder, offset: int) -> None:
    """Print what progress.jsonl has from byte `offset` on, as it grows, then the state, once the job has
    ended.

    A blank line now and then shows that this end lives, and finds out whether the other does.
    """
    spoke, pause = time.monotonic(), POLL
    while True:
        alive = folder.holder() is not None  # asked before reading: what it wrote last is read as well
        text = _from(folder.progress, offset)
        whole = text[:text.rfind(b"\n") + 1]
        offset += len(whole)
        if whole or time.monotonic() - spoke > BEAT:
            sys.stdout.buffer.write(whole or b"\n")
            sys.stdout.buffer.flush()
            spoke = time.monotonic()
        if not alive and not whole:
            break
        if whole:
            pause = SOON if LAST in whole.splitlines()[-1] else POLL
        time.sleep(pause)
    tell({"event": "state", **state(folder)})


def tensorboard(folder: Folder) -> None:
    """Become TensorBoard on a free port of loopback; its first lines say which."""
    os.dup2(sys.stdout.fileno(), sys.stderr.fileno())
    os.execv(sys.executable, (sys.executable, "-m", "tensorboard.main", "--logdir",  # noqa: S606
                              str(folder.path / "tensorboard"), "--host", "127.0.0.1", "--port", "0"))


def end_all(folder: Folder) -> None:
    """Kill every process that carries this run's mark: workers outlive a job that was killed."""
    for pid in family(folder):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def family(folder: Folder) -> list[int]:
    """This user's processes that were started for this run, by their environment. Linux only; elsewhere
    none."""
    mark = f"{RUN_MARK}={folder.path}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0") and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def last_record(folder: Folder) -> dict[str, Any] | None:
    """The newest record of progress.jsonl that tells a step, with the first one of its stage for
    reckoning."""
    steps = [found for line in _tail(folder.progress, 200_000).splitlines() if (found := _parsed(line))]
    return steps[-1] if steps else None


def tell(what: dict[str, Any]) -> None:
    """One line of JSON."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _from(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(1 << 20)
    except FileNotFoundError:
        return b""


def _tail(path: Path, size: int = 3000) -> str:
    return _from(path, max(0, _size(path) - size)).decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
