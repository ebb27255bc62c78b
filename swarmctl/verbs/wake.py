"""`wake`: send a sleeping host its magic packet, and wait until it is back and well."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmctl.dispatch.swarm import make_swarm
from swarmctl.dispatch.verify import Verification
from swarmctl.errors import (
    CommandTimeout,
    ConnectionLost,
    HostUnreachable,
    SwarmError,
    UsageError,
)
from swarmctl.fleet.asleep import seen_awake
from swarmctl.fleet.survey import survey
from swarmctl.fleet.wake import magic_packet, send_here, send_via

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.fleet.remote import Remote
    from swarmctl.fleet.snapshot import Fleet
    from swarmctl.inventory import Host, Inventory
    from swarmctl.paths import Paths

AGAIN = 15.0  # a card that was still going to sleep may miss the first packet
PAUSE = 1.0
TOKEN_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Woken:
    """How it went: where the packet was sent from, and with `wait` the seconds until it answered and whether
    it is well (`why` says what is wrong)."""

    host: str
    sent_from: str
    seconds: float | None = None
    why: str = ""


def wake(paths: Paths, inventory: Inventory, fleet: Fleet | None, name: str,
         connect: Callable[[Host], Remote], *, via: str | None = None, wait: float | None = None,
         now: float) -> Woken:
    """Send the packet, by the host `via` or the inventory's `wake_via`, else from here; with `wait`, until
    the host answers over SSH (at most so many seconds), and verify it.

    Raises UsageError for an unknown host or one without `mac`, RemoteErrors of the host `via`, SwarmError
    where it does not wake in time.
    """
    host = _host(inventory, name)
    if host.mac is None:
        raise UsageError("its MAC address is not in the inventory", host=name,
                         hint=f"hosts.{name}.mac: what `ip link` shows on it as link/ether")
    magic_packet(host.mac)
    via = via or host.wake_via
    sender = connect(_host(inventory, via)) if via else None
    try:
        where = _send(host.mac, sender)
        if wait is None:
            return Woken(name, where)
        seconds = _awaited(host, host.mac, sender, connect(host), wait)
    finally:
        if sender:
            sender.close()
    seen_awake(paths, name, now)
    return Woken(name, where, seconds, _verified(paths, fleet, name, now))


def _host(inventory: Inventory, name: str) -> Host:
    try:
        return inventory.host(name)
    except KeyError as exc:
        names = ", ".join(host.name for host in inventory.hosts)
        raise UsageError(f"the inventory has no host {name}", hint=f"it has {names}") from exc


def _send(mac: str, sender: Remote | None) -> str:
    if sender is None:
        return "this machine (" + ", ".join(send_here(mac)) + ")"
    return f"{sender.host}, with {send_via(sender, mac)}"


def _awaited(host: Host, mac: str, sender: Remote | None, remote: Remote, limit: float) -> float:
    """Seconds until the host answers a survey."""
    began = sent = time.monotonic()
    while True:
        try:
            survey(remote, host)
        except (HostUnreachable, ConnectionLost, CommandTimeout) as exc:
            if time.monotonic() - began > limit:
                raise SwarmError(f"it did not wake within {limit:g} s: {exc.message}", host=host.name,
                                 hint="wake-on-LAN must be on in its firmware and driver "
                                      "(`ethtool IFACE` there shows Wake-on: g)") from exc
        else:
            return time.monotonic() - began
        finally:
            remote.close()
        if time.monotonic() - sent > AGAIN:
            _send(mac, sender)
            sent = time.monotonic()
        time.sleep(PAUSE)


def _verified(paths: Paths, fleet: Fleet | None, name: str, now: float) -> str:
    """What is wrong with a host that is back; empty where it is well, or where nothing is served on it."""
    if fleet is None:
        return ""
    swarm = make_swarm(paths, fleet)
    candidates = tuple(one for one in swarm.candidates if one.host == name)
    if not candidates:
        return ""
    began = time.monotonic()
    while True:
        one = Verification(swarm, candidates, now, patience=TOKEN_PATIENCE)
        if one.wait() or time.monotonic() - began > TOKEN_PATIENCE:
            return one.why
        time.sleep(PAUSE)  # its servers may still be starting
