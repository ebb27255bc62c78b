"""How fast a host's processors may run, in the words of their own tools → data. Pure.

NVIDIA: `nvidia-smi --query-gpu`. AMD: amdgpu's files in sysfs (Linux, Documentation/gpu/amdgpu/thermal.rst)
and rocm-smi, as JSON or as text. A Mac: `pmset -g therm` and `notifyutil`. A Raspberry Pi: `vcgencmd
get_throttled`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from swarmctl.facts.sections import number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from swarmctl.facts.sections import Sections

POWER_CAP, THERMAL = "power cap", "thermal (hardware)"
ROCM_LINE = re.compile(r"^GPU\[([0-9]{1,3})\]\s*: ([^\n]+?): ([^\n:]*)$", re.MULTILINE)
#: nvml.h, nvmlClocksEventReasons*: the bits that mean slower than asked, and in whose words.
REASONS = {0x04: POWER_CAP, 0x08: "hardware slowdown", 0x20: "thermal (software)",
           0x40: THERMAL, 0x80: "power brake"}
#: amdgpu_smu.h, SMU_THROTTLER_*: which bits of indep_throttle_status stand for what.
AMD_REASONS = ((0x0000_0000_00FF_00FF, POWER_CAP), (0x0000_FFFF_0000_0000, THERMAL))
#: An R9700 reports heat at 37 °C for ever (ROCm/rocm-systems#11781): heat counts this near the limit only.
NEAR = 15.0
HOTSPOT_LIMIT = 110.0
#: Performance levels that hold a card down (amdgpu, power_dpm_force_performance_level).
LOW_LEVELS = ("low", "profile_min_sclk", "profile_min_mclk")


@dataclass(frozen=True, slots=True)
class GpuClock:
    """How a GPU runs now: °C, watts, MHz, bytes, and the reasons why its clocks are held down. `critical` is
    the temperature at which it slows down, `level` an AMD card's performance level."""

    index: int
    reasons: tuple[str, ...]
    temperature: float | None = None
    power: float | None = None
    power_limit: float | None = None
    clock: float | None = None
    clock_most: float | None = None
    memory_used: int | None = None
    maker: Literal["nvidia", "amd"] = "nvidia"
    critical: float | None = None
    level: str = ""


@dataclass(frozen=True, slots=True)
class Board:
    """What a whole machine says of its speed: a Mac's `speed_limit` in percent, its `warning` and `pressure`
    levels (0 is none), and a Raspberry Pi's `throttled` bits. None where it says nothing."""

    speed_limit: int | None = None
    warning: int | None = None
    pressure: int | None = None
    throttled: int | None = None


def gpu_clocks(sections: Sections) -> tuple[GpuClock, ...]:
    """All GPUs whose tools or files say how they run."""
    return (*_nvidia(sections.get("nvidia-clocks", ())), *_amd(sections))


def board(sections: Sections) -> Board:
    """A Mac's and a Raspberry Pi's own words."""
    said = "\n".join(sections.get("throttled", ()))

    def value(pattern: str) -> int | None:
        found = re.search(pattern, said)
        return number(found[1]) if found else None

    bits = re.search(r"throttled=(?:0x)?([0-9a-fA-F]{1,8})\b", said)
    return Board(value(r"CPU_Speed_Limit\s*=\s*([0-9]{1,3})\b"),
                 value(r"Thermal Warning Level = ([0-9]{1,3})\b"),
                 value(r"thermalpressurelevel ([0-9]{1,3})\b"), int(bits[1], 16) if bits else None)


def _nvidia(lines: Iterable[str]) -> tuple[GpuClock, ...]:
    """index, temperature, power, its limit, clock, its most, memory used (MiB), reasons (a hexadecimal
    mask)."""
    found = []
    for line in lines:
        words = [word.strip() for word in line.split(",")]
        mask = re.fullmatch(r"0x([0-9a-fA-F]{1,16})", words[-1])
        if len(words) != 8 or mask is None or number(words[0]) is None:
            continue
        bits = int(mask[1], 16)
        reasons = tuple(name for bit, name in REASONS.items() if bits & bit)
        heat, power, limit, clock, most, used = (_decimal(word) for word in words[1:7])
        found.append(GpuClock(number(words[0]) or 0, reasons, heat, power, limit, clock, most,
                              int(used * 2**20) if used is not None else None))
    return tuple(found)


