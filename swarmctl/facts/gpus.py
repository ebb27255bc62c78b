"""Accelerators: NVIDIA by nvidia-smi, AMD by sysfs and rocm-smi, Apple by sysctl, others by PCI class.

A card that the PCI bus shows but no driver serves is listed with its `problem`, so that nobody wonders where
it went.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from swarmctl.facts.sections import number, pairs
from swarmctl.facts.seen import Gpu

if TYPE_CHECKING:
    from swarmctl.facts.sections import Sections

MIB = 2**20
INTEGRATED = "integrated graphics"
#: What a Ryzen's or a laptop's graphics call their own is a slice of the system's memory, below this.
OWN_MEMORY = 2048 * MIB
VENDORS: dict[str, Literal["nvidia", "amd", "intel"]] = {
    "0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}


def gpus_seen(sections: Sections, cpu_model: str, memory: int) -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    """All accelerators, and what is wrong with them in words."""
    nvidia, problems = _nvidia(sections)
    gpus = [*nvidia, *_amd(sections), *_intel(sections)]
    host = pairs(sections, "host")
    if host.get("system") == "Darwin" and host.get("machine") == "arm64":
        gpus.append(Gpu("apple", cpu_model or "Apple GPU", memory))
    problems += [f"{gpu.name}: {gpu.problem}" for gpu in gpus
                 if gpu.vendor != "nvidia" and gpu.problem and not gpu.problem.startswith(INTEGRATED)]
    return tuple(gpus), tuple(dict.fromkeys(problems))


def _nvidia(sections: Sections) -> tuple[list[Gpu], list[str]]:
    cards = _pci(sections, "nvidia")
    if "nvidia" not in sections:
        missing = "no NVIDIA driver (there is no nvidia-smi)"
        return [_lost("nvidia", "NVIDIA", card, missing) for card in cards], [missing] if cards else []
    gpus: list[Gpu] = []
    said: list[str] = []
    for line in sections["nvidia"]:
        gpu = _nvidia_row(line)
        if gpu is not None:
            gpus.append(gpu)
        elif not line.startswith("status "):
            said.append(line.strip())
    problem = "; ".join(dict.fromkeys(said)) or None
    if problem and len(gpus) < max(1, len(cards)):
        gpus += [_lost("nvidia", "NVIDIA", card, problem) for card in _unseen(cards, problem, len(gpus))]
    return gpus, [f"nvidia-smi: {problem}"] if problem else []


def _nvidia_row(line: str) -> Gpu | None:
    """index, name, memory.total, memory.free, driver_version, uuid[, compute_cap], sizes in MiB."""
    words = [word.strip() for word in line.split(",")]
    if len(words) not in (6, 7) or number(words[0]) is None:
        return None
    total, free = number(words[2]), number(words[3])
    arch = words[6] if len(words) == 7 and re.fullmatch(r"[0-9]+\.[0-9]+", words[6]) else None
    return Gpu("nvidia", words[1], total * MIB if total is not None else None,
               free * MIB if free is not None else None, words[4], arch, words[5])


def _unseen(cards: list[str], problem: str, seen: int) -> list[str]:
    """PCI cards that gave no row: those the message names, else as many as are missing."""
    named = [card for card in cards if card.split()[-1].lower()[-10:] in problem.lower()]
    return named or cards[seen:] or ([] if seen else ["unknown"])


def _amd(sections: Sections) -> list[Gpu]:
    cards = [line.split(" ") for line in sections.get("amd", ()) if line.startswith("card ")]
    told = _rocm_smi(sections)
    if not cards and not told:
        missing = "no amdgpu driver (no render node in /sys/class/drm)"
        return [_lost("amd", "AMD", card, missing) for card in _pci(sections, "amd")]
    arches = _kfd(sections)
    driver = pairs(sections, "amd").get("driver") or told.get("system", {}).get("Driver version")
    names = [entry for key, entry in sorted(told.items()) if key.startswith("card")]
    gpus = []
    for index in range(max(len(cards), len(names))):
        gpu = _amd_sysfs(cards[index], arches) if index < len(cards) else Gpu("amd", "AMD GPU", None)
        gpus.append(replace(_amd_told(gpu, names[index] if index < len(names) else {}), driver=driver))
    return gpus


def _amd_sysfs(words: list[str], arches: dict[int, str]) -> Gpu:
    """card RENDER DEVICE VRAM_TOTAL VRAM_USED NAME, empty where the kernel does not say."""
    render, device, total, used = (*words[1:5], "", "", "", "")[:4]
    name = " ".join(words[5:]).strip() or f"AMD {device.removeprefix('0x')}"
    size, taken = number(total), number(used)
    free = size - taken if size is not None and taken is not None and taken <= size else None
    return Gpu("amd", name, size, free, arch=arches.get(number(render) or -1))


def _amd_told(gpu: Gpu, entry: dict[str, Any]) -> Gpu:
    name = str(entry.get("Card Series") or entry.get("Card series") or "")
    total = number(str(entry.get("VRAM Total Memory (B)", "")))
    used = number(str(entry.get("VRAM Total Used Memory (B)", "")))
    arch = str(entry.get("GFX Version", ""))
    size = gpu.memory if gpu.memory is not None else total
    free = gpu.memory_free
    if free is None and size is not None and used is not None and used <= size:
        free = size - used
    small = f"{INTEGRATED}, {size // MIB} MiB" if size is not None and size < OWN_MEMORY else None
    return replace(gpu, name=name or gpu.name, memory=size, memory_free=free, problem=small,
                   arch=gpu.arch or (arch if arch.startswith("gfx") else None))


def _rocm_smi(sections: Sections) -> dict[str, dict[str, Any]]:
    """rocm-smi --json: one object, on one line or many, after the warnings if there are any."""
    text = "\n".join(sections.get("rocm-smi", ()))
    try:
        found, _ = json.JSONDecoder().raw_decode(text, max(0, text.find("{")))
    except (ValueError, RecursionError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {key: entry for key, entry in entries if isinstance(entry, dict)}


def _kfd(sections: Sections) -> dict[int, str]:
    """Render minor → gfx name. gfx_target_version 90010 is gfx90a, 110000 is gfx1100."""
    found: dict[int, str] = {}
    target = 0
    for line in sections.get("amd", ()):
        key, _, value = line.partition(" ")
        if key == "gfx_target_version":
            target = number(value) or 0
        elif key == "drm_render_minor" and target and number(value):
            found[number(value) or 0] = f"gfx{target // 10000}{target // 100 % 100:x}{target % 100:x}"
            target = 0
    return found


def _intel(sections: Sections) -> list[Gpu]:
    """Intel's own graphics sit at 00:02.0 on every board; an Arc does not."""
    return [Gpu("intel", f"Intel {words[2].removeprefix('0x')}", None,
                problem=INTEGRATED if words[3].endswith("00:02.0") else None)
            for words in (card.split() for card in _pci(sections, "intel"))]


def _pci(sections: Sections, vendor: str) -> list[str]:
    """`class vendor device address` of every display controller of a vendor."""
    return [line for line in sections.get("pci", ())
            if len(words := line.split()) == 4 and VENDORS.get(words[1]) == vendor]


def _lost(vendor: Literal["nvidia", "amd"], maker: str, card: str, problem: str) -> Gpu:
    words = card.split()
    device = words[2].removeprefix("0x") if len(words) == 4 else "GPU"
    return Gpu(vendor, f"{maker} {device}", None, problem=problem)
