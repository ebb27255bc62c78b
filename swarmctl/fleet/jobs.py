"""Jobs on a host: their code and folder put there, started, watched, cancelled and fetched from, over SSH.

Whatever a job is lies in its folder on the host, `data_dir/runs/<run>/`, and `sh RUN/job VERB` answers for
it (see jobs.control). So any machine may watch it, and a broken connection costs nothing but a new one.
"""

from __future__ import annotations

import io
import json
import shlex
import tarfile
import time
from dataclasses import dataclass
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmctl.errors import (
    CommandTimeout,
    ConnectionLost,
    DiskFull,
    HostUnreachable,
    JobCut,
    JobFailed,
    SwarmError,
)
from swarmctl.fleet.install import transfer_time
from swarmctl.fleet.transfer import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from swarmctl.fleet.shell import Remote
    from swarmctl.jobs.spec import Spec

ASK_LIMIT = 60.0
START_LIMIT = 180.0
WATCH_LIMIT = 6 * 3600.0  # of one connection; watching goes on with the next
PAUSES = (0.5, 1, 2, 5, 10, 20, 30)
UNPACK = 'mkdir -p -- "$1" && tar -xf - -C "$1"'
MAKE = 'mkdir -p -- "$1" && chmod 700 "$1"'
#: what has no environment any more still has a name
LIST = ('for each in "$1"/runs/*/job; do if [ -f "$each" ]; then sh "$each" state 2>/dev/null '
        """|| echo '{"run": "'"$(basename "$(dirname "$each")")"'", "state": "unknown"}'; fi; done""")
FILES = 'cd "$1" && find . -type f -exec wc -c {} +'
WRITE = 'cat > "$1/$2.part" && mv -f -- "$1/$2.part" "$1/$2"'
REMOVE = 'rm -rf -- "$1"'


@dataclass(frozen=True, slots=True)
class JobState:
    """How a run is on its host: new, running, done, failed, cancelled or stopped (killed: `resume` goes on).

    `last` is the newest record of its progress, `result` what result.json says, `log` its last lines where
    it failed.
    """

    run: str
    state: str
    pid: int | None = None
    stages: tuple[str, ...] = ()
    last: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    log: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.state != "running"


def run_folder(data_dir: str, run: str) -> str:
    """Where a run lies on its host."""
    return f"{data_dir}/runs/{run}"


def put_code(remote: Remote, data_dir: str) -> str:
    """Put the job code on a host under its hash, once; what to set PYTHONPATH to."""
    packed, digest = _code()
    there = f"{data_dir}/jobs/{digest[:12]}"
    seen = remote.run(("test", "-f", f"{there}/.complete"), timeout=ASK_LIMIT, check=False)
    if seen.exit_status != 0:
        remote.run(("sh", "-c", UNPACK, "sh", there), timeout=ASK_LIMIT, stdin=packed)
        remote.run(("touch", f"{there}/.complete"), timeout=ASK_LIMIT)
    return there


def start(remote: Remote, data_dir: str, spec: Spec, files: Mapping[str, Path], *, python: str, code: str,
          progress: Callable[[int], None] | None = None) -> JobState:
    """Make the run's folder with spec.json and `files` (path in the folder → file here), and start its job.

    The same run may be started again: files that are there are not sent, stages that are done are not
    repeated, and a job that runs is left alone. With other stages in the spec it is a second job on the
    same folder.
    """
    folder = put_files(remote, data_dir, spec.run, files, progress)
    _write(remote, folder, "spec.json", spec.to_json())
    _write(remote, folder, "job", _job_script(python, code))
    return ask(remote, folder, "start")


def put_files(remote: Remote, data_dir: str, run: str, files: Mapping[str, Path],
              progress: Callable[[int], None] | None = None) -> str:
    """Put files (path in the run's folder → file here) into a run's folder, which is made; its path there."""
    folder = run_folder(data_dir, run)
    remote.run(("sh", "-c", MAKE, "sh", folder), timeout=ASK_LIMIT)
    for name, path in files.items():
        remote.put(path, f"{folder}/{name}", sha256=sha256_of(path),
                   timeout=transfer_time(path.stat().st_size), progress=progress)
    return folder


