"""Where the lab's hosts live: free ports on loopback, or one network namespace each, joined by a bridge.

Namespaces need root and give every host an address, a loopback and a host name of its own, and a cable to
pull. All names carry the lab's tag, so that two labs never meet and `down` removes this one's and nothing
else.
"""

from __future__ import annotations

import contextlib
import subprocess
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from swarmctl.errors import SwarmError

if TYPE_CHECKING:
    from pathlib import Path

IP_TIMEOUT = 10.0
LOOPBACK = "127.0.0.1"
PORTS_A_HOST = 8


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace with one cable to the lab's bridge. `cable` is the end on the bridge's side."""

    name: str
    cable: str
    bridge: str
    address: str


def plan_namespaces(folder: Path, names: tuple[str, ...]) -> tuple[Namespace, ...]:
    """Namespaces for hosts of these names in a subnet that is not in use."""
    if len(names) > 200:
        raise SwarmError("a lab of network namespaces has at most 200 hosts")
    tag = sha256(str(folder).encode()).hexdigest()[:5]
    used = _ip("-o", "-4", "addr", "show")
    first = int(tag, 16) % 250
    subnets = (f"10.83.{(first + step) % 250}" for step in range(250))
    subnet = next(net for net in subnets if f" {net}." not in used)
    return tuple(Namespace(f"sw{tag}-{name}"[:60], f"sw{tag}v{number}", f"sw{tag}br",
                           f"{subnet}.{number + 10}")
                 for number, name in enumerate(names))


def make_namespaces(spaces: tuple[Namespace, ...]) -> None:
    """Make the bridge, the namespaces and their cables; those that are there are left as they are."""
    bridge = spaces[0].bridge
    subnet = spaces[0].address.rpartition(".")[0]
    if not _exists("link", bridge):
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
    for space in spaces:
        if not _exists("netns", space.name):
            _make_namespace(space)


def remove_namespaces(spaces: tuple[Namespace, ...]) -> None:
    """Remove everything that make_namespaces made."""
    for space in spaces:
        for argv in (("link", "delete", space.cable), ("netns", "delete", space.name)):
            with contextlib.suppress(SwarmError):
                _ip(*argv)
    with contextlib.suppress(SwarmError):
        _ip("link", "delete", spaces[0].bridge)


def set_cable(space: Namespace, *, up: bool) -> None:
    """Pull a host's cable, or plug it in."""
    _ip("link", "set", space.cable, "up" if up else "down")


def inside(space: Namespace, hostname: str) -> tuple[str, ...]:
    """The start of a command that runs in the namespace, under a host name of its own."""
    rename = 'hostname "$1" && shift && exec "$@"'
    return ("ip", "netns", "exec", space.name, "unshare", "--uts", "sh", "-c", rename, "sh", hostname)


def _make_namespace(space: Namespace) -> None:
    subnet = space.address.rpartition(".")[0]
    within = ("-n", space.name)
    _ip("netns", "add", space.name)
    _ip("link", "add", space.cable, "type", "veth", "peer", "name", "eth0", "netns", space.name)
    _ip("link", "set", space.cable, "master", space.bridge, "up")
    _ip(*within, "addr", "add", f"{space.address}/24", "dev", "eth0")
    _ip(*within, "link", "set", "eth0", "up")
    _ip(*within, "link", "set", "lo", "up")
    _ip(*within, "route", "add", "default", "via", f"{subnet}.1")


def _exists(kind: str, name: str) -> bool:
    if kind == "netns":
        return any(line.split()[0] == name for line in _ip("netns", "list").splitlines() if line)
    return any(line.split(": ")[1].split("@")[0] == name for line in _ip("-o", "link", "show").splitlines())


def _ip(*words: str) -> str:
    try:
        done = subprocess.run(("ip", *words), capture_output=True, text=True, timeout=IP_TIMEOUT, check=False)
    except FileNotFoundError as exc:
        raise SwarmError("the lab's network namespaces need `ip`",
                         hint="install iproute2, or use: swarmctl lab up --mode loopback") from exc
    if done.returncode != 0:
        raise SwarmError(f"`ip {' '.join(words)}` failed: {done.stderr.strip()}",
                         hint="network namespaces need root: swarmctl lab up --mode loopback needs none")
    return done.stdout
