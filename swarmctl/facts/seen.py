"""What a survey found, as frozen data. Sizes are bytes, times seconds; what could not be had is None or
empty."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Cpu:
    """`threads` are logical CPUs this user may run on (cgroup and affinity respected), `cores` physical ones.

    `features` are those llama.cpp compiles for (avx2, avx512f, f16c, fma, amx_int8, neon, dotprod, sve …),
    sorted.
    """

    model: str
    threads: int
    cores: int
    features: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Gpu:
    """One accelerator. `vendor` is nvidia, amd, apple or intel; `arch` is 8.6, gfx1100, … where known."""

    vendor: Literal["nvidia", "amd", "apple", "intel"]
    name: str
    memory: int | None
    memory_free: int | None = None
    driver: str | None = None
    arch: str | None = None
    uuid: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Disk:
    """A mounted filesystem; `path` is where. `rotational` is None where unknown.

    `writable` is a folder on it that this user may write to, where the probe found one.
    """

    path: str
    device: str
    filesystem: str | None
    size: int
    free: int
    rotational: bool | None = None
    writable: str | None = None


@dataclass(frozen=True, slots=True)
class Listener:
    """A TCP port somebody listens on; `exposed` beyond loopback. pid, user and command where visible."""

    address: str
    port: int
    exposed: bool
    pid: int | None = None
    user: str | None = None
    command: str | None = None


@dataclass(frozen=True, slots=True)
class RuntimeSeen:
    """An installed runtime build: `name` is llamacpp or ollama, its key the folder name under
    data_dir/runtimes/<name>/."""

    name: str
    key: str
    path: str


@dataclass(frozen=True, slots=True)
class BlobSeen:
    """A verified file under data_dir/blobs/sha256-<hex>."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Speed:
    """What `up` measured of a server, kept on the host in servers/<name>/speed.json (one line, these keys).

    `prefill` and `decode` are tokens per second; `overhead` is the seconds of a request that are neither,
    `load` the seconds from start to the first token.
    """

    prefill: float
    decode: float
    overhead: float = 0.0
    load: float = 0.0


@dataclass(frozen=True, slots=True)
class ServerSeen:
    """A server under data_dir/servers/<name>/. `spec` is the hash of what was asked for when it was started.

    `supervisor` is the pid of the live supervisor or None; `pid` that of the live server; `restarts` since
    start. `mode` is `systemd` or `own`. `speed` is None until `up` measured it. `build` is the key of the
    runtime that it runs on, where it lives.
    """

    name: str
    spec: str
    supervisor: int | None
    pid: int | None
    restarts: int = 0
    mode: str = "own"
    speed: Speed | None = None
    build: str = ""


@dataclass(frozen=True, slots=True)
class VersionChange:
    """A line of data_dir/runtimes/versions.jsonl, where every move of a runtime is written down.

    `event` is begun, kept, returned (it was worse), undecided (it was not found out) or rolled-back (a person
    asked). `version` is in force from then on, `other` is the one that it would be, was, or was left. `why`
    says what was worse, `before` and `after` what the one that was left and the one that came did, by server
    (in Ollama by model).
    """

    runtime: str
    event: str
    version: str
    other: str
    at: str = ""
    by: str = ""
    why: tuple[str, ...] = ()
    before: Mapping[str, Speed] = field(default_factory=dict)
    after: Mapping[str, Speed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RunnerSeen:
    """A process that holds a model: a server of ours, or a runner of any Ollama (`parent`). Only a glance
    looks for them.

    `read` is the bytes it has read or mapped so far. Of Ollama's: `weights` is the file it serves, `busy` the
    requests it answers (None where that cannot be seen), `state` ready, loading, or empty where it did not
    say.
    """

    pid: int
    parent: int | None
    weights: str
    read: int
    busy: int | None = None
    state: str = ""


@dataclass(frozen=True, slots=True)
class OllamaModel:
    """A model an Ollama has. `size` is bytes on disk; `digest` that of its manifest."""

    name: str
    digest: str
    size: int
    quantisation: str = ""


@dataclass(frozen=True, slots=True)
class OllamaLoaded:
    """A model an Ollama holds in memory, and how many of its bytes lie on a GPU."""

    name: str
    size: int
    size_vram: int


@dataclass(frozen=True, slots=True)
class OllamaSeen:
    """An Ollama that answers on a port of the host. `mode` is how it runs: `own` (under our supervisor),
    `systemd`, `docker`, `app` (the one of macOS) or `process`. `exposed` beyond loopback. pid and user where
    visible."""

    port: int
    version: str
    mode: str = "process"
    pid: int | None = None
    user: str | None = None
    exposed: bool = False
    models: tuple[OllamaModel, ...] = ()
    loaded: tuple[OllamaLoaded, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything one survey learned of one host. `data_dir` is absolute, with ~ expanded on the host.

    `tools` maps a tool to its version (empty where it was not asked) and `tool_paths` to where it lies.
    `ollama_kept` names the models of swarmctl's own Ollama, running or not, and `ollama_lacking` those of
    them whose blobs are not all there; `ollama_speeds` maps a model's name in Ollama, as file names have it,
    to what `up` measured. `versions` is the end of the history of runtimes' versions, oldest first.
    """

    hostname: str
    system: str
    release: str
    machine: str
    user: str
    uid: int
    home: str
    data_dir: str
    cpu: Cpu
    memory: int
    memory_available: int
    swap_used: int
    disk: Disk
    os_name: str = ""
    libc: str = ""
    clock: float = 0.0
    uptime: float | None = None
    disks: tuple[Disk, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    tools: Mapping[str, str] = field(default_factory=dict)
    tool_paths: Mapping[str, str] = field(default_factory=dict)
    listeners: tuple[Listener, ...] = ()
    runtimes: tuple[RuntimeSeen, ...] = ()
    versions: tuple[VersionChange, ...] = ()
    blobs: tuple[BlobSeen, ...] = ()
    servers: tuple[ServerSeen, ...] = ()
    runners: tuple[RunnerSeen, ...] = ()
    ollama: str | None = None
    ollamas: tuple[OllamaSeen, ...] = ()
    ollama_kept: tuple[str, ...] = ()
    ollama_lacking: tuple[str, ...] = ()
    ollama_speeds: Mapping[str, Speed] = field(default_factory=dict)
    systemd_user: bool = False
    problems: tuple[str, ...] = ()
