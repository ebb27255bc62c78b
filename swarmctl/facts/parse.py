"""The probe's text → Facts. Judgement lives here: the shell script only quotes what it sees."""

from __future__ import annotations

import re
from math import isfinite
from typing import TYPE_CHECKING

from swarmctl.errors import SwarmError
from swarmctl.facts.disks import data_disk, real_disks
from swarmctl.facts.gpus import gpus_seen
from swarmctl.facts.listeners import listeners_seen
from swarmctl.facts.ollama import ollamas_seen
from swarmctl.facts.own import (
    blobs_seen,
    manifests_seen,
    runtimes_seen,
    servers_seen,
    speeds_seen,
    versions_seen,
)
from swarmctl.facts.processor import cpu_seen, memory_seen
from swarmctl.facts.runners import runners_seen
from swarmctl.facts.seen import Facts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.facts.sections import Sections

from swarmctl.facts.sections import number, pairs, split_sections

#: What a longer answer could hold is noise; 300 servers and 5,000 blobs are under 2 MB.
LONGEST = 16_000_000
VERSION_MARKS = {"nvcc": ("release ",), "hipcc": ("HIP version: ",),
                 "ollama": ("client version is ", "version is ")}


def parse_facts(text: str) -> Facts:
    """Read what fleet/probe.sh printed; anything before its first line (a login banner) is skipped.

    Raises SwarmError where it is not a whole answer of the probe.
    """
    sections = split_sections(text[:LONGEST])
    if sections is None:
        raise SwarmError("its answer to the survey is none",
                         hint="does its login shell run something else? `ssh HOST echo ok` should print ok")
    if "end" not in sections:
        raise SwarmError("its answer to the survey was cut off", hint="run it again")
    return _facts(sections)


def _facts(sections: Sections) -> Facts:
    host = pairs(sections, "host")
    for key in ("system", "machine", "user", "uid", "home", "data_dir"):
        if not host.get(key):
            raise SwarmError(f"its answer to the survey lacks {key}")
    cpu = cpu_seen(sections)
    memory = memory_seen(sections)
    gpus, problems = gpus_seen(sections, cpu.model, memory.total)
    disk, disk_problems = data_disk(sections, host["data_dir"])
    tools, paths = _tools(sections)
    listeners = listeners_seen(sections, host["user"], host["uid"])
    servers = servers_seen(sections, host["data_dir"])
    return Facts(
        hostname=host.get("hostname", ""), system=host["system"], release=host.get("release", ""),
        machine=host["machine"], user=host["user"], uid=number(host["uid"]) or 0, home=host["home"],
        data_dir=host["data_dir"], cpu=cpu, memory=memory.total, memory_available=memory.available,
        swap_used=memory.swap_used, disk=disk, os_name=_os_name(sections), libc=_libc(sections),
        clock=float(number(host.get("clock", "")) or 0), uptime=_uptime(host),
        disks=real_disks(sections, host["home"]), gpus=gpus, tools=tools, tool_paths=paths,
        listeners=listeners, runtimes=runtimes_seen(sections), versions=versions_seen(sections),
        blobs=blobs_seen(sections), servers=servers,
        runners=runners_seen(sections),
        ollama=tools.get("ollama"), ollamas=ollamas_seen(sections, servers, listeners),
        ollama_kept=manifests_seen(sections), ollama_lacking=manifests_seen(sections, "lacking"),
        ollama_speeds=speeds_seen(sections),
        systemd_user=_systemd_user(sections),
        problems=(*problems, *disk_problems, *_unread(memory.total)),
    )


def _unread(memory: int) -> tuple[str, ...]:
    return () if memory else ("it does not say how much memory it has: the survey needs awk and /proc there",)


def _os_name(sections: Sections) -> str:
    text = "\n".join(sections.get("os", ()))
    pretty = re.search(r'^PRETTY_NAME="?([^"\n]*)', text, re.MULTILINE)
    if pretty:
        return pretty[1]
    mac = re.search(r"^ProductVersion:\s*(\S+)", text, re.MULTILINE)
    return f"macOS {mac[1]}" if mac else ""


def _libc(sections: Sections) -> str:
    text = "\n".join(sections.get("libc", ()))
    musl = re.search(r"^Version ([0-9.]+)", text, re.MULTILINE) if "musl" in text else None
    if musl:
        return f"musl {musl[1]}"
    glibc = re.search(r"(?:^glibc |GNU libc\) |GLIBC [^)]*\) )([0-9]+\.[0-9]+)", text, re.MULTILINE)
    return f"glibc {glibc[1]}" if glibc else ""


def _uptime(host: Mapping[str, str]) -> float | None:
    seconds = re.match(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)", host.get("uptime", ""))
    if seconds:
        return float(seconds[1])
    boot = re.search(r"\bsec = ([0-9]{1,15})", host.get("boottime", ""))
    clock = number(host.get("clock", ""))
    return float(clock - int(boot[1])) if boot and clock is not None and isfinite(clock) else None


def _tools(sections: Sections) -> tuple[dict[str, str], dict[str, str]]:
    versions: dict[str, str] = {}
    paths: dict[str, str] = {}
    last = ""
    for line in sections.get("tools", ()):
        word, _, rest = line.partition(" ")
        if word == "tool":
            last, _, path = rest.partition(" ")
            versions[last], paths[last] = "", path
        elif word == "version" and last:
            found = re.search(r"\b[vV]?([0-9]{1,9}(?:\.[0-9]{1,9}){1,3})", _told(last, rest))
            versions[last] = found[1] if found else ""
    return versions, paths


def _told(tool: str, text: str) -> str:
    """The part of a tool's words that holds its version: nvcc and hipcc begin with dates and names."""
    for mark in VERSION_MARKS.get(tool, ()):
        if mark in text:
            return text.partition(mark)[2]
    return text


def _systemd_user(sections: Sections) -> bool:
    said = pairs(sections, "systemd")
    return said.get("user") in ("running", "degraded") and said.get("linger") == "yes"
