"""What OpenSSH would do with a destination, asked of OpenSSH itself: `ssh -G`.

Aliases, Include, Match, tokens and defaults are resolved by the client people already trust, so nothing of
~/.ssh/config is parsed here. Owns the argv of every `ssh` that swarmctl starts: strict host keys, our
known_hosts before the user's, no prompts, and the same for each jump host.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import socket
import subprocess
from base64 import b64decode
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.errors import HostUnreachable, SwarmError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

RESOLVE_TIMEOUT = 20.0  # `Match exec` runs commands of the user's own
MAX_JUMPS = 8
QUICK = "curve25519-sha256"
_TARGET = re.compile(r"^(?:(?P<user>.+)@)?(?:\[(?P<six>[^]@]+)\]|(?P<host>[^:@]+|[^:@]*:[^:@]*:[^@]*))"
                     r"(?::(?P<port>\d+))?$")


@dataclass(frozen=True, slots=True)
class Destination:
    """What the inventory's `ssh` means: an alias or address, with a user and a port where they were given."""

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Read `[user@]host[:port]`; an IPv6 address with a port is written in brackets."""
        found = _TARGET.match(text.removeprefix("ssh://").rstrip("/"))
        host = found and (found["six"] or found["host"])
        if not found or not host or host.startswith("-"):
            raise SwarmError(f"{text!r} is not an SSH destination",
                             hint="write an alias of ~/.ssh/config, or [user@]address[:port]")
        return cls(host, found["user"], int(found["port"]) if found["port"] else None)

    @property
    def argv(self) -> tuple[str, ...]:
        """The last arguments of an `ssh` command that goes there."""
        user = ("-l", self.user) if self.user else ()
        port = ("-p", str(self.port)) if self.port else ()
        return (*user, *port, "--", self.host)


@dataclass(frozen=True, slots=True)
class Resolved:
    """A destination as `ssh -G` resolved it. `options` holds every line of its output, keyed in lower
    case."""

    destination: Destination
    hostname: str
    port: int
    user: str
    options: Mapping[str, tuple[str, ...]]

    def option(self, key: str) -> str | None:
        """The value of an option, or None where it is unset or `none`."""
        values = self.options.get(key, ())
        return values[0] if values and values[0].lower() != "none" else None

    @property
    def known_as(self) -> str:
        """The name its key has in known_hosts: HostKeyAlias, else host or [host]:port."""
        alias = self.option("hostkeyalias")
        if alias:
            return alias
        host = self.hostname.lower()
        return host if self.port == 22 else f"[{host}]:{self.port}"

    @property
    def known_hosts(self) -> tuple[str, ...]:
        """The user's and the system's known_hosts files."""
        user = split_paths(self.option("userknownhostsfile") or "")
        return user + split_paths(self.option("globalknownhostsfile") or "")

    @property
    def jumps(self) -> tuple[str, ...]:
        """ProxyJump's hops, first to last."""
        return tuple(hop.strip() for hop in (self.option("proxyjump") or "").split(",") if hop.strip())

    @property
    def identity_files(self) -> tuple[str, ...]:
        """IdentityFile's paths, in order."""
        return tuple(self.path(value) for value in self.options.get("identityfile", ()) if value != "none")

    @property
    def certificate_files(self) -> tuple[str, ...]:
        """CertificateFile's paths, in order."""
        return tuple(self.path(value) for value in self.options.get("certificatefile", ()) if value != "none")

    @property
    def agent_socket(self) -> str | None:
        """Where the SSH agent listens: IdentityAgent, else SSH_AUTH_SOCK."""
        values = self.options.get("identityagent", ("SSH_AUTH_SOCK",))
        if values[0] == "none":
            return None
        if values[0] == "SSH_AUTH_SOCK" or (values[0].startswith("$") and "{" not in values[0]):
            return os.environ.get(values[0].removeprefix("$"))
        return self.path(values[0])

    def expand(self, text: str) -> str:
        """Fill in the tokens of ssh_config(5) that `ssh -G` leaves as they are."""
        user = pwd.getpwuid(os.getuid()).pw_name
        node = socket.gethostname()
        tokens = {"%": "%", "d": str(Path.home()), "h": self.hostname, "i": str(os.getuid()), "l": node,
                  "L": node.split(".")[0], "n": self.destination.host, "p": str(self.port), "r": self.user,
                  "u": user, "k": self.option("hostkeyalias") or self.destination.host}
        return re.sub(r"%(.)", lambda found: tokens.get(found[1], found[0]), text)

    def path(self, text: str) -> str:
        """A path of the SSH config: tokens, ${VARIABLES} and ~ filled in."""
        named = re.sub(r"\$\{(\w+)\}", lambda found: os.environ.get(found[1], ""), self.expand(text))
        return str(Path(named).expanduser())


