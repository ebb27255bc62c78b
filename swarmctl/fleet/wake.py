"""Wake-on-LAN: the packet that a sleeping network card waits for, and the ways to put it on the right LAN.

The packet is six bytes of 0xff and sixteen times the card's address, broadcast to UDP port 9 (AMD, Magic
Packet Technology, 1995). It does not pass routers, so a host of that LAN may send it for us.
"""

from __future__ import annotations

import re
import socket
import struct
from typing import TYPE_CHECKING

from swarmctl.errors import CommandFailed, SwarmError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmctl.fleet.remote import Remote

DISCARD_PORT = 9
EVERYWHERE = "255.255.255.255"
SIOCGIFADDR = 0x8915  # Linux, netdevice(7)
VIA_TIMEOUT = 20.0
#: Run on a host by its own python3, with the card's address and the port as arguments; as `send_here`.
SENDER = """
import fcntl, socket, struct, sys
packet = b"\\xff" * 6 + bytes.fromhex(sys.argv[1]) * 16
sent = 0
for name in [entry[1] for entry in socket.if_nameindex()] + [None]:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    try:
        if name:
            raw = fcntl.ioctl(sock, 0x8915, struct.pack("256s", name.encode()[:15]))
            sock.bind((socket.inet_ntoa(raw[20:24]), 0))
        sock.sendto(packet, ("255.255.255.255", int(sys.argv[2])))
        sent += 1
    except OSError:
        pass
    sock.close()
sys.exit(0 if sent else 1)
"""
#: Programs that send the packet where there is no python3, each with the address as its last argument.
PROGRAMS = ("wakeonlan", "wol", "etherwake")
TOOLS = 'for tool; do command -v "$tool" && exit 0; done; exit 1'


def magic_packet(mac: str) -> bytes:
    """The 102 bytes that wake the card of that address. Raises UsageError where it is none."""
    plain = re.sub(r"[:.-]", "", mac)
    if not re.fullmatch(r"[0-9A-Fa-f]{12}", plain):
        raise UsageError(f"{mac!r} is no MAC address",
                         hint="it is six pairs of hexadecimal digits: a4:bb:6d:01:02:03")
    return b"\xff" * 6 + bytes.fromhex(plain) * 16


def send_here(mac: str, port: int = DISCARD_PORT) -> tuple[str, ...]:
    """Broadcast the packet on every network of this machine; our addresses there. Raises SwarmError.

    255.255.255.255 leaves by the default route only, unless the sender is bound to an interface's address
    (Linux, ip_route_output_key); unlike a network's own broadcast address it needs no `brd` to be set.
    """
    packet = magic_packet(mac)
    sent: list[str] = []
    for address in (*own_addresses(), ""):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            try:
                sock.bind((address, 0))
                sock.sendto(packet, (EVERYWHERE, port))
            except OSError:
                continue  # an interface without a way out: the others may have one
            sent.append(address or "its default route")
    if not sent:
        raise SwarmError("this machine is on no network, so nobody heard the packet",
                         hint="send it through a host of that network: swarmctl wake HOST --via OTHER")
    return tuple(sent)


def send_via(remote: Remote, mac: str, port: int = DISCARD_PORT) -> str:
    """Have another host broadcast the packet; the program that did. Raises RemoteErrors and SwarmError."""
    plain = magic_packet(mac)[6:12].hex()
    tool = remote.run(("sh", "-c", TOOLS, "sh", "python3", *PROGRAMS), timeout=VIA_TIMEOUT,
                      check=False).stdout.strip()
    if not tool:
        raise SwarmError("it has nothing to send a broadcast with", host=remote.host,
                         hint="it needs python3, wakeonlan, wol or etherwake")
    colons = ":".join(plain[at:at + 2] for at in range(0, 12, 2))
    argv = (tool, "-c", SENDER, plain, str(port)) if tool.endswith("python3") else (tool, colons)
    try:
        remote.run(argv, timeout=VIA_TIMEOUT)
    except CommandFailed as exc:
        raise SwarmError(f"it could not send the packet: {exc.stderr.strip() or exc.message}",
                         host=remote.host) from exc
    return tool


def own_addresses() -> Iterator[str]:
    """Our IPv4 address on every network but the loopback, where the system tells (Linux)."""
    try:
        import fcntl
    except ImportError:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            try:
                raw = fcntl.ioctl(sock, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # no IPv4 address there, or not Linux
            address = socket.inet_ntoa(raw[20:24])
            if not address.startswith("127."):
                yield address
