"""Contradictions between entries that are each well-formed: unknown models, ports that meet, watts that
cannot be."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from swarmctl.inventory.reading import Problem, field_name
from swarmctl.inventory.wishes import DEFAULT_DATA_DIR, DEFAULT_PORT, OLLAMA_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from swarmctl.inventory.reading import Path


def contradictions(raw: Mapping[str, Any], lines: Mapping[Path, int]) -> list[Problem]:
    """Every contradiction in what the reader could read. `lines` is the reader's."""
    models: Mapping[str, Any] = raw.get("models", {})
    hosts: Mapping[str, Any] = raw.get("hosts", {})
    found = [*_unhashed(models), *_unknown_models(hosts, {name for *_, name in _under(lines, "models")}),
             *_shared_ports(hosts, models), *_runtimes(hosts, models), *_shared_folders(hosts),
             *_watts(hosts), *_sleep(hosts, {name for *_, name in _under(lines, "hosts")})]
    return [Problem(_line(lines, path), field_name(path), text) for path, text in found]


def placed_runtime(host: Mapping[str, Any], placement: Mapping[str, Any], source: str) -> str:
    """What serves a placement: the runtime it names; Ollama for what only Ollama can fetch, and where the
    host names nothing else; else llama.cpp."""
    only_ollama = "ollama" in host and "llamacpp" not in host
    default = "ollama" if only_ollama or source.startswith("ollama:") else "llamacpp"
    return str(placement.get("runtime", default))


def _placed(hosts: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[
        tuple[str, int, Mapping[str, Any], Mapping[str, Any], str]]:
    """Host, position, placement, the host's entry and the runtime of everything placed."""
    for host, entry in hosts.items():
        for index, placement in enumerate(entry.get("models", ())):
            source = models.get(placement.get("model", ""), {}).get("source", "")
            yield host, index, placement, entry, placed_runtime(entry, placement, source)


def _runtimes(hosts: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """What a runtime cannot do."""
    for host, index, placement, _, runtime in _placed(hosts, models):
        source = models.get(placement.get("model", ""), {}).get("source", "")
        path: Path = ("hosts", host, "models", index)
        if runtime == "llamacpp" and source.startswith("ollama:"):
            yield (*path, "runtime"), f"{source} is for Ollama; leave runtime out, or name another source"
        if runtime == "llamacpp" and placement.get("model") == "ollama":
            yield path, "a server of llama.cpp may not be called ollama; give the model another name"
        if runtime == "ollama" and "port" in placement:
            yield (*path, "port"), "one Ollama serves all of a host's models; use ollama.port"
        if runtime == "ollama" and "flags" in placement:
            yield (*path, "flags"), "these are llama-server's options; use ollama.env, or runtime: llamacpp"


def _under(lines: Mapping[Path, int], key: str) -> list[tuple[str, str]]:
    """The names under a top-level table, also those whose entry is wrong: one mistake is one problem."""
    return [(key, str(path[1])) for path in lines if len(path) == 2 and path[0] == key]


def _line(lines: Mapping[Path, int], path: Path) -> int:
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _unhashed(models: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    for name, model in models.items():
        if model.get("source", "").startswith("https://") and "sha256" not in model:
            yield ("models", name, "source"), "a download needs sha256: with the publisher's hash"


def _unknown_models(hosts: Mapping[str, Any], known: set[str]) -> Iterator[tuple[Path, str]]:
    for host, entry in hosts.items():
        seen: set[str] = set()
        for index, placement in enumerate(entry.get("models", ())):
            name = placement.get("model")
            if name is None:
                continue
            if name not in known:
                close = get_close_matches(name, sorted(known), n=1)
                there = f"did you mean {close[0]}?" if close else (
                    f"there are {', '.join(sorted(known)[:10])}" if known else "there are no models yet")
                yield ("hosts", host, "models", index), f"no model {name} under models; {there}"
            elif name in seen:
                yield ("hosts", host, "models", index), f"{name} is placed twice; raise its parallel instead"
            seen.add(name)


def _shared_ports(hosts: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    taken: dict[tuple[str, int], str] = {}
    for host, entry in hosts.items():
        if "ollama" in entry:
            port = entry["ollama"].get("port", OLLAMA_PORT)
            yield from _meets(taken, entry.get("ssh", host), port, ("hosts", host, "ollama"))
    for host, index, placement, entry, runtime in _placed(hosts, models):
        if runtime == "ollama":
            continue
        port = placement.get("port", entry.get("llamacpp", {}).get("port", DEFAULT_PORT) + index)
        path: Path = ("hosts", host, "models", index)
        if port > 65535:
            yield path, f"would listen on port {port}; give llamacpp a lower port"
        yield from _meets(taken, entry.get("ssh", host), port, path)


def _meets(taken: dict[tuple[str, int], str], machine: str, port: int,
           path: Path) -> Iterator[tuple[Path, str]]:
    other = taken.setdefault((machine, port), field_name(path))
    if other != field_name(path):
        yield path, f"port {port} of this machine is taken by {other}; give one another port"


def _shared_folders(hosts: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    taken: dict[tuple[str, str], str] = {}
    for host, entry in hosts.items():
        folder = entry.get("data_dir", DEFAULT_DATA_DIR).rstrip("/")
        other = taken.setdefault((entry.get("ssh", host), folder), host)
        if other != host:
            yield ("hosts", host), f"same machine and data_dir as {other}; merge them or change one data_dir"


def _watts(hosts: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    for host, entry in hosts.items():
        energy = entry.get("energy", {})
        if energy.get("idle_watts", 0) > energy.get("load_watts", float("inf")):
            yield ("hosts", host, "energy", "load_watts"), "less than idle_watts; swap the two?"


def _sleep(hosts: Mapping[str, Any], known: set[str]) -> Iterator[tuple[Path, str]]:
    """What is said of sleep without what it takes."""
    for host, entry in hosts.items():
        sleeps = entry.get("when_idle", "nothing") != "nothing"
        if sleeps and "idle_minutes" not in entry:
            yield ("hosts", host, "when_idle"), "needs idle_minutes: after how many it sleeps"
        if sleeps and not entry.get("intermittent"):
            yield ("hosts", host, "when_idle"), "needs intermittent: true, so that nobody waits for it"
        if sleeps and entry.get("ssh") == "local":
            yield ("hosts", host, "when_idle"), "this is the machine that would have to wake it; leave it out"
        if entry.get("wake_on_demand") and "mac" not in entry:
            yield ("hosts", host, "wake_on_demand"), "needs mac: the address that wakes it"
        if (via := entry.get("wake_via")) and (via not in known or via == host):
            why = "itself asleep then" if via == host else "no host"
            yield ("hosts", host, "wake_via"), f"{via} is {why}"
