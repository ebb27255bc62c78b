"""Where a model is finished: a Python that converts, llama.cpp's programs, its converters, and the job's
code.

This machine, or the host on which a run lies. What is missing there is brought there, once.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmctl.errors import SwarmError
from swarmctl.fleet import jobs
from swarmctl.fleet.converge import no_siblings
from swarmctl.fleet.converter import converter, converter_tar
from swarmctl.fleet.gguf_make import require_python
from swarmctl.fleet.install import install_runtime, transfer_time
from swarmctl.fleet.local import LocalRemote
from swarmctl.fleet.remote import connect
from swarmctl.fleet.store import Store
from swarmctl.fleet.survey import survey
from swarmctl.fleet.train_env import training_python
from swarmctl.fleet.transfer import sha256_of
from swarmctl.inventory import Host, LlamaCppWish
from swarmctl.runtimes.llamacpp_build import choose_build
from swarmctl.steps import InstallRuntime

if TYPE_CHECKING:
    from pathlib import Path

    from swarmctl.facts import Facts
    from swarmctl.fleet.progress import Teller
    from swarmctl.fleet.shell import ShellRemote
    from swarmctl.inventory import Inventory
    from swarmctl.paths import Paths

HERE = "this machine"
UNPACK = 'mkdir -p -- "$2" && tar -xzf "$1" -C "$2" && touch "$2/.complete"'
LIMIT = 300.0


@dataclass(frozen=True, slots=True)
class Workshop:
    """All paths are absolute where it is; `data_dir` is where its jobs lie, `blobs` the hashes of the models
    that it serves."""

    remote: ShellRemote
    data_dir: str
    python: str
    code: str
    tools: str
    source: str
    blobs: frozenset[str] = frozenset()


def here(paths: Paths, tell: Teller, *, converts: bool) -> Workshop:
    """This machine. Raises SwarmError with what it lacks and the command that helps."""
    if converts:
        require_python()
    store, remote, data_dir = Store.of(paths), LocalRemote(HERE), str(paths.cache / "finishing")
    seen = survey(remote, Host(HERE, "local", data_dir=data_dir))
    key = choose_build("auto", seen).key
    build = store.runtime(key)
    if build is None:
        raise SwarmError(f"there is no build of llama.cpp on this machine ({key})",
                         hint="`swarmctl runtime build` makes one, in minutes, once")
    source = str(converter(store, tell)) if converts else ""
    return Workshop(remote, seen.data_dir, sys.executable, jobs.put_code(remote, seen.data_dir),
                    str(build / "bin"), source)


def on_host(paths: Paths, inventory: Inventory, host: Host, tell: Teller) -> Workshop:
    """A host of the inventory, with what it lacks brought there. Raises RemoteErrors and SwarmError."""
    store, remote = Store.of(paths, inventory.airgap), connect(host, paths, inventory.ssh_config)
    seen = survey(remote, host)
    tools = _tools(remote, host, seen, store, tell)
    python = training_python(remote, host, seen, paths, tell)
    source = f"{seen.data_dir}/sources/{_unpacked(remote, seen.data_dir, converter_tar(store, tell))}"
    return Workshop(remote, seen.data_dir, python, jobs.put_code(remote, seen.data_dir), tools, source,
                    frozenset(blob.sha256 for blob in seen.blobs))


def _tools(remote: ShellRemote, host: Host, seen: Facts, store: Store, tell: Teller) -> str:
    """The folder of llama.cpp's programs on a host; a host that only trains gets a build too."""
    there = [runtime.path for runtime in seen.runtimes if runtime.name == "llamacpp"]
    if there:
        return f"{there[-1]}/bin"
    build = choose_build((host.llamacpp or LlamaCppWish()).backend, seen)
    step = InstallRuntime(build.key, build.version, build.backend.name, build.cmake_flags,
                          "models are quantised with it")
    install_runtime(remote, step, seen, host.limits, store, no_siblings, tell)
    return f"{seen.data_dir}/runtimes/llamacpp/{build.key}/bin"


def _unpacked(remote: ShellRemote, data_dir: str, tar: Path) -> str:
    """The name of the converters' folder on a host, which is made once."""
    name = tar.name.removesuffix(".tar.gz")
    there = f"{data_dir}/sources/{name}"
    if remote.run(("test", "-f", f"{there}/.complete"), timeout=LIMIT, check=False).exit_status != 0:
        remote.put(tar, f"{there}.tar.gz", sha256=sha256_of(tar), timeout=transfer_time(tar.stat().st_size))
        remote.run(("sh", "-c", UNPACK, "sh", f"{there}.tar.gz", there), timeout=LIMIT)
    return name
