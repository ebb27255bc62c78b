"""What an inventory says once it is read: frozen data, with every default filled in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_DATA_DIR = "~/.local/share/swarmctl"
DEFAULT_PORT = 8090
ROLES = ("orchestrate", "train", "inference", "preprocess", "evaluate", "embed")
BACKENDS = ("auto", "cpu", "cuda", "rocm", "metal", "vulkan")


@dataclass(frozen=True, slots=True)
class Energy:
    """What electricity costs and what a host draws. Watts are at the wall; `price` is money per kWh."""

    price: float = 0.30
    currency: str = "EUR"
    idle_watts: float | None = None
    load_watts: float | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what swarmctl takes of a host. None means all of it. Memory and disk are bytes."""

    threads: int | None = None
    memory: int | None = None
    disk: int | None = None
    parallel: int | None = None
    build_jobs: int | None = None


@dataclass(frozen=True, slots=True)
class LlamaCppWish:
    """How llama.cpp should run on a host. `port` is the first of one port a model; `flags` go to llama-server
    as `--key value` and win over what follows from facts; a true value is the bare `--key`, a false one
    leaves out what swarmctl would have set."""

    port: int = DEFAULT_PORT
    backend: str = "auto"
    flags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelWish:
    """A model the swarm knows. `source` is `shipped:small`, a path to a GGUF file, or an https URL with
    `sha256`.

    `context` is tokens per conversation, `parallel` the number of conversations at once. `quality` is a first
    guess of the share of good answers per category (0 to 1), used until ratings say otherwise. `flags` as in
    LlamaCppWish.
    """

    name: str
    source: str
    sha256: str | None = None
    context: int | None = None
    parallel: int | None = None
    quality: Mapping[str, float] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Placement:
    """A model wanted on a host, with this host's own settings over the model's."""

    model: str
    context: int | None = None
    parallel: int | None = None
    port: int | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Host:
    """A machine. `ssh` is an alias of ~/.ssh/config or [user@]address[:port]; `local` means this very
    machine."""

    name: str
    ssh: str
    roles: tuple[str, ...] = ("inference",)
    llamacpp: LlamaCppWish | None = None
    models: tuple[Placement, ...] = ()
    data_dir: str = DEFAULT_DATA_DIR
    limits: Limits = field(default_factory=Limits)
    energy: Energy = field(default_factory=Energy)
    connect_timeout: float = 5.0

    @property
    def local(self) -> bool:
        """Whether commands run here, without SSH."""
        return self.ssh == "local"


@dataclass(frozen=True, slots=True)
class Inventory:
    """All wishes. `ssh_config` replaces ~/.ssh/config (like `ssh -F`); `airgap` is a folder to take runtimes
    from.

    `value_of_time` is money per hour of a person's waiting: it weighs seconds against energy in the router's
    price. `cost_of_bad_answer` is what one bad answer costs, in seconds of a person's time.
    """

    hosts: tuple[Host, ...]
    models: Mapping[str, ModelWish]
    source: str
    ssh_config: str | None = None
    airgap: str | None = None
    value_of_time: float = 30.0
    cost_of_bad_answer: float = 60.0

    def host(self, name: str) -> Host:
        """The host of that name; KeyError where there is none."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise KeyError(name)


def placement_ports(host: Host) -> tuple[int, ...]:
    """The loopback port of each placement, in the order of `host.models`: its own, else the host's first port
    plus its position. The parser refuses inventories in which two servers of one machine would meet on a
    port."""
    first = (host.llamacpp or LlamaCppWish()).port
    return tuple(placement.port or first + index for index, placement in enumerate(host.models))
