"""The files that make a server on a host: its command, its digest, its supervisor, its systemd unit. Pure.

Where a user's systemd works (and lingers), it keeps supervise.sh alive over crashes and reboots and bounds
its memory; elsewhere supervise.sh stands alone. Either way one script restarts the server and rotates its
log, so the files in servers/<name>/ mean the same.
"""

from __future__ import annotations

import io
import shlex
import tarfile
from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.steps import ServerSpec


def server_files(spec: ServerSpec, data_dir: str, supervisor: str,
                 memory: int | None = None) -> dict[str, str]:
    """Name → text of everything that goes into data_dir/servers/<name>/. `digest` comes last: it seals the
    rest."""
    files = {"run": run_script(spec), "supervise.sh": supervisor, "mode": spec.mode + "\n"}
    if spec.mode == "systemd":
        files["unit"] = unit_text(spec, data_dir, memory)
    return {**files, "digest": spec.digest + "\n"}


def run_script(spec: ServerSpec) -> str:
    """The server's command as a script: its environment, then exec, so that the pid stays."""
    exports = [f"export {key}={shlex.quote(value)}" for key, value in sorted(spec.env.items())]
    return "\n".join(("#!/bin/sh", *exports, f"exec {shlex.join(spec.argv)}", ""))


def unit_name(server: str, data_dir: str) -> str:
    """A unit name that two data folders of one user never share."""
    return f"swarmctl-{server}-{sha256(data_dir.encode()).hexdigest()[:8]}.service"


def unit_text(spec: ServerSpec, data_dir: str, memory: int | None) -> str:
    """A systemd user unit around the supervisor. See systemd.service(5) and systemd.resource-control(5)."""
    folder = f"{data_dir.rstrip('/')}/servers/{spec.name}"
    limit = [f"MemoryMax={memory}"] if memory is not None else []
    return "\n".join((
        "[Unit]",
        f"Description=swarmctl: {_plain(spec.model or 'Ollama')} on 127.0.0.1:{spec.port}",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=exec",
        f"ExecStart=/bin/sh {_quoted(folder + '/supervise.sh')} {_quoted(folder)}",
        "Restart=always",
        "RestartSec=2",
        "KillMode=mixed",
        "TimeoutStopSec=20",
        *limit,
        "",
        "[Install]",
        "WantedBy=default.target",
        "",
    ))


def archive(files: Mapping[str, str]) -> bytes:
    """The files as a tar, executable where they are scripts; the same files always give the same bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, text in files.items():
            data = text.encode()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o700 if name in ("run", "supervise.sh") else 0o600
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text).replace("%", "%%")


def _quoted(path: str) -> str:
    """As systemd reads a word: quoted, with its own escapes. See systemd.syntax(7)."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'
