"""What the OpenSSH client says on stderr, as our errors.

`ssh` ends with 255 whatever happened, so its text is all there is; it is never localised. Only failures are
read from text: success is an exit status.
"""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING

from swarmctl.errors import AuthenticationFailed, HostKeyChanged, HostKeyUnknown, HostUnreachable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.errors import RemoteError

AUTHENTICATION_HINT = ("`ssh -o BatchMode=yes {ssh} true` must succeed: check User and IdentityFile "
                       "in the SSH config, or load the key with ssh-add")
UNREACHABLE_HINT = "is it switched on, and does `ssh {ssh}` reach it from here?"


def error_from_stderr(text: str, host: str, ssh: str, hops: Mapping[str, str] | None = None, *,
                      ssh_config: str | None = None) -> RemoteError:
    """The error that a failed `ssh` to a host's `ssh` destination means. `hops` maps what `ssh` calls the
    jump hosts in between to the names that people write: an error of one is told with that one's name."""
    said = " ".join(text.replace("\r", "\n").split())
    hop = _blamed(said, hops or {})
    where = f"at the jump host {hop}: " if hop else ""
    if "IDENTIFICATION HAS CHANGED" in said or "REVOKED HOST KEY" in said:
        return key_changed(host, _presented(said), name=hop)
    if "Host key verification failed" in said:
        return key_unknown(host, _presented(said), name=hop)
    if re.search(r"Permission denied|Too many authentication failures|No more authentication methods", said):
        return AuthenticationFailed(f"{where}it refuses every key offered ({_short(said)})", host=host,
                                    hint=AUTHENTICATION_HINT.format(ssh=as_typed(hop or ssh, ssh_config)))
    return HostUnreachable(f"{where}no SSH connection ({_short(said)})", host=host,
                           hint=UNREACHABLE_HINT.format(ssh=as_typed(hop or ssh, ssh_config)))


def as_typed(ssh: str, ssh_config: str | None) -> str:
    """What follows `ssh` where a person goes the same way by hand."""
    return f"-F {shlex.quote(ssh_config)} {ssh}" if ssh_config else ssh


def key_unknown(host: str, presented: str, *, name: str | None = None) -> HostKeyUnknown:
    """A key that no known_hosts file holds. `name` is the jump host where that is whose key it is."""
    shown = f" ({presented})" if presented else ""
    return HostKeyUnknown(
        f"{_whose(host, name)} host key{shown} is in no known_hosts file", host=host,
        hint=f"compare it on the machine itself, then accept it: swarmctl trust {name or host}")


def key_changed(host: str, presented: str, recorded: str = "", *, name: str | None = None) -> HostKeyChanged:
    """Another key than the recorded one. `name` as in key_unknown."""
    was = f", recorded is {recorded}" if recorded else ""
    return HostKeyChanged(
        f"{_whose(host, name)} host key has changed: it presents {presented or 'another key'}{was}",
        host=host,
        hint=f"reinstalled? Then: swarmctl trust {name or host} --replace\n"
             "If you know of no reason, somebody may be in between: do not connect.")


def _whose(host: str, name: str | None) -> str:
    return "its" if name in {None, host} else f"its jump host {name}'s"


def _blamed(said: str, hops: Mapping[str, str]) -> str | None:
    """The jump host that the text names."""
    for known_as, name in hops.items():
        told = (f"is known for {known_as} ", f"Host key for {known_as} ", f"@{known_as}: Permission",
                f"connect to host {known_as} ")
        if any(words in said for words in told):
            return name
    return None


def _presented(said: str) -> str:
    found = re.search(r"SHA256:[A-Za-z0-9+/]+", said)
    return found[0] if found else ""


def _short(said: str) -> str:
    """Its last words: what was wrong stands at the end."""
    if len(said) <= 200:
        return said or "ssh gave no reason"
    return "… " + said[-200:].partition(" ")[2]
