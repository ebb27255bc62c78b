"""A runtime onto a host: a copy of a build where there is one anywhere, a build on the host itself otherwise.

Looked for in this order: our store, the air-gapped folder, another host of the fleet. Of several hosts that
need the same build, one builds; the others wait and get the copy.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from swarmctl.errors import CommandFailed, ConnectionLost, DiskFull, HostUnreachable, RemoteError, SwarmError
from swarmctl.fleet.host_shell import ToolMissing, attempt, on_host, script
from swarmctl.fleet.store import hash_file
from swarmctl.runtimes.llamacpp_build import TARGETS, source_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from swarmctl.facts import Facts
    from swarmctl.fleet.progress import Teller
    from swarmctl.fleet.shell import Remote
    from swarmctl.fleet.store import Store
    from swarmctl.inventory import Limits
    from swarmctl.steps import InstallRuntime

BUILD_LIMIT = 3 * 3600.0
POLL = 1.0
SLOWEST = 200_000  # bytes a second, below which a transfer is given up
SPARE = 64 << 20
#: what a build takes while it runs; CUDA's and HIP's kernels are many
BUILD_DISK = {"cpu": 700 << 20, "cuda": 4 << 30, "rocm": 4 << 30, "vulkan": 2 << 30, "metal": 1 << 30}
JOB_MEMORY = {"cuda": 2 << 30, "rocm": 2 << 30}
COMPILER_HINT = ("`apt install build-essential`, `dnf install gcc-c++` or `xcode-select --install` there, "
                 "or a host like it that has a build, or an air-gapped folder")
PROGRESS = re.compile(r"^\[\s*(\d+)/(\d+)\]|^\[\s*(\d+)%\]")


def install_runtime(remote: Remote, step: InstallRuntime, facts: Facts, limits: Limits, store: Store,
                    siblings: Callable[[str], Iterable[tuple[Remote, str]]], tell: Teller) -> None:
    """Make the build of `step.key` be on the host. Raises RemoteErrors, DiskFull, ToolMissing."""
    with store.claim(step.key, on_wait=lambda who: tell(f"{who} is making this build")):
        found = store.runtime_tar(step.key) or _from_sibling(remote, step.key, store, siblings, tell)
        if found is None:
            build_on_host(remote, step, facts, limits, store, tell)
            return
    push_runtime(remote, step.key, facts, found, tell)


def push_runtime(remote: Remote, key: str, facts: Facts, found: tuple[Path, str], tell: Teller) -> None:
    """Copy a build to the host, see that it runs there, and only then give it its name."""
    path, digest = found
    size = path.stat().st_size
    require_space(remote, facts.data_dir, size * 5, f"llama.cpp {key}")
    tell(f"copying {size / 1e6:,.1f} MB", 0.0)
    remote.put(path, f"{facts.data_dir}/incoming/{key}.tar.gz", sha256=digest, timeout=transfer_time(size),
               progress=tell.bytes(size))
    tell("unpacking")
    on_host(remote, "install", facts.data_dir, key, timeout=300)


def build_on_host(remote: Remote, step: InstallRuntime, facts: Facts, limits: Limits, store: Store,
                  tell: Teller) -> None:
    """Build on the host, detached from this connection, and keep a copy of the result in the store.

    Cut anywhere and run again, it finds the build still going, or goes on where it stopped.
    """
    require_space(remote, facts.data_dir, BUILD_DISK.get(step.backend, 2 << 30), "building llama.cpp")
    if not attempt(remote, "build_state", facts.data_dir, step.key, "0").stdout.startswith("running"):
        if not {"c++", "g++", "clang++"} & set(facts.tools):
            raise ToolMissing("there is no C++ compiler to build llama.cpp with", host=remote.host,
                              hint=COMPILER_HINT)
        _begin(remote, step, facts, limits, store, tell)
    _follow(remote, step, facts, tell)
    tell("keeping a copy for hosts like this one")
    fetch_runtime(remote, facts.data_dir, step.key, store, tell)


def fetch_runtime(remote: Remote, data_dir: str, key: str, store: Store, tell: Teller) -> None:
    """Copy a host's build into the store."""
    there = on_host(remote, "pack", data_dir, key, timeout=300).strip()
    with store.scratch() as folder:
        copy = folder / f"{key}.tar.gz"
        remote.get(there, copy, timeout=3600, progress=lambda size: tell(f"fetched {size / 1e6:,.1f} MB"))
        store.add_runtime(key, copy)
    on_host(remote, "unpacked", data_dir, key)


