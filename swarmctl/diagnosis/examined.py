"""What an examination of a host brought to light, and its text → data."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swarmctl.diagnosis.clocks import Board, GpuClock, board, gpu_clocks
from swarmctl.errors import SwarmError
from swarmctl.facts.sections import number, split_sections

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.facts import Facts
    from swarmctl.facts.sections import Sections
    from swarmctl.inventory import Host

#: A process in nvidia-smi's own table: GPU, since driver 450 GI and CI, PID, C for compute, name, memory.
TABLE_ROW = re.compile(r"\|\s+[0-9]+\s+(?:\S+\s+\S+\s+)?([0-9]{1,10})\s+(?:C|G|M|C\+G|M\+C)\s.*\|\s*")


@dataclass(frozen=True, slots=True)
class ServerExam:
    """What one of our servers was started with, and what its log says: word → (count, last line)."""

    name: str
    argv: tuple[str, ...] = ()
    swapped: int = 0
    said: Mapping[str, tuple[int, str]] = field(default_factory=dict)

    def option(self, name: str) -> str | None:
        """The value after `--name` in its command."""
        words = [at for at, word in enumerate(self.argv[:-1]) if word == f"--{name}"]
        return self.argv[words[-1] + 1] if words else None


@dataclass(frozen=True, slots=True)
class Supervisor:
    """A live supervise.sh, whoever's: the folder it keeps and the port its server shall listen on."""

    pid: int
    user: str
    port: int | None
    restarts: int
    folder: str


@dataclass(frozen=True, slots=True)
class LayerGone:
    """A layer that an Ollama manifest names, and that is not there (`found` None) or of another size."""

    folder: str
    model: str
    digest: str
    size: int
    found: int | None


@dataclass(frozen=True, slots=True)
class Examined:
    """`clock` is the host's, in seconds since 1970. `gpu_pids` are the processes that a driver lists; None
    where none could be asked. `hidden` are Ollama's folders that our user may not read."""

    clock: float = 0.0
    addresses: tuple[str, ...] = ()
    gpu_clocks: tuple[GpuClock, ...] = ()
    gpu_pids: frozenset[int] | None = None
    servers: tuple[ServerExam, ...] = ()
    supervisors: tuple[Supervisor, ...] = ()
    ollama_service: str = ""
    layers_gone: tuple[LayerGone, ...] = ()
    hidden: tuple[str, ...] = ()
    board: Board = field(default_factory=Board)


@dataclass(frozen=True, slots=True)
class Claim:
    """What `up` recorded of a model served here, beside what the server itself says (None: it did not say).

    `called` is the server's own name for it, `template_said` the sha256 of its chat template; `state` and
    `detail` as in runtimes.base.Health.
    """

    model: str
    runtime: str
    server: str
    port: int
    digest: str
    size: int
    template: str
    called: str = ""
    template_said: str | None = None
    state: str = ""
    detail: str = ""
    files: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Patient:
    """All that is known of one host when it is judged. `skew` is its clock less ours in seconds, give or take
    `skew_error`; `proofs` maps an exposed (address, port) to what a stranger was answered there, and
    `idle_minutes` are those since its last question."""

    host: Host
    facts: Facts
    examined: Examined
    claims: tuple[Claim, ...] = ()
    skew: float = 0.0
    skew_error: float = 0.0
    gpus_recorded: int | None = None
    proofs: Mapping[tuple[str, int], str] = field(default_factory=dict)
    idle_minutes: float | None = None


def parse_examination(text: str) -> Examined:
    """Read what fleet/examine.sh printed. Raises SwarmError where it is not a whole answer."""
    sections = split_sections(text)
    if sections is None or "end" not in sections:
        raise SwarmError("its answer to the examination was cut off", hint="run doctor again")
    gone, hidden = _ollama(sections)
    return Examined(
        clock=_clock(sections), addresses=tuple(sections.get("addresses", ())),
        gpu_clocks=gpu_clocks(sections), board=board(sections), gpu_pids=_gpu_pids(sections),
        servers=_servers(sections), supervisors=_supervisors(sections),
        ollama_service=_service(sections), layers_gone=gone, hidden=hidden)


def _clock(sections: Sections) -> float:
    """`date +%s.%N`; macOS before 15 knows no %N and prints it."""
    said = re.match(r"clock ([0-9]{1,12})(\.[0-9]{1,9})?", "\n".join(sections.get("clock", ())))
    return float(said[1]) + (float(said[2]) if said[2] else 0.5) if said else 0.0