def resume(remote: Remote, data_dir: str, run: str) -> JobState:
    """Start a run again that was killed, failed or was cancelled: it goes on from its newest whole
    checkpoint."""
    return ask(remote, run_folder(data_dir, run), "start")


def state(remote: Remote, data_dir: str, run: str) -> JobState:
    """How a run is."""
    return ask(remote, run_folder(data_dir, run), "state")


def cancel(remote: Remote, data_dir: str, run: str) -> JobState:
    """End a run's job and all its processes. Its folder and checkpoints stay."""
    return ask(remote, run_folder(data_dir, run), "cancel")


def states(remote: Remote, data_dir: str) -> tuple[JobState, ...]:
    """Every run of a host."""
    done = remote.run(("sh", "-c", LIST, "sh", data_dir), timeout=ASK_LIMIT, check=False)
    found = (_parsed(line) for line in done.stdout.splitlines())
    return tuple(_state(raw) for raw in found if raw is not None)


def watch(remote: Remote, data_dir: str, run: str, sink: Callable[[dict[str, Any]], None], *,
          patience: float = 600.0) -> JobState:
    """Hand on every record of a run's progress until its job has ended; its last state.

    A connection that breaks is made again for as long as `patience` seconds; the job does not mind. Nothing
    is told twice. Raises RemoteError where the host stays away; the job goes on there.
    """
    folder, offset, ended = run_folder(data_dir, run), 0, None
    lost: float | None = None
    tries = 0
    while ended is None:
        heard = _Heard(sink)
        try:
            remote.run(("sh", f"{folder}/job", "follow", str(offset)), timeout=WATCH_LIMIT, on_line=heard)
            lost, tries = None, 0
        except CommandTimeout:
            remote.close()
        except (ConnectionLost, HostUnreachable):
            remote.close()
            lost = time.monotonic() if lost is None or heard.bytes else lost
            if time.monotonic() - lost > patience:
                raise
            time.sleep(PAUSES[min(tries, len(PAUSES) - 1)])
            tries = 0 if heard.bytes else tries + 1
        offset += heard.bytes
        ended = heard.state
    return ended


def outcome(found: JobState, host: str) -> Mapping[str, Any]:
    """What the stages of a run gave. Raises JobFailed, with the reason and the way on, where it is not
    done."""
    if found.state == "done" and found.result is not None:
        stages: Mapping[str, Any] = found.result["stages"]
        return stages
    again = f"`swarmctl jobs resume {found.run}` goes on from the last checkpoint"
    if found.state == "failed":
        why = (found.result or {}).get("error") or "it did not say why"
        kind = DiskFull if "No space left on device" in why else JobFailed
        raise kind(f"run {found.run} failed: {why}", host=host,
                   hint=f"`swarmctl jobs logs {found.run}` shows all of its log; once mended, {again}")
    if found.state == "cancelled":
        raise JobFailed(f"run {found.run} was cancelled", host=host, hint=again)
    last = "; ".join(found.log.strip().splitlines()[-2:])
    raise JobCut(f"run {found.run} was cut off (killed, out of memory, or the host went down)"
                 f"{f': {last[-300:]}' if last else ''}", host=host, hint=again)


def fetch(remote: Remote, data_dir: str, run: str, what: str, to: Path) -> None:
    """Copy a folder of the run, such as out/merged, to `to` here, which is there whole or not at all."""
    there = f"{run_folder(data_dir, run)}/{what}"
    listed = remote.run(("sh", "-c", FILES, "sh", there), timeout=ASK_LIMIT)
    names = [(int(size), name.removeprefix("./")) for size, name in
             (line.split(maxsplit=1) for line in listed.stdout.splitlines()) if name != "total"]
    part = to.with_name(f".{to.name}.part")
    for size, name in names:
        if name.startswith("/") or ".." in Path(name).parts:
            raise SwarmError(f"{there} holds a file of a strange name", host=remote.host)
        if not ((part / name).exists() and (part / name).stat().st_size == size):
            remote.get(f"{there}/{name}", part / name, timeout=transfer_time(size))
    if to.exists():
        raise SwarmError(f"{to} is there already", hint="remove it, or fetch to another place")
    part.rename(to)


