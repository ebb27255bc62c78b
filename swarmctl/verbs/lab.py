"""The lab as a person uses it: make and start it, stop it, look at it, hurt it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.errors import UsageError
from swarmctl.lab.lab import Lab, LabHost

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.lab.lab import HostState, Mode
    from swarmctl.paths import Paths


def lab_folder(paths: Paths, environ: Mapping[str, str]) -> Path:
    """Where the lab is: the one this SWARMCTL_HOME belongs to, else in our state folder."""
    home = environ.get("SWARMCTL_HOME")
    if home and (Path(home).absolute().parent / "lab.json").exists():
        return Path(home).absolute().parent
    return paths.state / "lab"


def lab_up(folder: Path, *, mode: Mode | None = None, hosts: int | None = None,
           cache: Path | None = None) -> Lab:
    """Make the lab where there is none, and start what does not run. Running it twice changes nothing."""
    lab = _existing(folder)
    if lab is None or (mode or lab.mode) != lab.mode or (hosts or len(lab.hosts)) != len(lab.hosts):
        lab = Lab.create(folder, mode or "loopback", hosts or 3, cache)
    lab.start()
    return lab


def lab_down(folder: Path, *, wipe: bool = False) -> Lab | None:
    """End everything that runs in the lab; `wipe` removes its folder too. None where there is no lab."""
    lab = _existing(folder)
    if lab is None:
        return None
    if wipe:
        lab.wipe()
    else:
        lab.stop()
    return lab


def lab_status(folder: Path) -> tuple[HostState, ...]:
    """How every host of the lab is. Raises SwarmError where there is no lab."""
    return Lab.load(folder).status()


def lab_cut(folder: Path, name: str) -> None:
    """Take a host off the network without a word."""
    _host(folder, name).cut()


def lab_mend(folder: Path, name: str) -> None:
    """Bring it back, and start its sshd where that has ended."""
    host = _host(folder, name)
    host.mend()
    host.start()


def _host(folder: Path, name: str) -> LabHost:
    lab = Lab.load(folder)
    found = {host.name: host for host in lab.hosts}
    if name not in found:
        raise UsageError(f"the lab has no host {name}", hint=f"it has {', '.join(found)}")
    return found[name]


def _existing(folder: Path) -> Lab | None:
    return Lab.load(folder) if (folder / "lab.json").exists() else None