def resolve(target: str | Destination, ssh_config: str | None, memory: Path | None = None) -> Resolved:
    """Ask OpenSSH what a destination means. `ssh_config` replaces the user's and the system's files, as
    `ssh -F`. With a folder for `memory` OpenSSH is not asked again what it would answer the same."""
    destination = Destination.parse(target) if isinstance(target, str) else target
    argv = resolve_argv(destination, ssh_config)
    if memory is None:
        return parse_resolved(destination, _answer(argv, destination)[0])
    from swarmctl.fleet.ssh_memory import remembered

    said = remembered(memory, argv, lambda: _answer((argv[0], "-v", *argv[1:]), destination))
    return parse_resolved(destination, said)


def _answer(argv: Sequence[str], destination: Destination) -> tuple[str, str]:
    """What `ssh -G` says, and its stderr."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=RESOLVE_TIMEOUT,
                              check=False)
    except FileNotFoundError as exc:
        raise SwarmError("the OpenSSH client `ssh` is not on PATH", hint="install openssh-client") from exc
    except subprocess.TimeoutExpired as exc:
        raise HostUnreachable(f"`{shlex.join(argv)}` did not end within {RESOLVE_TIMEOUT:g} s",
                              host=destination.host,
                              hint="look for a `Match exec` in the SSH config") from exc
    stderr = done.stderr.decode(errors="replace")
    if done.returncode != 0:
        said = [line for line in stderr.splitlines() if not line.startswith(("debug1: ", "OpenSSH_"))]
        raise SwarmError(f"OpenSSH cannot read its config for this host: {' '.join(said).strip()}",
                         host=destination.host)
    return done.stdout.decode(errors="replace"), stderr


def resolve_argv(destination: Destination, ssh_config: str | None) -> tuple[str, ...]:
    """The command that resolves a destination."""
    return ("ssh", "-G", *config_argv(ssh_config), *destination.argv)


def parse_resolved(destination: Destination, text: str) -> Resolved:
    """Read the output of `ssh -G`: one `key value` a line, repeated for lists such as identityfile."""
    options: dict[str, tuple[str, ...]] = {}
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        options[key.lower()] = (*options.get(key.lower(), ()), value)
    return Resolved(destination, options["hostname"][0], int(options["port"][0]), options["user"][0], options)


def config_argv(ssh_config: str | None) -> tuple[str, ...]:
    """`-F file`, or nothing."""
    return ("-F", str(Path(ssh_config).expanduser())) if ssh_config else ()


def client_argv(resolved: Resolved, *, known_hosts: Path, ssh_config: str | None,
                connect_timeout: float) -> tuple[str, ...]:
    """The start of an `ssh` command to that host: no prompts, strict host keys (ours, then the user's), a
    timeout.

    The destination and what to do there follow. `ssh` gives its command line precedence over the config file.
    """
    files = (str(known_hosts), *split_paths(resolved.option("userknownhostsfile") or ""))
    options = (
        "BatchMode=yes",
        "StrictHostKeyChecking=yes",
        f"UserKnownHostsFile={' '.join(quote_path(name) for name in files)}",
        "UpdateHostKeys=no",
        f"ConnectTimeout={max(1, round(connect_timeout))}",
        "ConnectionAttempts=1",
        "ServerAliveInterval=3",
        "ServerAliveCountMax=2",
        "LogLevel=ERROR",
    )
    return ("ssh", *config_argv(ssh_config), *(part for option in options for part in ("-o", option)))


def look_argv(resolved: Resolved, command: str, *, known_hosts: Path, ssh_config: str | None,
              connect_timeout: float) -> tuple[str, ...]:
    """The `ssh` command that runs a shell command on a connection of its own, and leaves nothing behind. Of
    the user's key exchanges it offers first the one that paramiko makes too: the first choice of OpenSSH 9.2
    costs five times the CPU, for a connection that says once what a host is."""
    own = ("ControlMaster=no", "ControlPath=none", "ClearAllForwardings=yes", "ForwardAgent=no",
           "ForwardX11=no", "PermitLocalCommand=no", "RemoteCommand=none", "RequestTTY=no", *_quick(resolved))
    start = client_argv(resolved, known_hosts=known_hosts, ssh_config=ssh_config,
                        connect_timeout=connect_timeout)
    return (*start, *(part for option in own for part in ("-o", option)), *resolved.destination.argv, command)


def _quick(resolved: Resolved) -> tuple[str, ...]:
    """The key exchanges that the user's config allows, the quick one first."""
    allowed = (resolved.option("kexalgorithms") or "").split(",")
    if QUICK not in allowed:
        return ()
    return (f"KexAlgorithms={','.join((QUICK, *(name for name in allowed if name != QUICK)))}",)


def jump_argv(target: Resolved, *, lookup: Callable[[str], Resolved], known_hosts: Path,
              ssh_config: str | None,
              connect_timeout: float, depth: int = MAX_JUMPS) -> tuple[str, ...] | None:
    """The `ssh -W` that carries bytes to `target` through its jump hosts; None where it has none.

    OpenSSH starts the same by itself, but hands neither our known_hosts nor BatchMode down to the inner hops.
    """
    if not target.jumps:
        return None
    if depth == 0:
        raise HostUnreachable(f"more than {MAX_JUMPS} jump hosts: does ProxyJump go in a circle?",
                              host=target.destination.host)
    *before, last = target.jumps
    via = lookup(last)
    if before:
        via = replace(via, options={**via.options, "proxyjump": (",".join(before),)})
    inner = jump_argv(via, lookup=lookup, known_hosts=known_hosts, ssh_config=ssh_config,
                      connect_timeout=connect_timeout, depth=depth - 1)
    start = client_argv(via, known_hosts=known_hosts, ssh_config=ssh_config, connect_timeout=connect_timeout)
    host = f"[{target.hostname}]" if ":" in target.hostname else target.hostname
    return (*start, *proxy_option(inner), "-W", f"{host}:{target.port}", *via.destination.argv)


def hop_names(target: Resolved, lookup: Callable[[str], Resolved]) -> dict[str, str]:
    """What `ssh` calls each jump host in its messages (known_hosts name, host name), to the name people
    write."""
    found: dict[str, str] = {}
    for hop in target.jumps:
        via = lookup(hop)
        found.update({via.known_as: hop, via.hostname: hop})
    return found


def proxy_option(argv: Sequence[str] | None) -> tuple[str, ...]:
    """`-o ProxyCommand=…` for a command given as argv, or nothing."""
    return ("-o", f"ProxyCommand={shlex.join(argv).replace('%', '%%')}") if argv else ()


def proxy_command(resolved: Resolved) -> str | None:
    """ProxyCommand with its tokens filled in, as a line for the user's shell; None where there is none."""
    line = resolved.option("proxycommand")
    return None if line is None else resolved.expand(line)


def public_blobs(file: str) -> tuple[bytes, ...]:
    """The public key of an IdentityFile, read from beside it or, where only that is here, from the file
    itself."""
    for path in (Path(f"{file}.pub"), Path(file)):
        try:
            fields = path.read_text(encoding="ascii").split()
            return (b64decode(fields[1], validate=True),)
        except (OSError, UnicodeDecodeError, IndexError, ValueError):
            continue
    return ()


def quote_path(path: str) -> str:
    """A path as a value in a list of ssh_config: quoted, `%` doubled."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def split_paths(text: str) -> tuple[str, ...]:
    """Split a list of paths as `ssh -G` prints it: blank-separated and unquoted, so a path with blanks is
    found by joining pieces until a file of that name exists."""
    pieces = [piece for piece in text.split(" ") if piece and piece.lower() != "none"]
    found: list[str] = []
    while pieces:
        size = next((size for size in range(len(pieces), 1, -1) if _is_file(" ".join(pieces[:size]))), 1)
        found.append(str(Path(" ".join(pieces[:size])).expanduser()))
        del pieces[:size]
    return tuple(found)


def _is_file(path: str) -> bool:
    return Path(path).expanduser().is_file()
