"""What swarmctl itself keeps on a host: builds, blobs, servers. A pid counts only while it is still ours."""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import TYPE_CHECKING

from swarmctl.facts.sections import number, pairs
from swarmctl.facts.seen import BlobSeen, RuntimeSeen, ServerSeen, Speed, VersionChange

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from swarmctl.facts.sections import Sections

BUILD = re.compile(r"/runtimes/(?:llamacpp|ollama)/([^/\s]+)/bin/")
END_OF_NAME = re.compile(r"[/\s'\"]|$")
EVENTS = ("begun", "kept", "returned", "undecided", "rolled-back")


def runtimes_seen(sections: Sections) -> tuple[RuntimeSeen, ...]:
    """Complete builds under data_dir/runtimes/llamacpp/ and data_dir/runtimes/ollama/."""
    paths = [line.partition(" ")[2] for line in sections.get("runtimes", ()) if line.startswith("runtime /")]
    return tuple(RuntimeSeen(path.split("/")[-2], path.split("/")[-1], path) for path in paths
                 if path.split("/")[-2] in ("llamacpp", "ollama"))


def versions_seen(sections: Sections) -> tuple[VersionChange, ...]:
    """The end of versions.jsonl; a line that a full disk or a kill tore is none."""
    found = (_version_change(line) for line in sections.get("versions", ()))
    return tuple(change for change in found if change is not None)


def _version_change(line: str) -> VersionChange | None:
    try:
        raw: dict[str, Any] = json.loads(line)
        change = VersionChange(
            str(raw["runtime"]), str(raw["event"]), str(raw["version"]), str(raw["other"]),
            at=str(raw.get("at", "")), by=str(raw.get("by", "")),
            why=tuple(str(one) for one in raw.get("why", ())),
            before=_speeds(raw.get("before", {})), after=_speeds(raw.get("after", {})))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return change if change.event in EVENTS and change.version else None


def _speeds(raw: dict[str, Any]) -> dict[str, Speed]:
    found = {str(name): read_speed(json.dumps(speed)) for name, speed in raw.items()}
    return {name: speed for name, speed in found.items() if speed is not None}


def blobs_seen(sections: Sections) -> tuple[BlobSeen, ...]:
    """Blobs, from `ls -ln`: mode links uid gid size month day time name. Parts of transfers are none."""
    found = []
    for line in sections.get("blobs", ()):
        words = line.split()
        name = re.fullmatch(r"sha256-([0-9a-f]{64})", words[-1] if words else "")
        size = number(words[4]) if len(words) >= 9 and line.startswith("-") else None
        if name and size is not None:
            found.append(BlobSeen(name[1], size))
    return tuple(found)


def servers_seen(sections: Sections, data_dir: str) -> tuple[ServerSeen, ...]:
    """Servers under data_dir/servers/."""
    groups: list[dict[str, str]] = []
    for line in sections.get("servers", ()):
        key, _, value = line.partition(" ")
        if key == "server":
            groups.append({"name": value.strip()})
        elif groups:
            groups[-1].setdefault(key, value.strip())
    return tuple(_server(group, data_dir.rstrip("/")) for group in groups if group["name"])


def manifests_seen(sections: Sections, name: str = "manifests") -> tuple[str, ...]:
    """Names of the models in swarmctl's own Ollama, from its manifests: registry/namespace/model/tag. Those
    in the section `lacking` name a blob that is gone."""
    found = []
    for line in sections.get(name, ()):
        parts = line.strip().removeprefix("./").split("/")
        if len(parts) == 4 and all(parts):
            shown = [part for part, usual in zip(parts, ("registry.ollama.ai", "library"), strict=False)
                     if part != usual or parts[0] != "registry.ollama.ai"]
            found.append("/".join((*shown, f"{parts[2]}:{parts[3]}")))
    return tuple(sorted(found))


def speeds_seen(sections: Sections) -> dict[str, Speed]:
    """Speeds under data_dir/ollama/, by the part of the file's name that stands for the model."""
    found = {name.removesuffix(".json"): read_speed(text) for name, text in pairs(sections, "speeds").items()}
    return {name: speed for name, speed in found.items() if speed is not None}


def _server(group: dict[str, str], data_dir: str) -> ServerSeen:
    folder = f"{data_dir}/servers/{group['name']}"
    supervisor, _, arguments = _process(group.get("supervisor.pid", ""))
    if not _mentions(arguments, folder):
        supervisor = None
    pid, parent, arguments = _process(group.get("server.pid", ""))
    if not (supervisor is not None and parent == supervisor) and not _mentions(arguments, data_dir):
        pid = None
    return ServerSeen(
        name=group["name"], spec=group.get("digest", ""), supervisor=supervisor, pid=pid,
        restarts=number(group.get("restarts", "")) or 0,
        mode="systemd" if group.get("mode") == "systemd" else "own",
        speed=read_speed(group.get("speed.json", "")), build=_build(arguments, data_dir) if pid else "")


def _build(arguments: str, data_dir: str) -> str:
    """The key of the runtime whose program a command line names."""
    found = (BUILD.match(arguments, end) for end in _ends(arguments, data_dir))
    return next((match[1] for match in found if match), "")


def _process(text: str) -> tuple[int | None, int | None, str]:
    """PID PARENT ARGUMENTS, as the probe quotes a live process."""
    words = text.split(" ", 2)
    if len(words) < 3:
        return None, None, ""
    return number(words[0]), number(words[1]), words[2]


def _mentions(arguments: str, folder: str) -> bool:
    return any(END_OF_NAME.match(arguments, end) for end in _ends(arguments, folder))


def _ends(text: str, part: str) -> Iterator[int]:
    """Where each occurrence of `part` ends. Not a regex of its own: compiling one a host costs more than all
    the rest."""
    at = text.find(part)
    while at >= 0:
        yield at + len(part)
        at = text.find(part, at + 1)


def read_speed(text: str) -> Speed | None:
    """A line of speed.json; None where it is none."""
    try:
        raw = json.loads(text)
        values = {key: float(raw[key]) for key in ("prefill", "decode", "overhead", "load") if key in raw}
        speed = Speed(**values)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    return speed if all(isfinite(value) and value >= 0 for value in values.values()) else None
