"""Who listens on which TCP port, from whichever of ss, lsof, netstat and /proc/net/tcp the host has."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

from swarmctl.facts.sections import number
from swarmctl.facts.seen import Listener

if TYPE_CHECKING:
    from swarmctl.facts.sections import Sections

Reader = Callable[[str, dict[str, str]], Listener | None]

HOLDER = re.compile(r'\(\("((?:[^"\\]|\\.)*)",pid=([0-9]{1,10}),')


def listeners_seen(sections: Sections, user: str, uid: str) -> tuple[Listener, ...]:
    """Every listening port, once an address, sorted by port. Whose it is where the host lets us see that."""
    readers: dict[str, Reader] = {"ss": _ss, "lsof": _lsof, "netstat": _netstat, "proc": _proc}
    reader: Reader = _ss
    names = {uid: user, "0": "root"}
    found: dict[tuple[str, int], Listener] = {}
    for line in sections.get("listeners", ()):
        if line.startswith("by ") and line[3:] in readers:
            reader = readers[line[3:]]
            continue
        listener = reader(line, names)
        if listener is None or not 0 < listener.port < 65536:
            continue
        key = (listener.address, listener.port)
        if key not in found or found[key].pid is None:
            found[key] = replace(listener, user=listener.user or (found[key].user if key in found else None))
    held = _holders(sections)
    named = (_with_holder(listener, held) for listener in found.values())
    return tuple(sorted(named, key=lambda one: (one.port, one.address)))


def _holders(sections: Sections) -> dict[int, tuple[str, str]]:
    """pid → (user, whole command) of the ports that matter to us."""
    found = {}
    for line in sections.get("holders", ()):
        words = line.split(" ", 3)
        if len(words) == 4 and words[0] == "holder" and number(words[1]):
            found[number(words[1]) or 0] = (words[2], words[3].strip())
    return found


def _with_holder(listener: Listener, held: dict[int, tuple[str, str]]) -> Listener:
    if listener.pid not in held:
        return listener
    user, command = held[listener.pid]
    return replace(listener, user=user if user not in ("-", "UNKNOWN") else listener.user,
                   command=command or listener.command)


def _ss(line: str, names: dict[str, str], /) -> Listener | None:
    """LISTEN 0 128 127.0.0.1:8090 0.0.0.0:* users:(("llama-server",pid=7,fd=3)) uid:1000 ino:… (root: no
    uid)."""
    words = line.split()
    if len(words) < 5 or words[0] != "LISTEN":
        return None
    holder = HOLDER.search(line)
    owner = re.search(r"\buid:([0-9]{1,10})", line)
    uid = owner[1] if owner else "0"
    pid, command = (int(holder[2]), holder[1]) if holder else (None, None)
    return _listener(words[3], pid, names.get(uid, uid), command)


def _lsof(line: str, _names: dict[str, str], /) -> Listener | None:
    """COMMAND PID USER FD TYPE DEVICE SIZE/OFF NODE NAME (LISTEN)."""
    words = line.split()
    if len(words) < 10 or words[-1] != "(LISTEN)":
        return None
    return _listener(words[-2], number(words[1]), words[2], words[0].replace("\\x20", " "))


def _netstat(line: str, _names: dict[str, str], /) -> Listener | None:
    """tcp 0 0 127.0.0.1:8090 0.0.0.0:* LISTEN 7/llama-server."""
    words = line.split()
    if len(words) < 6 or not words[0].startswith("tcp") or words[5] != "LISTEN":
        return None
    pid, _, command = (words[6] if len(words) > 6 else "").partition("/")
    return _listener(words[3], number(pid), None, command or None)


def _proc(line: str, names: dict[str, str], /) -> Listener | None:
    """0: 0100007F:1F9A 00000000:0000 0A … uid …; addresses are hexadecimal words of the machine's order."""
    words = line.split()
    if len(words) < 8 or not re.fullmatch(r"(?:[0-9A-F]{8}|[0-9A-F]{32}):[0-9A-F]{4}", words[1]):
        return None
    raw, _, port = words[1].partition(":")
    data = b"".join(bytes.fromhex(raw[at:at + 8])[::-1] for at in range(0, len(raw), 8))
    return _listener(f"[{ip_address(data)}]:{int(port, 16)}", None, names.get(words[7], words[7]), None)


def _listener(where: str, pid: int | None, user: str | None, command: str | None) -> Listener | None:
    address, _, port = where.rpartition(":")
    address = address.strip("[]").partition("%")[0] or "*"
    return Listener(address, number(port) or 0, _exposed(address), pid, user, command)


def _exposed(address: str) -> bool:
    plain = address.lower().removeprefix("::ffff:")
    return not (plain.startswith("127.") or plain in ("::1", "localhost"))