def _amd(sections: Sections) -> tuple[GpuClock, ...]:
    """sysfs, and rocm-smi's word on top. Both list the cards in the order of the PCI bus."""
    cards = _from_sysfs(sections.get("amd-clocks", ()))
    told = rocm_cards("\n".join(sections.get("rocm-clocks", ())))
    cards += [GpuClock(index, (), maker="amd") for index in sorted(told) if index >= len(cards)]
    return tuple(_held(_told(card, told.get(card.index, {})), told.get(card.index, {})) for card in cards)


def _from_sysfs(lines: Iterable[str]) -> list[GpuClock]:
    """After `card`: `level WORD`, `temp MILLIDEGREES CRITICAL`, `power MICROWATTS CAP`, `sclk N: 500Mhz *`.
    The sensor that is nearest to its own limit counts."""
    found: list[GpuClock] = []
    for line in lines:
        key, _, rest = line.partition(" ")
        if key == "card":
            found.append(GpuClock(len(found), (), maker="amd"))
        elif found:
            found[-1] = _taken(found[-1], key, rest)
    return found


def _taken(card: GpuClock, key: str, rest: str) -> GpuClock:
    first, second = (_decimal(word) for word in (*rest.split(), "", "")[:2])
    if key == "level":
        return replace(card, level=rest.strip())
    if key == "temp" and first is not None:
        limit = second / 1000 if second else None
        read = replace(card, temperature=first / 1000, critical=limit)
        return read if card.temperature is None or _room(read) < _room(card) else card
    if key == "power" and first is not None:
        return replace(card, power=first / 1e6, power_limit=second / 1e6 if second else None)
    if key == "sclk" and (clock := re.match(r"[0-9]{1,3}: ([0-9]{1,6})Mhz( \*)?", rest)):
        most = max(card.clock_most or 0.0, float(clock[1]))
        return replace(card, clock_most=most, clock=float(clock[1]) if clock[2] else card.clock)
    return card


def _room(card: GpuClock) -> float:
    """°C up to the limit; a card that does not say its own has that of a Radeon's hotspot."""
    return (card.critical or HOTSPOT_LIMIT) - (card.temperature or 0.0)


def rocm_cards(text: str) -> dict[int, Mapping[str, str]]:
    """rocm-smi's words by card: one JSON object after its warnings, or lines `GPU[0] : key: value`."""
    try:
        raw, _ = json.JSONDecoder().raw_decode(text, max(0, text.find("{")))
        entries = raw.items() if isinstance(raw, dict) else ()
        return {int(key[4:]): {str(name): str(value) for name, value in entry.items()}
                for key, entry in entries if re.fullmatch(r"card[0-9]{1,3}", key) and isinstance(entry, dict)}
    except (ValueError, RecursionError):
        found: dict[int, dict[str, str]] = {}
        for card, key, value in ROCM_LINE.findall(text):
            found.setdefault(int(card), {})[key.strip()] = value.strip()
        return dict(found)


def _told(card: GpuClock, entry: Mapping[str, str]) -> GpuClock:
    """Fill in what sysfs did not say."""
    def value(*keys: str) -> float | None:
        return next((found for key in keys if (found := _decimal(entry.get(key, ""))) is not None), None)

    heat = value("Temperature (Sensor junction) (C)", "temperature_hotspot (C)",
                 "Temperature (Sensor edge) (C)")
    power = value("Average Graphics Package Power (W)", "Current Socket Graphics Package Power (W)")
    cap = value("Max Graphics Package Power (W)")
    return replace(card, temperature=heat if card.temperature is None else card.temperature,
                   power=power if card.power is None else card.power,
                   power_limit=cap if card.power_limit is None else card.power_limit,
                   level=card.level or entry.get("Performance Level", ""))


def _held(card: GpuClock, entry: Mapping[str, str]) -> GpuClock:
    """Why it is held back: the firmware's bits, else its heat; and a level that somebody set."""
    bits = number(entry.get("indep_throttle_status", ""))
    cool = card.temperature is not None and _room(card) > NEAR
    reasons = [name for mask, name in AMD_REASONS if (bits or 0) & mask and not (cool and name == THERMAL)]
    if bits is None and card.temperature is not None and _room(card) <= 0:
        reasons.append(THERMAL)
    if card.level in LOW_LEVELS:
        reasons.append(f"performance level {card.level}")
    return replace(card, reasons=tuple(reasons))


def _decimal(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", text.strip()) else None