def require_space(remote: Remote, data_dir: str, size: int, what: str) -> None:
    """Raise DiskFull, with the numbers, where `size` bytes and a reserve would not fit."""
    free = int(on_host(remote, "free", data_dir).strip() or 0)
    if free < size + SPARE:
        raise DiskFull(f"{what} needs {(size + SPARE) / 1e6:,.0f} MB at {data_dir}, where "
                       f"{free / 1e6:,.0f} MB are free; nothing was changed", host=remote.host,
                       hint="free some space there, or name another data_dir in the inventory")


def transfer_time(size: int) -> float:
    """Seconds after which moving `size` bytes is given up."""
    return 120.0 + size / SLOWEST


def progress_of(line: str) -> float | None:
    """How far a line of ninja's ([3/200]) or make's ([ 12%]) output says the build is."""
    found = PROGRESS.match(line)
    if not found:
        return None
    done, total, percent = found.groups()
    return int(percent) / 100 if percent else int(done) / max(int(total), 1)


def _from_sibling(remote: Remote, key: str, store: Store,
                  siblings: Callable[[str], Iterable[tuple[Remote, str]]],
                  tell: Teller) -> tuple[Path, str] | None:
    for other, data_dir in siblings(key):
        if other.host == remote.host:
            continue
        tell(f"fetching the build of {other.host}")
        try:
            fetch_runtime(other, data_dir, key, store, tell)
        except RemoteError as exc:
            tell(f"{other.host} could not give its build ({exc.message})")
            continue
        return store.runtime_tar(key)
    return None


def _begin(remote: Remote, step: InstallRuntime, facts: Facts, limits: Limits, store: Store,
           tell: Teller) -> None:
    source = store.sdist(tell, step.version, step.sha256)
    size = source.stat().st_size
    there = f"{facts.data_dir}/sources/{source.name}"
    tell("copying the source", 0.0)
    remote.put(source, there, sha256=hash_file(source), timeout=transfer_time(size),
               progress=tell.bytes(size))
    jobs = limits.build_jobs or _jobs(facts, step.backend)
    on_host(remote, "build", facts.data_dir, step.key, str(jobs), there, source_folder(step.version),
            " ".join(TARGETS), *step.cmake_flags, payload=script("build.sh").encode())


def _jobs(facts: Facts, backend: str) -> int:
    """One compiler a thread, as far as memory goes."""
    return max(1, min(facts.cpu.threads, facts.memory // JOB_MEMORY.get(backend, 1 << 30)))


def _follow(remote: Remote, step: InstallRuntime, facts: Facts, tell: Teller) -> None:
    """Watch a build until it ends, over a broken connection too: the build does not mind."""
    deadline, offset, tail = time.monotonic() + BUILD_LIMIT, 0, ""
    stage, fraction = "building", None
    while True:
        head, _, text = _build_state(remote, facts.data_dir, step.key, offset).partition("\n")
        state, size, *status = head.split()
        offset = int(size)
        tail = (tail + text)[-20_000:]
        stage, fraction = _latest(text, stage, fraction)
        tell(stage, fraction)
        if state == "ended":
            _judge(remote.host, int(*status), tail, f"{facts.data_dir}/builds/{step.key}/log")
            return
        if state == "lost":
            raise CommandFailed("the build was cut off (did the host restart?)", host=remote.host,
                                hint="run `up` again: it goes on where it stopped")
        if time.monotonic() > deadline:
            raise SwarmError(f"the build has not ended within {BUILD_LIMIT / 3600:.0f} h", host=remote.host,
                             hint="it goes on there; run `up` again later")
        time.sleep(POLL)


def _build_state(remote: Remote, data_dir: str, key: str, offset: int) -> str:
    """How the build is. A broken connection is made again, a few times: the build goes on meanwhile."""
    for pause in (1, 5, 15, 30):
        try:
            return on_host(remote, "build_state", data_dir, key, str(offset))
        except (ConnectionLost, HostUnreachable):
            remote.close()
            time.sleep(pause * POLL)
    return on_host(remote, "build_state", data_dir, key, str(offset))


def _latest(text: str, stage: str, fraction: float | None) -> tuple[str, float | None]:
    """The stage that a piece of the log ends in, and how far it is."""
    for line in text.splitlines():
        if line.startswith("stage "):
            stage, fraction = line.removeprefix("stage "), None
        else:
            known = progress_of(line)
            fraction = fraction if known is None else known
    return stage, fraction


def _judge(host: str, status: int, tail: str, log: str) -> None:
    if status == 0:
        return
    if "No space left on device" in tail:
        raise DiskFull("the disk became full during the build", host=host,
                       hint="free some space, then `up` again")
    lines = [line for line in tail.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()] or lines
    raise CommandFailed(f"building llama.cpp failed (status {status}): {'; '.join(errors[-3:])[-600:]}",
                        host=host, hint=f"the whole log is {log} on that host")
