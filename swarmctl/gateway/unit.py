"""The gateway as a service: a systemd user unit. Pure; the text alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

UNIT = "swarmctl-serve.service"
#: Seconds beyond the drain for exchanges to be recorded, before systemd kills.
GRACE = 15


def unit_text(argv: Sequence[str], environ: Mapping[str, str], drain: float) -> str:
    """A unit that runs `argv`. See systemd.service(5). Nothing is confined that the ask path needs: it opens
    SSH connections and writes the journal."""
    settings = [f"Environment={_quoted(f'{key}={value}')}" for key, value in sorted(environ.items())]
    words = [_quoted(word).replace("$", "$$") for word in argv]
    return "\n".join((
        "[Unit]",
        "Description=swarmctl: the gateway of this swarm",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=exec",
        *settings,
        f"ExecStart={' '.join(words)}",
        "Restart=on-failure",
        "RestartSec=2",
        "KillSignal=SIGTERM",
        "KillMode=mixed",
        f"TimeoutStopSec={round(drain) + GRACE}",
        "NoNewPrivileges=yes",
        "",
        "[Install]",
        "WantedBy=default.target",
        "",
    ))


def _quoted(word: str) -> str:
    """As systemd reads a word: quoted, with its own escapes. See systemd.syntax(7). A dollar means something
    in a command line alone."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'
