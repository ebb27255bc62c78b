"""The lab: real SSH hosts on this machine, made in a folder and removable with it.

Each host is one real sshd with its own keys, home and data folder; swarmctl reaches it exactly as it
reaches any other host. In `loopback` mode the hosts are ports of 127.0.0.1 and need no root; in `netns`
mode each lives in a network namespace. The folder holds everything, a SWARMCTL_HOME with inventory and
known_hosts included.
"""

from __future__ import annotations

import getpass
import json
import os
import shlex
import shutil
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from swarmctl.errors import SwarmError, UsageError
from swarmctl.fleet.ports import free_ports
from swarmctl.fleet.tunnels import close_all
from swarmctl.lab import network, processes
from swarmctl.lab.share import make_share, remove_share, within
from swarmctl.lab.sshd import greets, make_key, start_sshd
from swarmctl.lab.swarm import character, host_names, inventory_text
from swarmctl.paths import Paths

if TYPE_CHECKING:
    from collections.abc import Sequence

Mode = Literal["loopback", "netns"]


@dataclass(frozen=True, slots=True)
class HostState:
    """How one host of the lab is: `sshd` is its process id where it runs, `started` what runs in its
    sessions."""

    name: str
    address: str
    port: int
    sshd: int | None
    greets: bool
    started: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LabHost:
    """One host. `port` is sshd's, `llamacpp_port` the first of network.PORTS_A_HOST for its model servers."""

    name: str
    folder: Path
    address: str
    port: int
    llamacpp_port: int
    space: network.Namespace | None = None

    @property
    def data_dir(self) -> Path:
        """Where the inventory puts this host's models and runtimes."""
        return self.folder / "data"

    @property
    def known_as(self) -> str:
        """Its name in known_hosts."""
        return self.address if self.port == 22 else f"[{self.address}]:{self.port}"

    @property
    def sshd(self) -> int | None:
        """The process id of its sshd, or None where it does not run."""
        try:
            pid = int((self.folder / "sshd.pid").read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return None
        return pid if processes.runs(pid, str(self.folder / "sshd_config")) else None

    def state(self) -> HostState:
        """How it is right now."""
        return HostState(self.name, self.address, self.port, self.sshd, greets(self.address, self.port),
                         processes.marked(self.folder))

    def start(self) -> None:
        """Start its sshd, where it does not run."""
        if self.sshd is None:
            start_sshd(self.folder, self.address, self.port, self._prefix())

    def stop(self) -> None:
        """End its sshd, the sessions, and everything that was started in them."""
        processes.end((*self._ssh_processes(), *processes.marked(self.folder)))
        if self.space:
            remove_share(self.space.name)

    def kill_sshd(self) -> None:
        """SIGKILL sshd and its sessions, as a crash would. What they started lives on."""
        processes.kill(self._ssh_processes())

    def restart_sshd(self) -> None:
        """End sshd and its sessions, and start it again."""
        processes.end(self._ssh_processes())
        self.start()

    def change_host_key(self) -> None:
        """Give it another host key, as a reinstallation would. The lab's known_hosts keeps the old one."""
        make_key(self.folder / "host_key", self.name)
        self.restart_sshd()

    def cut(self) -> None:
        """Take it off the network without a word: its cable is pulled, or on loopback all its processes
        freeze."""
        if self.space:
            network.set_cable(self.space, up=False)
        else:
            processes.send((*self._ssh_processes(), *processes.marked(self.folder)), signal.SIGSTOP)

    def mend(self) -> None:
        """Undo `cut`."""
        if self.space:
            network.set_cable(self.space, up=True)
        else:
            processes.send((*self._ssh_processes(), *processes.marked(self.folder)), signal.SIGCONT)

    def public_key(self) -> str:
        """Its host key, as `type base64`."""
        return " ".join((self.folder / "host_key.pub").read_text(encoding="ascii").split()[:2])

    def _prefix(self) -> tuple[str, ...]:
        """How its sshd is started: in its namespace, with its share of a CPU where it has one."""
        if self.space is None:
            return ()
        share = character(self.name).cpu_share
        group = make_share(self.space.name, share) if share else None
        return (*(within(group) if group else ()), *network.inside(self.space, self.name))

    def _ssh_processes(self) -> tuple[int, ...]:
        sshd = self.sshd
        if sshd is None:
            return ()
        ours = set(processes.marked(self.folder))
        return (sshd, *(pid for pid in processes.below(sshd) if pid not in ours))


@dataclass(frozen=True, slots=True)
class Lab:
    """A lab in its folder. Its files are written by `create` and only read afterwards."""

    folder: Path
    mode: Mode
    hosts: tuple[LabHost, ...]

    @classmethod
    def create(cls, folder: Path, mode: Mode = "loopback", hosts: int = 3, cache: Path | None = None) -> Lab:
        """Make a lab's folder; the one that is there already is taken as it is, if it is of that mode.

        `cache` becomes the lab's own cache folder, so that a runtime built once serves every lab.
        """
        folder = folder.expanduser().absolute()
        if (folder / "lab.json").exists():
            return _same(cls.load(folder), mode, hosts)
        if mode == "netns" and os.geteuid() != 0:
            raise UsageError("a lab of network namespaces needs root",
                             hint="swarmctl lab up --mode loopback needs none")
        lab = cls(folder, mode, _plan_hosts(folder, mode, host_names(hosts)))
        lab._write(cache)
        return lab

    @classmethod
    def load(cls, folder: Path) -> Lab:
        """Read a lab that was created."""
        folder = folder.expanduser().absolute()
        try:
            raw = json.loads((folder / "lab.json").read_text(encoding="utf-8"))
        except FileNotFoundError as exc:
            raise SwarmError(f"there is no lab in {folder}", hint="swarmctl lab up makes one") from exc
        hosts = tuple(LabHost(**{**host, "folder": Path(host["folder"]),
                                 "space": network.Namespace(**host["space"]) if host["space"] else None})
                      for host in raw["hosts"])
        return cls(folder, raw["mode"], hosts)

    @property
    def home(self) -> Path:
        """The SWARMCTL_HOME that makes the lab the swarm."""
        return self.folder / "home"

    @property
    def paths(self) -> Paths:
        """swarmctl's folders with that home."""
        return Paths.from_environ({**os.environ, "SWARMCTL_HOME": str(self.home)})

    @property
    def ssh_config(self) -> Path:
        """An SSH config with an alias for each host."""
        return self.folder / "ssh_config"

    @property
    def environ(self) -> dict[str, str]:
        """What to add to the environment of a command that shall use the lab."""
        return {"SWARMCTL_HOME": str(self.home)}

    def host(self, which: int | str) -> LabHost:
        """A host by number or name."""
        if isinstance(which, int):
            return self.hosts[which]
        return next(host for host in self.hosts if host.name == which)

    def start(self) -> None:
        """Start every host that does not run. If that is interrupted, what has started is stopped again."""
        try:
            if self.mode == "netns":
                network.make_namespaces(self._spaces())
            for host in self.hosts:
                host.start()
        except BaseException:  # Ctrl-C above all: no half lab is left running; raised again
            self.stop()
            raise

    def stop(self) -> None:
        """End everything that runs for this lab: tunnels, servers, sessions, sshd, namespaces."""
        close_all(self.paths)
        for host in self.hosts:
            host.stop()
        if self.mode == "netns":
            network.remove_namespaces(self._spaces())

    def wipe(self) -> None:
        """Stop it and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder)
        if not self.paths.runtime.is_relative_to(self.folder):
            shutil.rmtree(self.paths.runtime, ignore_errors=True)

    def status(self) -> tuple[HostState, ...]:
        """How every host is."""
        return tuple(host.state() for host in self.hosts)

    def trust_all(self) -> None:
        """Record every host's present key in the lab's known_hosts."""
        lines = (f"{host.known_as} {host.public_key()}\n" for host in self.hosts)
        self.paths.known_hosts.write_text("".join(lines), encoding="ascii")

    def befriend(self) -> None:
        """Let every host's own `ssh` reach the others, as its user may have set it up: with a key and their
        host keys. bash alone reads a start-up file over SSH."""
        tools = self.folder / "tools"
        tools.mkdir(exist_ok=True)
        wrapper = tools / "ssh"
        command = shlex.join((shutil.which("ssh") or "ssh", "-F", str(self.ssh_config), "-o",
                              f"UserKnownHostsFile={self.paths.known_hosts}"))
        wrapper.write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        wrapper.chmod(0o755)
        for host in self.hosts:
            (host.folder / "home" / ".bashrc").write_text(f"PATH={shlex.quote(str(tools))}:$PATH\n",
                                                          encoding="utf-8")

    def _spaces(self) -> tuple[network.Namespace, ...]:
        return tuple(host.space for host in self.hosts if host.space)

    def _write(self, cache: Path | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        make_key(self.folder / "client_key", "swarmctl-lab")
        for host in self.hosts:
            _write_host(host, self.folder / "client_key.pub")
        paths = self.paths
        for folder in (paths.config, paths.state):
            folder.mkdir(parents=True, exist_ok=True)
        if cache and not paths.cache.exists():
            cache.mkdir(parents=True, exist_ok=True)
            paths.cache.symlink_to(cache.absolute(), target_is_directory=True)
        self.ssh_config.write_text(_ssh_config(self.hosts, self.folder / "client_key", paths.known_hosts),
                                   encoding="utf-8")
        self.trust_all()
        entries = tuple((host.name, host.llamacpp_port, host.data_dir) for host in self.hosts)
        paths.inventory.write_text(inventory_text(entries, self.ssh_config), encoding="utf-8")
        raw = {"mode": self.mode, "hosts": [asdict(host) for host in self.hosts]}
        (self.folder / "lab.json").write_text(json.dumps(raw, indent=1, default=str), encoding="utf-8")


def _same(lab: Lab, mode: str, hosts: int) -> Lab:
    if lab.mode != mode or len(lab.hosts) != hosts:
        raise UsageError(f"the lab in {lab.folder} has {len(lab.hosts)} hosts in mode {lab.mode}",
                         hint="swarmctl lab down --wipe removes it")
    return lab


def _plan_hosts(folder: Path, mode: Mode, names: Sequence[str]) -> tuple[LabHost, ...]:
    if mode == "netns":
        spaces = network.plan_namespaces(folder, tuple(names))
        return tuple(LabHost(name, folder / "hosts" / name, space.address, 22, 8090, space)
                     for name, space in zip(names, spaces, strict=True))
    servers = free_ports(len(names), network.PORTS_A_HOST)
    taken = {port + step for port in servers for step in range(network.PORTS_A_HOST)}
    doors = [port for port in free_ports(len(names) + len(taken)) if port not in taken]
    return tuple(LabHost(name, folder / "hosts" / name, network.LOOPBACK, door, server)
                 for name, door, server in zip(names, doors, servers, strict=False))


def _write_host(host: LabHost, client_key: Path) -> None:
    for folder in (host.folder, host.folder / "home", host.data_dir):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    make_key(host.folder / "host_key", host.name)
    shutil.copyfile(client_key, host.folder / "authorized_keys")


def _ssh_config(hosts: Sequence[LabHost], key: Path, known_hosts: Path) -> str:
    """An SSH config with nothing but the lab, so that nothing of the user's own is touched."""
    blocks = [f"Host {host.name}\n  HostName {host.address}\n  Port {host.port}\n" for host in hosts]
    shared = (f"Host *\n  User {getpass.getuser()}\n  IdentityFile \"{key}\"\n  IdentitiesOnly yes\n"
              f"  IdentityAgent none\n  UserKnownHostsFile \"{known_hosts}\"\n")
    return "\n".join((*blocks, shared))
