"""The training environment of a host: the one its owner names, or a venv made once by the hash of its lock.

The lock ships with swarmctl (jobs/environment.txt; jobs/qlora.txt besides, where there is an NVIDIA GPU, and
jobs/deepspeed.txt for recipes that ask for it).
The same lock gives the same folder, so a new swarmctl makes a new environment beside the old one.
"""

from __future__ import annotations

import json
import re
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.errors import CommandFailed, DiskFull, SwarmError
from swarmctl.fleet.host_shell import TOOL_MISSING, ToolMissing
from swarmctl.fleet.install import require_space
from swarmctl.fleet.locks import HostLock
from swarmctl.fleet.recipes import key_table

if TYPE_CHECKING:
    from swarmctl.facts import Facts
    from swarmctl.fleet.progress import Teller
    from swarmctl.fleet.shell import Remote
    from swarmctl.inventory import Host
    from swarmctl.paths import Paths

BUILD_LIMIT = 3600.0
LOOK_LIMIT = 60.0
#: lines of pip that say of each package only that nothing is done
CHATTER = ("Requirement already satisfied", "Ignoring ")
#: what a new environment takes, torch with its CUDA libraries most of it; measured on x86 Linux
SIZE = 8 << 30
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tensorboard")
LOOK = ("import json, sys; from importlib.metadata import version, PackageNotFoundError as E\n"
        "def v(n):\n try: return version(n)\n except E: return None\n"
        "print(json.dumps({'executable': sys.executable, **{n: v(n) for n in sys.argv[1:]}}))")


def training_python(remote: Remote, host: Host, seen: Facts, paths: Paths, tell: Teller, *,
                    deepspeed: bool = False) -> str:
    """The Python that trains on a host; its environment is made where there is none yet.

    Raises SwarmError where the one that the inventory names lacks a package, ToolMissing where the host has
    no Python to make one with, DiskFull, CommandFailed, and LockBusy where somebody else changes the host.
    """
    if host.train and host.train.python:
        needed = (*PACKAGES, "deepspeed") if deepspeed else PACKAGES
        return _adopted(remote, _expanded(host.train.python, seen.home), needed)
    locks = _locks(seen, deepspeed=deepspeed)
    folder = f"{seen.data_dir}/envs/{_digest(locks)[:12]}"
    there = remote.run(("test", "-f", f"{folder}/.complete"), timeout=LOOK_LIMIT, check=False)
    if there.exit_status != 0:
        _make(remote, seen, folder, locks, paths, tell)
    return f"{folder}/bin/python"


def current_envs(seen: Facts) -> set[str]:
    """The environments that a training on that host would use now, such as envs/1a2b3c4d5e6f."""
    return {f"envs/{_digest(_locks(seen, deepspeed=deepspeed))[:12]}" for deepspeed in (False, True)}


def _adopted(remote: Remote, python: str, needed: tuple[str, ...]) -> str:
    """See that an environment has what jobs import, in the version whose keys recipes are checked against."""
    done = remote.run((python, "-c", LOOK, *needed), timeout=LOOK_LIMIT, check=False)
    hint = "correct `train.python` in the inventory, or leave it out: swarmctl makes an environment"
    try:
        found = json.loads(done.stdout)
    except ValueError as exc:
        said = (done.stderr.strip() or f"status {done.exit_status}").splitlines()[-1]
        raise SwarmError(f"{python} does not run: {said}", host=remote.host, hint=hint) from exc
    missing = [name for name in needed if found[name] is None]
    if missing:
        raise SwarmError(f"{python} lacks {', '.join(missing)}", host=remote.host, hint=hint)
    pinned = key_table()["trl"]
    if found["trl"].split(".")[:2] != pinned.split(".")[:2]:
        raise SwarmError(f"{python} has trl {found['trl']}, and recipes are checked against {pinned}",
                         host=remote.host, hint=hint)
    return python


def _make(remote: Remote, seen: Facts, folder: str, locks: tuple[Path, ...], paths: Paths,
          tell: Teller) -> None:
    require_space(remote, seen.data_dir, SIZE, "the training environment")
    lock = HostLock(remote, seen.data_dir, paths.state)
    lock.renew(BUILD_LIMIT)
    try:
        tell("making the training environment (torch and all: some 5 GB where nothing is cached)")
        sent = []
        for path in locks:
            sent.append(f"{folder}.{path.name}")
            remote.put(path, sent[-1], sha256=sha256(path.read_bytes()).hexdigest(), timeout=LOOK_LIMIT)
        script = resources.files("swarmctl.fleet").joinpath("train_env.sh").read_bytes()

        def hear(line: str) -> None:
            if not line.startswith(CHATTER):
                tell(line.removeprefix("stage ")[:100])

        done = remote.run(("sh", "-s", "--", folder, *sent), timeout=BUILD_LIMIT, stdin=script, check=False,
                          on_line=hear)
        if done.exit_status != 0:
            raise _failure(remote.host, done.exit_status, done.stdout + done.stderr)
        remote.run(("rm", "-f", "--", *sent), timeout=LOOK_LIMIT)
    finally:
        lock.release()


def _failure(host: str, status: int, said: str) -> SwarmError:
    last = "; ".join(line for line in said.strip().splitlines()[-4:] if line.strip())[-600:]
    hint = "or name an environment of yours in the inventory: train: {python: PATH}"
    if status == TOOL_MISSING:
        return ToolMissing(f"{last} is missing, to make the training environment with", host=host, hint=hint)
    if re.search("No space left on device", said):
        return DiskFull("the disk became full while the training environment was made", host=host,
                        hint="free some space; the next run goes on where this one stopped")
    return CommandFailed(f"the training environment cannot be made: {last}", host=host, exit_status=status,
                         hint=f"can this host reach a package index? {hint}")


def _locks(seen: Facts, *, deepspeed: bool) -> tuple[Path, ...]:
    folder = Path(str(resources.files("swarmctl"))) / "jobs"
    nvidia = any(gpu.vendor == "nvidia" and not gpu.problem for gpu in seen.gpus)
    return (folder / "environment.txt", *((folder / "qlora.txt",) if nvidia else ()),
            *((folder / "deepspeed.txt",) if deepspeed else ()))


def _digest(locks: tuple[Path, ...]) -> str:
    return sha256(b"".join(path.read_bytes() for path in locks)).hexdigest()


def _expanded(path: str, home: str) -> str:
    return f"{home}/{path.removeprefix('~/')}" if path.startswith("~/") else path


