"""`swarmctl runtime`: build llama.cpp for this machine into the store, and list the builds there are.

The build is the very step that `up` applies to a host, run here without SSH.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmctl.errors import UsageError
from swarmctl.fleet.host_shell import on_host
from swarmctl.fleet.install import build_on_host
from swarmctl.fleet.local import LocalRemote
from swarmctl.fleet.progress import Teller
from swarmctl.fleet.store import Store
from swarmctl.fleet.survey import survey
from swarmctl.inventory import BACKENDS, Host, Limits
from swarmctl.runtimes.llamacpp_build import LLAMACPP, choose_build
from swarmctl.steps import InstallRuntime

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from swarmctl.fleet.progress import Event
    from swarmctl.paths import Paths

HERE = "this machine"


@dataclass(frozen=True, slots=True)
class Built:
    """A build in the store: `folder` holds bin/. `size` is bytes; `native` where this machine would use
    it."""

    key: str
    folder: Path
    size: int
    native: bool = False


def build(paths: Paths, event: Callable[[Event], None], *, backend: str = "auto", jobs: int | None = None,
          airgap: str | None = None) -> tuple[Built, bool]:
    """Have the build for this machine in the store; whether it had to be made.

    Cut anywhere, it goes on next time. An interrupt ends the compilers, a kill does not.
    """
    if backend not in BACKENDS:
        raise UsageError(f"there is no backend {backend}", hint=f"there are {', '.join(BACKENDS)}")
    store, work = Store.of(paths, airgap), paths.cache / "build"
    remote = LocalRemote(HERE)
    seen = survey(remote, Host(HERE, "local", data_dir=str(work)))
    chosen = choose_build(backend, seen)
    step = InstallRuntime(chosen.key, LLAMACPP, chosen.backend.name, chosen.cmake_flags,
                          chosen.backend.reason)
    tell = Teller(HERE, 1, 1, step.title, event)
    with store.claim(step.key, on_wait=lambda who: tell(f"{who} is making this build")):
        made = store.runtime_tar(step.key) is None
        if made:
            tell(step.reason, state="begun")
            try:
                build_on_host(remote, step, seen, Limits(build_jobs=jobs), store, tell)
            except KeyboardInterrupt:
                on_host(remote, "build_stop", seen.data_dir, step.key)
                raise
            shutil.rmtree(work, ignore_errors=True)
            tell("", 1.0, state="done")
    return _built(store, step.key, native=True), made


def builds(paths: Paths) -> tuple[Built, ...]:
    """The builds in the store."""
    store = Store.of(paths)
    seen = survey(LocalRemote(HERE), Host(HERE, "local", data_dir=str(paths.cache / "build")))
    native = choose_build("auto", seen).key
    return tuple(_built(store, key, native=key == native) for key in store.runtimes())


def _built(store: Store, key: str, *, native: bool) -> Built:
    folder = store.root / "runtimes" / key
    size = sum(path.lstat().st_size for path in folder.rglob("*"))
    return Built(key, folder, size, native)
