"""The Ollama servers of a host: what they say of themselves, and how each runs."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from swarmctl.facts.sections import number
from swarmctl.facts.seen import OllamaLoaded, OllamaModel, OllamaSeen

if TYPE_CHECKING:
    from swarmctl.facts.sections import Sections
    from swarmctl.facts.seen import Listener, ServerSeen

#: the folder under data_dir/servers/ of the Ollama that swarmctl runs
OWN = "ollama"


def ollamas_seen(sections: Sections, servers: tuple[ServerSeen, ...],
                 listeners: tuple[Listener, ...]) -> tuple[OllamaSeen, ...]:
    """Every Ollama that answered, by port."""
    groups: list[dict[str, str]] = []
    for line in sections.get("ollama", ()):
        key, _, value = line.partition(" ")
        if key == "ollama" and number(value) is not None:
            groups.append({"port": value.strip()})
        elif groups:
            groups[-1].setdefault(key, value.strip())
    own = next((server.pid for server in servers if server.name == OWN), None)
    found = [_seen(group, own, listeners) for group in groups]
    return tuple(sorted((one for one in found if one), key=lambda one: one.port))


def _seen(group: dict[str, str], own: int | None, listeners: tuple[Listener, ...]) -> OllamaSeen | None:
    port = int(group["port"])
    version = _object(group.get("version", "")).get("version") or _version_words(group)
    if not isinstance(version, str):
        return None
    here = [one for one in listeners if one.port == port]
    pid = number(group.get("pid", "")) or next((one.pid for one in here if one.pid), None)
    user = group.get("user") or next((one.user for one in here if one.user), None)
    return OllamaSeen(
        port=port, version=version[:40], mode=_mode(group, pid, own), pid=pid,
        user=user if user != "-" else None,
        exposed=any(one.exposed for one in here),
        models=_models(group.get("tags", "")) or _models_words(group.get("list-words", "")),
        loaded=_loaded(group.get("ps", "")) or _loaded_words(group.get("ps-words", "")))


def _mode(group: dict[str, str], pid: int | None, own: int | None) -> str:
    """How it runs. Without its pid, systemd's word and Docker's list of ports decide."""
    unit = dict(re.findall(r"(\w+)=(\S+)", group.get("unit", "")))
    cgroup, arguments = group.get("cgroup", ""), group.get("arguments", "")
    if own is not None and pid in (own, None):
        return "own"
    if "docker" in group or "docker" in arguments or re.search(r"docker|containerd|libpod", cgroup):
        return "docker"
    if "ollama.service" in cgroup or (pid is not None and unit.get("MainPID") == str(pid)):
        return "systemd"
    if pid is None and unit.get("ActiveState") == "active":
        return "systemd"
    return "app" if "Ollama.app/" in arguments else "process"


def _models(text: str) -> tuple[OllamaModel, ...]:
    found = [OllamaModel(raw["name"], str(raw.get("digest", "")), _size(raw.get("size")),
                         str(_details(raw).get("quantization_level") or ""))
             for raw in _listed(text)]
    return tuple(sorted(found, key=lambda one: one.name))


def _loaded(text: str) -> tuple[OllamaLoaded, ...]:
    found = [OllamaLoaded(raw["name"], _size(raw.get("size")), _size(raw.get("size_vram")))
             for raw in _listed(text)]
    return tuple(sorted(found, key=lambda one: one.name))


def _version_words(group: dict[str, str]) -> str | None:
    said = re.match(r"ollama version is (\S{1,40})", group.get("version-words", ""))
    return said[1] if said else None


def _models_words(text: str) -> tuple[OllamaModel, ...]:
    """`ollama list`: NAME, ID (the first twelve digits), SIZE, MODIFIED."""
    return tuple(sorted((OllamaModel(row["NAME"], row["ID"], _bytes(row["SIZE"]))
                         for row in _rows(text, "NAME", "ID", "SIZE")), key=lambda one: one.name))


def _loaded_words(text: str) -> tuple[OllamaLoaded, ...]:
    """`ollama ps`: NAME, ID, SIZE, PROCESSOR, CONTEXT, UNTIL. PROCESSOR is `100% CPU`, `100% GPU`, or a split
    as in `48%/52% CPU/GPU` (cmd/cmd.go, ListRunningHandler)."""
    found = []
    for row in _rows(text, "NAME", "SIZE", "PROCESSOR"):
        said = re.fullmatch(r"(?:([0-9]{1,3})%/)?([0-9]{1,3})% (CPU/GPU|GPU|CPU)", row["PROCESSOR"])
        if said:
            size = _bytes(row["SIZE"])
            share = 0 if said[3] == "CPU" else int(said[2])
            found.append(OllamaLoaded(row["NAME"], size, size if share >= 100 else size * share // 100))
    return tuple(sorted(found, key=lambda one: one.name))


def _rows(text: str, *needed: str) -> list[dict[str, str]]:
    """A table of ollama's client: columns are at least two spaces apart, and a cell has single ones at
    most."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.split("\t") if line.strip()]
    if not lines or not set(needed) <= set(lines[0]):
        return []
    return [dict(zip(lines[0], cells, strict=False)) for cells in lines[1:] if len(cells) >= len(needed)]


def _bytes(text: str) -> int:
    """`5.2 GB`, in powers of a thousand (format/bytes.go, HumanBytes)."""
    said = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?) (B|KB|MB|GB|TB)", text)
    return int(float(said[1]) * 1000 ** ("B", "KB", "MB", "GB", "TB").index(said[2])) if said else 0


def _listed(text: str) -> list[dict[str, Any]]:
    models = _object(text).get("models")
    if not isinstance(models, list):
        return []
    return [one for one in models if isinstance(one, dict) and isinstance(one.get("name"), str)]


def _details(raw: dict[str, Any]) -> dict[str, Any]:
    details = raw.get("details")
    return details if isinstance(details, dict) else {}


def _size(value: object) -> int:
    return value if type(value) is int and 0 <= value < 1 << 62 else 0


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