def _gpu_pids(sections: Sections) -> frozenset[int] | None:
    """nvidia-smi's compute apps (`pid, MiB`; where it cannot be asked for them, its table), and amdgpu's from
    sysfs or `rocm-smi --showpids --json`."""
    pids: set[int] = set()
    asked = False
    apps = sections.get("nvidia-apps", ())
    if "status 0" in apps:
        asked = True
        pids |= {pid for line in apps if (pid := number(line.partition(",")[0])) is not None}
    elif any("Processes:" in line for line in sections.get("nvidia-table", ())):
        asked = True
        rows = (TABLE_ROW.fullmatch(line) for line in sections["nvidia-table"])
        pids |= {int(row[1]) for row in rows if row}
    if "amd-apps" in sections:
        asked = True
        pids |= {pid for line in sections["amd-apps"]
                 if (pid := number(line.removeprefix("pid "))) is not None}
        pids |= _rocm_pids("\n".join(sections["amd-apps"]))
    return frozenset(pids) if asked else None


def _rocm_pids(text: str) -> set[int]:
    try:
        found, _ = json.JSONDecoder().raw_decode(text, max(0, text.find("{")))
    except (ValueError, RecursionError):
        return set()
    system = found.get("system", {}) if isinstance(found, dict) else {}
    names = system if isinstance(system, dict) else {}
    keys = (re.fullmatch(r"PID ?([0-9]{1,10})", str(name)) for name in names)
    return {int(key[1]) for key in keys if key}


def _servers(sections: Sections) -> tuple[ServerExam, ...]:
    groups: list[tuple[str, list[str]]] = []
    for line in sections.get("servers", ()):
        if line.startswith("server "):
            groups.append((line.removeprefix("server "), []))
        elif groups:
            groups[-1][1].append(line)
    return tuple(_server(name, lines) for name, lines in groups)


def _server(name: str, lines: list[str]) -> ServerExam:
    argv: tuple[str, ...] = ()
    swapped = 0
    said: dict[str, tuple[int, str]] = {}
    for line in lines:
        key, _, rest = line.partition(" ")
        if key == "run":
            argv = _words(rest)
        elif key == "swapped":
            swapped = (number(rest) or 0) * 1024
        elif key == "said" and len(words := rest.split(" ", 2)) == 3:
            said[words[0]] = (number(words[1]) or 0, words[2].strip())
    return ServerExam(name, argv, swapped, said)


def _words(line: str) -> tuple[str, ...]:
    try:
        words = shlex.split(line)
    except ValueError:
        words = line.split()
    return tuple(words[1:] if words[:1] == ["exec"] else words)


def _supervisors(sections: Sections) -> tuple[Supervisor, ...]:
    found = []
    for line in sections.get("supervisors", ()):
        words = line.split(" ", 5)
        if len(words) == 6 and words[0] == "supervisor" and number(words[1]):
            found.append(Supervisor(number(words[1]) or 0, words[2], number(words[3]),
                                    number(words[4]) or 0, words[5].rstrip("/")))
    return tuple(found)


def _service(sections: Sections) -> str:
    return next((line.removeprefix("service ollama ").strip() for line in sections.get("supervisors", ())
                 if line.startswith("service ollama ")), "")


def _ollama(sections: Sections) -> tuple[tuple[LayerGone, ...], tuple[str, ...]]:
    gone: list[LayerGone] = []
    hidden: list[str] = []
    folder = ""
    for line in sections.get("ollama", ()):
        key, _, rest = line.partition(" ")
        words = rest.split(" ", 3)
        if key == "models":
            folder = rest
        elif key == "hidden":
            hidden.append(rest)
        elif key == "gone" and len(words) == 4:
            gone.append(LayerGone(folder, _model(words[3]), words[0], number(words[1]) or 0,
                                  number(words[2])))
    return tuple(gone), tuple(hidden)


def _model(manifest: str) -> str:
    """A manifest's path, REGISTRY/NAMESPACE/NAME/TAG, as `ollama list` names it."""
    *above, name, tag = ("", "", *manifest.split("/"))[-4:]
    space = above[-1] if above else ""
    return f"{name}:{tag}" if space in ("", "library") else f"{space}/{name}:{tag}"
