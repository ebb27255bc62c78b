"""Accepting a host's key: fetched through the very road that will be used, shown, then recorded in our
known_hosts.

ssh-keyscan cannot pass a jump host, so OpenSSH itself is sent there with an empty known_hosts file to fill,
and no way to log in. Every jump host on the way must be trusted already.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.errors import HostUnreachable
from swarmctl.fleet.hostkeys import KnownKey, Verdict, fingerprint, judge, read_known_hosts, recorded, without
from swarmctl.fleet.ssh_config import client_argv, hop_names, jump_argv, proxy_option, resolve
from swarmctl.fleet.ssh_stderr import error_from_stderr, key_changed

if TYPE_CHECKING:
    from swarmctl.fleet.ssh_config import Resolved
    from swarmctl.paths import Paths


@dataclass(frozen=True, slots=True)
class Offer:
    """The key a host presents now, beside what is recorded. `line` is what would be added to known_hosts."""

    host: str
    known_as: str
    kind: str
    fingerprint: str
    line: str
    verdict: Verdict
    recorded: tuple[KnownKey, ...]


def offered_key(paths: Paths, *, host: str, ssh: str, ssh_config: str | None = None,
                connect_timeout: float = 5.0) -> Offer:
    """Ask a host for its key. Raises HostUnreachable, and the jump hosts' own errors."""
    resolved = resolve(ssh, ssh_config)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "known_hosts"
        said = _visit(resolved, file, paths, ssh_config, connect_timeout)
        found = read_known_hosts((file,))
        line = file.read_text(encoding="utf-8") if found else ""
    if not found:
        raise error_from_stderr(said, host, ssh, hop_names(resolved, lambda hop: resolve(hop, ssh_config)),
                                ssh_config=ssh_config)
    known = read_known_hosts((paths.known_hosts, *resolved.known_hosts))
    key = found[0]
    return Offer(host, resolved.known_as, key.kind, fingerprint(key.blob), line,
                 judge(known, resolved.known_as, key.blob),
                 recorded(known, resolved.known_as))


def trust(paths: Paths, offer: Offer, *, replace: bool = False) -> None:
    """Record the offered key. Where another one is recorded, only with `replace`, which drops ours.

    Raises HostKeyChanged without it, and for a key marked @revoked in any case.
    """
    if offer.verdict == "revoked" or (offer.verdict == "changed" and not replace):
        was = ", ".join(f"{key.kind} {fingerprint(key.blob)} ({key.file}:{key.line})"
                        for key in offer.recorded)
        raise key_changed(offer.host, f"{offer.kind} {offer.fingerprint}", was or "revoked")
    if offer.verdict == "known":
        return
    file = paths.known_hosts
    file.parent.mkdir(parents=True, exist_ok=True)
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    kept = without(text, offer.known_as) if replace else text
    part = file.with_name(f"{file.name}.{os.getpid()}.part")
    part.write_text(kept + ("" if kept.endswith("\n") or not kept else "\n") + offer.line, encoding="utf-8")
    part.replace(file)


def _visit(resolved: Resolved, file: Path, paths: Paths, ssh_config: str | None,
           connect_timeout: float) -> str:
    """Connect with nothing to log in with; ssh notes the key in `file`. What it said."""
    proxy = jump_argv(resolved, lookup=lambda hop: resolve(hop, ssh_config), known_hosts=paths.known_hosts,
                      ssh_config=ssh_config, connect_timeout=connect_timeout)
    argv = visit_argv(resolved, file, ssh_config=ssh_config, connect_timeout=connect_timeout, proxy=proxy)
    patience = connect_timeout * (2 + len(resolved.jumps))
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=patience,
                              check=False)
    except subprocess.TimeoutExpired as exc:
        raise HostUnreachable(f"it showed no key within {patience:g} s",
                              host=resolved.destination.host) from exc
    return done.stderr.decode(errors="replace")


def visit_argv(resolved: Resolved, file: Path, *, ssh_config: str | None, connect_timeout: float,
               proxy: tuple[str, ...] | None) -> tuple[str, ...]:
    """The command that has a host show its key. What is said first wins, so these options precede the usual
    ones."""
    first = ("StrictHostKeyChecking=accept-new", f'UserKnownHostsFile="{file}"',
             "GlobalKnownHostsFile=/dev/null",
             "HashKnownHosts=no", "CheckHostIP=no", "PreferredAuthentications=none", "ControlPath=none")
    options = tuple(part for option in first for part in ("-o", option))
    usual = client_argv(resolved, known_hosts=file, ssh_config=ssh_config, connect_timeout=connect_timeout)
    return (usual[0], *options, *usual[1:], *proxy_option(proxy), "-N", *resolved.destination.argv)
