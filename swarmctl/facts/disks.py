"""Filesystems, from `df -kP`, /proc/mounts and what the kernel says of each disk."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from swarmctl.facts.seen import Disk

if TYPE_CHECKING:
    from swarmctl.facts.sections import Sections

DF = re.compile(r"(.+?)\s+([0-9]{1,18})\s+-?[0-9]{1,18}\s+(-?[0-9]{1,18})\s+(?:[0-9]{1,9}%|-)\s+(/.*)",
                re.ASCII)


def data_disk(sections: Sections, data_dir: str) -> tuple[Disk, tuple[str, ...]]:
    """The filesystem that holds (or will hold) data_dir, and what is wrong with it."""
    lines = sections.get("data_disk", [])
    problems = [f"{data_dir} cannot be written: {line.partition(' ')[2]} belongs to somebody else"
                for line in lines if line.startswith("unwritable ")]
    for line in lines:
        disk = _disk(line, sections, None)
        if disk is not None:
            same = [other for other in real_disks(sections, "") if other.path == disk.path]
            return (same or [disk])[0], tuple(problems)
    said = next((line for line in lines if "unwritable" not in line), "no answer")
    unknown = f"the free space at {data_dir} is unknown: df said {said[:200]!r}"
    return Disk(data_dir, "", None, 0, 0), (unknown, *problems)


def real_disks(sections: Sections, home: str) -> tuple[Disk, ...]:
    """Every filesystem on a disk, once a device, with a folder this user may write to where there is one."""
    found: dict[str, Disk] = {}
    last: str | None = None
    for line in sections.get("disks", ()):
        word, _, rest = line.partition(" ")
        if word == "disk":
            spins, _, row = rest.partition(" ")
            disk = _disk(row, sections, {"0": False, "1": True}.get(spins))
            last = None
            if disk and not any(disk.device == other.device for other in found.values()):
                last = disk.path
                found[last] = disk
        elif word == "writable" and last and found[last].writable is None:
            found[last] = replace(found[last], writable=rest)
    holder = max((path for path in found if _holds(path, home)), key=len, default=None)
    if holder is not None and found[holder].writable is None:
        found[holder] = replace(found[holder], writable=home)
    return tuple(found.values())


def _holds(mount: str, path: str) -> bool:
    return bool(path) and (path + "/").startswith(mount.rstrip("/") + "/")


def _disk(row: str, sections: Sections, rotational: bool | None) -> Disk | None:
    match = DF.fullmatch(row.strip())
    if match is None:
        return None
    device, size, free, path = match.groups()
    kind = _filesystem(sections, path)
    return Disk(path, device, kind, int(size) * 1024, max(0, int(free)) * 1024, rotational)


def _filesystem(sections: Sections, path: str) -> str | None:
    kinds = [words[2] for line in sections.get("mounts", ())
             if len(words := line.split(" ")) >= 3 and _unescaped(words[1]) == path]
    return kinds[-1] if kinds else None


def _unescaped(path: str) -> str:
    """/proc/mounts writes spaces as \\040."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), path)


