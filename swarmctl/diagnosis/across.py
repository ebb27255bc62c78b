"""What only shows when hosts are compared: versions that drifted apart. Pure."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

from swarmctl.diagnosis.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from swarmctl.diagnosis.examined import Patient

RUNTIMES = {"llama.cpp": "llamacpp", "Ollama": "ollama"}
WHY = "one model with one seed answers differently from host to host, and a defect is there on one only"


def swarm_findings(patients: Iterable[Patient]) -> tuple[Finding, ...]:
    """One finding for each host whose version is not the one that most hosts have (of equals, the newest)."""
    known = tuple(patients)
    theirs = {p.host.name for p in known for one in p.facts.ollamas if one.mode != "own"}
    return (*_drift("llama.cpp", {p.host.name: v for p in known if (v := _llamacpp(p))}, frozenset()),
            *_drift("Ollama", {p.host.name: v for p in known if (v := _ollama(p))}, frozenset(theirs)))


def _drift(name: str, versions: Mapping[str, str], adopted: frozenset[str]) -> Iterator[Finding]:
    counts = Counter(versions.values())
    if len(counts) < 2:
        return
    usual = max(counts, key=lambda version: (counts[version], _order(version)))
    others = ", ".join(sorted(host for host, version in versions.items() if version == usual))
    for host, version in sorted(versions.items()):
        if version != usual:
            yield Finding(host, "drift", "warning", f"its {name} is another version than the rest's",
                          f"{version} here, {usual} on {others}", WHY,
                          f"install {name} {usual} on {host}, the way the old one was installed"
                          if host in adopted else
                          f"swarmctl upgrade {host} --runtime {RUNTIMES[name]} --to {usual}")


def _llamacpp(patient: Patient) -> str:
    """The version of the build in use, else of the newest installed; a build's key begins with it."""
    used = [exam.argv[0].rpartition("/bin/")[0].rpartition("/")[2]
            for exam in patient.examined.servers if exam.argv and exam.argv[0].endswith("/llama-server")]
    keys = used or [runtime.key for runtime in patient.facts.runtimes]
    found = [key.partition("-")[0] for key in keys]
    return max(found, key=_order, default="")


def _ollama(patient: Patient) -> str:
    running = [one.version for one in patient.facts.ollamas if one.version]
    return min(running, key=_order) if running else patient.facts.ollama or ""


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]{1,9}", version))
