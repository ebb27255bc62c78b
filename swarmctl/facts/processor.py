"""CPU and memory as this user may use them: affinity and cgroup quotas count, of both versions of cgroups."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmctl.facts.sections import number, pairs
from swarmctl.facts.seen import Cpu

if TYPE_CHECKING:
    from swarmctl.facts.sections import Sections

#: What llama.cpp's ggml compiles for (ggml/src/ggml-cpu/CMakeLists.txt), by the names Linux and macOS use.
X86 = ("sse4_2", "avx", "avx2", "fma", "f16c", "bmi2", "avx_vnni", "avx512f", "avx512cd", "avx512vl",
       "avx512dq", "avx512bw", "avx512vbmi", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
FEATURES = {name: name for name in X86} | {
    "asimd": "neon", "asimddp": "dotprod", "asimdhp": "fp16", "i8mm": "i8mm", "bf16": "bf16", "sve": "sve",
    "sve2": "sve2", "sme": "sme",
    "neon": "neon", "advsimd": "neon", "feat_dotprod": "dotprod", "feat_fp16": "fp16", "feat_i8mm": "i8mm",
    "feat_bf16": "bf16", "feat_sme": "sme",
    "avx1.0": "avx", "sse4.2": "sse4_2", "avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16",
}
UNBOUNDED = 2**60


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes. `total` is the machine's, or the cgroup's where that is less."""

    total: int
    available: int
    swap_used: int


def cpu_seen(sections: Sections) -> Cpu:
    """The processor, with the threads that affinity and quota leave to this user."""
    said = _colons(sections.get("cpu", ()))
    told = pairs(sections, "cpu")
    threads = number(told.get("threads", "")) or number(told.get("present", "")) or number(
        said.get("hw.logicalcpu", "")) or 1
    quota = _cpu_quota(sections)
    threads = max(1, min(threads, int(quota))) if quota is not None else max(1, threads)
    cores = number(told.get("cores", "")) or number(said.get("hw.physicalcpu", "")) or number(
        told.get("present", "")) or threads
    names = ("model name", "machdep.cpu.brand_string", "Model name", "Model")
    model = next((said[key] for key in names if said.get(key)), "")
    return Cpu(re.sub(r"\s+", " ", model), threads, max(1, min(cores, threads)), _features(said))


def memory_seen(sections: Sections) -> Memory:
    """Memory and swap; a cgroup's limit and use count where they are tighter."""
    said = _colons(sections.get("memory", ()))
    if "hw.memsize" in said:
        total, available, swap = _mac_memory(said)
    else:
        kilo = {key: (number(value.split()[0]) or 0) * 1024 for key, value in said.items() if value.split()}
        total = kilo.get("MemTotal", 0)
        available = kilo.get("MemAvailable", kilo.get("MemFree", 0))
        swap = max(0, kilo.get("SwapTotal", 0) - kilo.get("SwapFree", 0))
    for limit, used in _memory_limits(sections):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return Memory(total, min(available, total), swap)


def _colons(lines: list[str] | tuple[()]) -> dict[str, str]:
    """`key: value` lines, the first of each key."""
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    return found


def _features(said: dict[str, str]) -> tuple[str, ...]:
    words = set()
    for key in ("flags", "Features", "machdep.cpu.features", "machdep.cpu.leaf7_features"):
        words |= set(said.get(key, "").lower().split())
    words |= {key.rpartition(".")[2].lower() for key, value in said.items()
              if key.startswith("hw.optional.") and value == "1"}
    return tuple(sorted({FEATURES[word] for word in words if word in FEATURES}))


def _cgroup(sections: Sections) -> dict[str, dict[str, str]]:
    """Group path → file → content."""
    groups: dict[str, dict[str, str]] = {}
    for line in sections.get("cgroup", ()):
        name, _, rest = line.partition(" ")
        path, slash, value = rest.rpartition("/ ")
        if slash:
            groups.setdefault(path, {})[name] = value
    return groups


def _cpu_quota(sections: Sections) -> float | None:
    quotas = []
    for group in _cgroup(sections).values():
        words = group.get("cpu.max", "").split() or [
            group.get("cpu.cfs_quota_us", ""), group.get("cpu.cfs_period_us", "")]
        quota, period = number(words[0]), number(words[-1])
        if quota and period:
            quotas.append(quota / period)
    return min(quotas, default=None)


def _memory_limits(sections: Sections) -> list[tuple[int, int]]:
    """(limit, bytes that cannot be given back) of each group that has a limit."""
    found = []
    for group in _cgroup(sections).values():
        limit = number(group.get("memory.max", "") or group.get("memory.limit_in_bytes", ""))
        used = number(group.get("memory.current", "") or group.get("memory.usage_in_bytes", "")) or 0
        cached = number(group.get("total_inactive_file", "") or group.get("inactive_file", "")) or 0
        if limit is not None and 0 < limit < UNBOUNDED:
            found.append((limit, max(0, used - cached)))
    return found


def _mac_memory(said: dict[str, str]) -> tuple[int, int, int]:
    total = number(said["hw.memsize"]) or 0
    page = number(said.get("hw.pagesize", "")) or 16384
    free = sum(number(said.get(f"Pages {kind}", "").rstrip(".")) or 0
               for kind in ("free", "inactive", "speculative", "purgeable"))
    swap = re.search(r"used = ([0-9]{1,9}(?:\.[0-9]{1,4})?)M", said.get("vm.swapusage", ""))
    return total, min(total, free * page), int(float(swap[1]) * 2**20) if swap else 0
