"""One thing that is wrong, as a person needs to hear it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from swarmctl.inventory import Host

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True, slots=True)
class Finding:
    """`what` is wrong, the `seen` evidence, `why` it matters, the command that mends it (`mend`). `rule` is
    its stable name for programs. An error costs answers or lets strangers in; a warning will."""

    host: str
    rule: str
    severity: Severity
    what: str
    seen: str
    why: str
    mend: str


def through(finding: Finding, host: Host, ssh_config: str | None) -> Finding:
    """The finding with an SSH config named in its command, where the inventory has one of its own."""
    if ssh_config is None:
        return finding
    mend = finding.mend.replace(f"ssh {host.ssh} ", f"ssh -F {shlex.quote(ssh_config)} {host.ssh} ")
    return replace(finding, mend=mend)


def there(host: Host, command: str) -> str:
    """The command as a person types it here to run it on that host."""
    if host.local:
        return command
    plain = re.fullmatch(r"[-A-Za-z0-9 _./=:,+@%]*", command)
    return f"ssh {host.ssh} {command if plain else shlex.quote(command)}"
