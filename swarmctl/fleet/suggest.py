"""A first inventory from what hosts are: roles, a data folder, a free port, and guesses left as comments.
Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swarmctl.inventory import DEFAULT_DATA_DIR, DEFAULT_PORT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from swarmctl.facts import Disk, Facts
    from swarmctl.fleet.candidates import Candidate

GIB = 2**30
#: Below this, a GPU serves but does not train: LoRA on a 3B model in 4 bits wants about as much.
TRAINING_MEMORY = 7 * GIB
ROOM = 20 * GIB
NO_DISKS = ("vfat", "iso9660", "squashfs", "tmpfs", "msdos", "exfat", "udf")
#: Board power in watts, from the makers' data sheets; enough for a first guess.
BOARD_WATTS = {"5090": 575, "5080": 360, "5070": 250, "4090": 450, "4080": 320, "4070": 200, "4060": 130,
               "3090": 350, "3080": 320, "3070": 220, "3060": 170, "A100": 400, "H100": 700, "7900 XTX": 355,
               "7900": 300}


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate after discovery: its facts, or why there are none. Neither where nobody looked."""

    candidate: Candidate
    facts: Facts | None = None
    problem: str | None = None


def inventory_text(found: Iterable[Found], *, schema: str, ssh_config: str | None,
                   notes: Iterable[str] = ()) -> str:
    """The inventory as YAML with comments. Without hosts, this machine is the swarm."""
    hosts = tuple(found)
    lines = [
        f"# yaml-language-server: $schema={_comment(schema)}",
        "# Written by `swarmctl init`: a start, to be edited. `swarmctl inventory check` reads it,",
        "# `swarmctl up` makes it true. docs/inventory.md explains every key.",
        "version: 1",
        *([f"ssh_config: {scalar(ssh_config)}"] if ssh_config else []),
        "energy: {price: 0.30, currency: EUR}  # what a kWh costs",
        "",
        "models:",
        "  small:",
        "    source: shipped:small  # tiny, comes with swarmctl, so that everything can be tried",
        "  # A real one is a GGUF file: a path (relative to this file, or ~/…) or https:// with its sha256.",
        "  # qwen3-8b:",
        "  #   source: ~/models/Qwen3-8B-Q4_K_M.gguf",
        "  #   context: 16384",
        "",
        "hosts:",
    ]
    leader = _leader(hosts)
    for one in hosts:
        lines += _host(one, leads=one is leader)
    if not hosts:
        lines += ["  local:  # this machine; add others by their SSH names", "    models: [small]"]
    lines += [f"# left out: {_comment(note)}" for note in notes]
    return "\n".join([*lines, ""])


def roles(facts: Facts) -> tuple[str, ...]:
    """What a machine suits: training wants a GPU with room, preprocessing is what a CPU is for."""
    usable = [gpu for gpu in facts.gpus if gpu.problem is None and gpu.vendor != "intel"]
    if not usable:
        return ("preprocess", "inference")
    if any((gpu.memory or 0) >= TRAINING_MEMORY for gpu in usable):
        return ("train", "inference")
    return ("inference", "embed")


def data_dir(facts: Facts) -> str:
    """A folder on the fastest disk with room that this user may write to; the default where nothing is
    better."""
    disks = [disk for disk in facts.disks if disk.writable and disk.filesystem not in NO_DISKS]
    home = max((disk for disk in disks if disk.writable == facts.home), key=_merit, default=None)
    best = max((disk for disk in disks if disk.free >= ROOM), key=_merit, default=None)
    if best is None or best is home or best.writable is None or not best.writable.startswith("/"):
        return DEFAULT_DATA_DIR
    if home is not None and _speed(home) >= _speed(best) and best.free < 2 * home.free:
        return DEFAULT_DATA_DIR
    return f"{best.writable.rstrip('/')}/swarmctl"


def free_port(facts: Facts) -> int:
    """The first of a run of 10 ports on which nobody listens, from the usual one on."""
    taken = {listener.port for listener in facts.listeners}
    for first in range(DEFAULT_PORT, 65000, 10):
        if not taken & set(range(first, first + 10)):
            return first
    return DEFAULT_PORT


def watts(facts: Facts) -> tuple[int, int]:
    """Idle and load watts, guessed from the parts."""
    boards = [next((power for name, power in BOARD_WATTS.items() if name in gpu.name), 150)
              for gpu in facts.gpus if gpu.vendor in ("nvidia", "amd") and gpu.problem is None]
    if facts.machine in ("aarch64", "arm64", "armv7l"):
        return 4, max(8, min(60, 3 * facts.cpu.threads))
    return 15 + 15 * len(boards), 30 + 4 * facts.cpu.threads + sum(boards)


def summary(facts: Facts) -> str:
    """One line on what a host is."""
    gpus = [f"{gpu.name}{_size(gpu.memory)}" + (f" ({gpu.problem})" if gpu.problem else "")
            for gpu in facts.gpus]
    parts = [facts.os_name or facts.system,
             f"{facts.cpu.model or facts.machine}, {facts.cpu.threads} threads",
             f"{facts.memory / GIB:.0f} GiB RAM", *gpus, f"{facts.disk.free / GIB:.0f} GiB free"]
    return "; ".join(parts)


def scalar(text: str) -> str:
    """Text as a YAML scalar that YAML 1.1 and 1.2 read alike."""
    plain = re.fullmatch(r"[A-Za-z/][A-Za-z0-9._/@-]*|~/[A-Za-z0-9._/@-]+", text)
    words = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
    if plain and text.lower() not in words:
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in quoted)


def _host(one: Found, *, leads: bool) -> Iterator[str]:
    candidate, facts = one.candidate, one.facts
    yield f"  {scalar(candidate.name)}:" + (f"  # {_comment(candidate.origin)}" if candidate.origin else "")
    if candidate.ssh != candidate.name:
        yield f"    ssh: {scalar(candidate.ssh)}"
    if one.problem:
        yield f"    # not reached: {_comment(one.problem)}"
    if facts is None:
        yield "    roles: [inference]"
    else:
        yield f"    # {_comment(summary(facts))}"
        yield f"    roles: [{', '.join((*(('orchestrate',) if leads else ()), *roles(facts)))}]"
        if data_dir(facts) != DEFAULT_DATA_DIR:
            yield f"    data_dir: {scalar(data_dir(facts))}"
        if free_port(facts) != DEFAULT_PORT:
            yield f"    llamacpp: {{port: {free_port(facts)}}}  # {DEFAULT_PORT} is taken there"
        idle, load = watts(facts)
        yield f"    # energy: {{idle_watts: {idle}, load_watts: {load}}}  # a guess; a meter knows"
    yield "    models: [small]"


def _leader(hosts: tuple[Found, ...]) -> Found | None:
    """The host with the most GPU memory, then the most RAM, orchestrates."""
    known = [one for one in hosts if one.facts is not None]
    return max(known, key=_strength, default=None)


def _strength(one: Found) -> tuple[int, int]:
    facts = one.facts
    return (sum(gpu.memory or 0 for gpu in facts.gpus if not gpu.problem), facts.memory) if facts else (0, 0)


def _speed(disk: Disk) -> int:
    return 2 if "nvme" in disk.device else 1 if disk.rotational is False else 0


def _merit(disk: Disk) -> tuple[int, int]:
    return _speed(disk), disk.free


def _size(memory: int | None) -> str:
    return f" {memory / GIB:.0f} GiB" if memory else ""


def _comment(text: str) -> str:
    """Text that stays on its line, whatever a host says of itself."""
    return "".join(char if char.isprintable() else " " for char in text)[:300]
