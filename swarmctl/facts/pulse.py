"""What a host does at this moment: the probe's shortest answer → data. Pure.

`SWARMCTL_GLANCE=pulse` of fleet/probe.sh asks only for what changes by the second, for a sixth of a survey's
cost, so that it may be asked every few seconds. NVIDIA by nvidia-smi, AMD by amdgpu's files (Linux,
Documentation/gpu/amdgpu/thermal.rst): rocm-smi is a Python program and too dear for this.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmctl.errors import SwarmError
from swarmctl.facts.disks import data_disk
from swarmctl.facts.processor import cpu_seen, memory_seen
from swarmctl.facts.sections import number, split_sections

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmctl.facts.sections import Sections

MIB = 2**20
#: /proc/stat's first line: user nice system idle iowait irq softirq steal (proc(5)); guests count in user.
IDLE, STAT_FIELDS = (3, 4), 8
#: As long as a host's 300 GPUs would need.
LONGEST = 1_000_000


@dataclass(frozen=True, slots=True)
class GpuPulse:
    """A GPU now. Bytes, a share from 0 to 1, °C at the hottest sensor, watts; None where it does not say."""

    index: int
    name: str
    memory: int | None = None
    memory_used: int | None = None
    busy: float | None = None
    temperature: float | None = None
    power: float | None = None
    power_limit: float | None = None


@dataclass(frozen=True, slots=True)
class Pulse:
    """A host now. `load` is the load average of a minute, `ticks` (busy, all) of its processors since it
    started, in units of its own; memory and disk are bytes, the disk that of the data folder. `problem` is
    what nvidia-smi said instead of an answer."""

    threads: int
    load: float | None
    ticks: tuple[int, int] | None
    memory: int
    memory_available: int
    swap_used: int
    disk: int
    disk_free: int
    gpus: tuple[GpuPulse, ...] = ()
    problem: str = ""


def parse_pulse(text: str, data_dir: str) -> Pulse:
    """Read what fleet/probe.sh printed. Raises SwarmError where it is not a whole answer."""
    sections = split_sections(text[:LONGEST])
    if sections is None or "end" not in sections:
        raise SwarmError("its answer was cut off", hint="does its login shell run something else? "
                                                        "`ssh HOST echo ok` should print ok")
    memory = memory_seen(sections)
    disk, _ = data_disk(sections, data_dir)
    nvidia, problem = _nvidia(sections)
    gpus = (*nvidia, *_amd(sections, len(nvidia)))
    return Pulse(cpu_seen(sections).threads, _load(sections), _ticks(sections), memory.total,
                 memory.available, memory.swap_used, disk.size, disk.free, gpus, problem)


def busy_share(before: Pulse | None, now: Pulse) -> float | None:
    """The share of its processors' time that a host worked between two pulses, 0 to 1; None where that
    cannot be told (the first pulse, a restart, a system without /proc)."""
    if before is None or before.ticks is None or now.ticks is None:
        return None
    busy, spent = now.ticks[0] - before.ticks[0], now.ticks[1] - before.ticks[1]
    return min(1.0, busy / spent) if spent > 0 and busy >= 0 else None


def _load(sections: Sections) -> float | None:
    said = re.search(r"^load\s+([0-9]{1,6}[.,][0-9]{1,4})\b", "\n".join(sections.get("pulse", ())),
                     re.MULTILINE)
    return float(said[1].replace(",", ".")) if said else None


def _ticks(sections: Sections) -> tuple[int, int] | None:
    line = next((line for line in sections.get("pulse", ()) if line.startswith("cpu ")), "")
    found = [number(word) for word in line.split()[1:1 + STAT_FIELDS]]
    values = [value for value in found if value is not None]
    if len(values) < STAT_FIELDS or len(values) < len(found):
        return None
    return sum(values) - sum(values[place] for place in IDLE), sum(values)


def _nvidia(sections: Sections) -> tuple[list[GpuPulse], str]:
    """index, uuid, name, memory.total, memory.used (MiB), utilization.gpu (%), temperature.gpu, power.draw,
    power.limit; `[N/A]` for what a card does not have."""
    found, said = [], []
    for line in sections.get("nvidia-pulse", ()):
        words = [word.strip() for word in line.split(",")]
        if len(words) == 9 and (index := number(words[0])) is not None:
            total, used, busy, heat, power, limit = (_decimal(word) for word in words[3:])
            found.append(GpuPulse(index, words[2], _mebibytes(total), _mebibytes(used),
                                  None if busy is None else min(1.0, busy / 100), heat, power, limit))
        elif not line.startswith("status "):
            said.append(line.strip())
    return found, "; ".join(dict.fromkeys(said))[:300]


def _amd(sections: Sections, first: int) -> list[GpuPulse]:
    cards: list[dict[str, str]] = []
    heat: list[list[float]] = []
    for line in sections.get("amd-pulse", ()):
        key, _, value = line.partition(" ")
        if key == "card":
            cards.append({})
            heat.append([])
        elif cards and re.fullmatch(r"temp[0-9]{1,2}_input", key):
            heat[-1] += _thousandth(value)
        elif cards:
            cards[-1].setdefault(key, value.strip())
    return [_amd_card(first + place, card, heat[place]) for place, card in enumerate(cards)]


def _amd_card(index: int, card: dict[str, str], heat: list[float]) -> GpuPulse:
    watts = [value / 1000 for key in ("power1_average", "power1_input")
             for value in _thousandth(card.get(key, ""))]
    limit = [value / 1000 for value in _thousandth(card.get("power1_cap", ""))]
    busy = _decimal(card.get("gpu_busy_percent", ""))
    return GpuPulse(index, card.get("product_name") or "AMD GPU", number(card.get("mem_info_vram_total", "")),
                    number(card.get("mem_info_vram_used", "")),
                    None if busy is None else min(1.0, busy / 100), max(heat, default=None),
                    watts[0] if watts else None, limit[0] if limit else None)


def _thousandth(text: str) -> Iterator[float]:
    if (value := number(text)) is not None:
        yield value / 1000


def _mebibytes(value: float | None) -> int | None:
    return None if value is None else int(value) * MIB


def _decimal(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text.strip(), re.ASCII) else None
