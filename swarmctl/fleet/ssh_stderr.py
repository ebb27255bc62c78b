"""What the OpenSSH client says on stderr, as our errors.

`ssh` ends with 255 whatever happened, so its text is all there is; it is never localised. Only failures are read
from text: success is an exit status.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from swarmctl.errors import AuthenticationFailed, HostKeyChanged, HostKeyUnknown, HostUnreachable

if TYPE_CHECKING:
    from swarmctl.errors import RemoteError

AUTHENTICATION_HINT = ("`ssh -o BatchMode=yes {host} true` must succeed: check User and IdentityFile in the SSH config, "
                       "or load the key with ssh-add")
UNREACHABLE_HINT = "is it switched on, and does `ssh {host}` reach it from here?"


def error_from_stderr(text: str, host: str, hops: tuple[str, ...] = ()) -> RemoteError:
    """The error that a failed `ssh` means. `hops` are the jump hosts in between: an error of one names that one."""
    said = " ".join(text.replace("\r", "\n").split())
    if "IDENTIFICATION HAS CHANGED" in said or "REVOKED HOST KEY" in said:
        return key_changed(_blamed(said, host, hops), _presented(said))
    if "Host key verification failed" in said:
        return key_unknown(_blamed(said, host, hops), _presented(said))
    if re.search(r"Permission denied|Too many authentication failures|No more authentication methods", said):
        blamed = _blamed(said, host, hops)
        return AuthenticationFailed(f"it refuses every key offered ({_short(said)})", host=host,
                                    hint=AUTHENTICATION_HINT.format(host=blamed))
    return HostUnreachable(f"no SSH connection ({_short(said)})", host=host, hint=UNREACHABLE_HINT.format(host=host))


def key_unknown(host: str, presented: str) -> HostKeyUnknown:
    """A key that no known_hosts file holds."""
    shown = f" ({presented})" if presented else ""
    return HostKeyUnknown(f"its host key{shown} is in no known_hosts file", host=host,
                          hint=f"compare it on the machine itself, then accept it: swarmctl trust {host}")


def key_changed(host: str, presented: str, recorded: str = "") -> HostKeyChanged:
    """Another key than the recorded one."""
    was = f", recorded is {recorded}" if recorded else ""
    return HostKeyChanged(
        f"its host key has changed: it presents {presented or 'another key'}{was}", host=host,
        hint=f"reinstalled? Then: swarmctl trust {host} --replace\n"
             "If you know of no reason, somebody may be in between: do not connect.")


def _blamed(said: str, host: str, hops: tuple[str, ...]) -> str:
    """The jump host that the text names, else the host itself."""
    named = re.findall(r"host key is known for (\S+)|Host key for (\S+) has changed|^(\S+): Permission", said)
    names = {name.strip("[]").split("]")[0] for found in named for name in found if name}
    return next((hop for hop in hops if hop.split("@")[-1].split(":")[0] in names), host)


def _presented(said: str) -> str:
    found = re.search(r"SHA256:[A-Za-z0-9+/]+", said)
    return found[0] if found else ""


def _short(said: str) -> str:
    return said[-200:] if said else "ssh gave no reason"