def remove(remote: Remote, data_dir: str, run: str) -> None:
    """Remove a run's folder. Raises JobFailed while its job runs."""
    if not state(remote, data_dir, run).ended:
        raise JobFailed(f"run {run} is running", host=remote.host, hint=f"`swarmctl jobs cancel {run}` first")
    remove_folder(remote, data_dir, run)


def remove_folder(remote: Remote, data_dir: str, run: str) -> None:
    """Remove the folder of a run that has no job, or none that runs."""
    remote.run(("sh", "-c", REMOVE, "sh", run_folder(data_dir, run)), timeout=600)


def ask(remote: Remote, folder: str, verb: str) -> JobState:
    """Run a verb of jobs.control that answers with a state."""
    limit = START_LIMIT if verb in ("start", "cancel") else ASK_LIMIT
    done = remote.run(("sh", f"{folder}/job", verb), timeout=limit, check=False)
    raw = _parsed(done.stdout.splitlines()[-1]) if done.stdout.strip() else None
    here = ("test", "-e", f"{folder}/job")
    if raw is None and remote.run(here, timeout=ASK_LIMIT, check=False).exit_status:
        raise JobFailed(f"run {Path(folder).name} is not there any more: {folder} is gone", host=remote.host,
                        hint="`swarmctl jobs` lists the runs that are")
    if raw is None:
        said = "; ".join((done.stderr.strip() or "it said nothing").splitlines()[-2:])
        raise JobFailed(f"{folder} does not answer: {said[-400:]}", host=remote.host,
                        hint="is its training environment still there? `swarmctl train` makes it anew")
    return _state(raw)


class _Heard:
    """Takes the lines of `follow`: how many bytes of progress came, and the state that ends them."""

    def __init__(self, sink: Callable[[dict[str, Any]], None]) -> None:
        self.bytes = 0
        self.state: JobState | None = None
        self._sink = sink

    def __call__(self, line: str) -> None:
        if not line:
            return
        raw = _parsed(line)
        if raw is not None and raw.get("event") == "state":
            self.state = _state(raw)
            return
        self.bytes += len(line.encode()) + 1
        if raw is not None:
            self._sink(raw)


def _state(raw: Mapping[str, Any]) -> JobState:
    return JobState(run=str(raw.get("run", "")), state=str(raw.get("state", "unknown")), pid=raw.get("pid"),
                    stages=tuple(raw.get("stages") or ()), last=raw.get("last"), result=raw.get("result"),
                    log=str(raw.get("log") or ""))


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _write(remote: Remote, folder: str, name: str, text: str) -> None:
    remote.run(("sh", "-c", WRITE, "sh", folder, name), timeout=ASK_LIMIT, stdin=text.encode())


def _job_script(python: str, code: str) -> str:
    """What answers for a run: all that jobs.control needs to be run with its own Python, by anybody who
    may."""
    return ('#!/bin/sh\ncd "$(dirname "$0")" || exit 1\n'
            f"PYTHONPATH={shlex.quote(code)} exec {shlex.quote(python)} "
            '-m swarmctl.jobs.control "$@"\n')


def _code() -> tuple[bytes, str]:
    """swarmctl/jobs as a tar, and the hash of what is in it."""
    root = Path(str(resources.files("swarmctl")))
    files = [root / "__init__.py", *sorted((root / "jobs").glob("*.py"))]
    digest, packed = sha256(), io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for path in files:
            data = path.read_bytes()
            info = tarfile.TarInfo(f"swarmctl/{path.relative_to(root)}")
            info.size, info.mode = len(data), 0o600
            tar.addfile(info, io.BytesIO(data))
            digest.update(f"{info.name} {len(data)}\n".encode() + data)
    return packed.getvalue(), digest.hexdigest()
