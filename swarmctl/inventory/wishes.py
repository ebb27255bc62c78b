"""What an inventory says once it is read: frozen data, with every default filled in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_DATA_DIR = "~/.local/share/swarmctl"
DEFAULT_PORT = 8090
OLLAMA_PORT = 11434
RUNTIMES = ("llamacpp", "ollama")
MANAGE = ("auto", "adopt", "own")
BETWEEN_HOSTS = ("auto", "trusted", "never")
ROLES = ("orchestrate", "train", "inference", "preprocess", "evaluate", "embed")
WHEN_IDLE = ("nothing", "suspend", "poweroff")
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
    leaves out what swarmctl would have set. `version` is that of the source distribution which carries
    llama.cpp, and `sha256` its hash."""

    port: int = DEFAULT_PORT
    backend: str = "auto"
    flags: Mapping[str, Any] = field(default_factory=dict)
    version: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class OllamaWish:
    """How Ollama should run on a host. One server on `port` serves all of its models.

    `manage` is `adopt` (use the one that runs there, never start one), `own` (swarmctl's own) or `auto`:
    adopt where somebody runs one on the port, else own. `env` is the environment of an own one and wins over
    what follows from facts. `version` pins the release and `sha256` the archive it comes in.
    """

    port: int = OLLAMA_PORT
    manage: str = "auto"
    env: Mapping[str, Any] = field(default_factory=dict)
    version: str | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class TrainWish:
    """How a host trains. `python` is the interpreter of an environment that is there already and has what
    swarmctl/jobs/environment.txt names; None: swarmctl makes one."""

    python: str | None = None


@dataclass(frozen=True, slots=True)
class ImproveWish:
    """When `improve` trains a model anew, and what it takes to serve the result.

    A round begins after `labels` new ratings (or a significant drop, or a drift of the topics), not before
    `cooldown_hours` since the last, and within `budget_hours` and `budget_kwh` of training a week. Held-out
    prompts are asked `samples` times at `temperature`, and `by` and `measure` decide (see docs/eval.md). Then
    a human signs, unless `sign` is false, and the release gets `share` of the conversations.
    """

    recipe: str = "dpo-lora"
    labels: int = 100
    cooldown_hours: float = 24.0
    budget_hours: float = 24.0
    budget_kwh: float | None = None
    quantize: str = "Q4_K_M"
    share: float = 0.1
    sign: bool = True
    by: str = "references"
    measure: str = "f1"
    judge: str | None = None
    capability: str | None = None
    temperature: float | None = None
    samples: int = 1
    max_tokens: int = 512
    host: str | None = None


@dataclass(frozen=True, slots=True)
class AdapterWish:
    """A LoRA adapter that a release puts over a model's weights: its GGUF here and that file's hash. `over`
    is the release whose weights they are, empty for the inventory's own."""

    source: str
    sha256: str
    over: str = ""


@dataclass(frozen=True, slots=True)
class ModelWish:
    """A model the swarm knows. `source` is `shipped:small`, a path to a GGUF file, an https URL with
    `sha256`, or `ollama:NAME`, which Ollama pulls from its registry.

    `context` is tokens per conversation, `parallel` the number of conversations at once. `quality` is a first
    guess of the share of good answers per category (0 to 1), used until ratings say otherwise. `flags` as in
    LlamaCppWish. An `embedding` model makes vectors and answers no questions. Without `improve` it is
    trained by hand only. `weights` is the Hugging Face folder that training starts from.

    `of`, `release`, `share`, `canary` and `adapter` are never read from a file: fleet.releases fills them in
    for a trained release of the model `of`.
    """

    name: str
    source: str
    sha256: str | None = None
    context: int | None = None
    parallel: int | None = None
    quality: Mapping[str, float] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)
    embedding: bool = False
    improve: ImproveWish | None = None
    weights: str | None = None
    of: str = ""
    release: str = ""
    share: float = 1.0
    canary: bool = False
    adapter: AdapterWish | None = None

    @property
    def served_as(self) -> str:
        """The name by which people ask for it: of a release its model's."""
        return self.of or self.name

    @property
    def pulled(self) -> str | None:
        """The registry's name of a model that Ollama pulls, or None."""
        return self.source.removeprefix("ollama:") if self.source.startswith("ollama:") else None


@dataclass(frozen=True, slots=True)
class Placement:
    """A model wanted on a host, with this host's own settings over the model's. The parser always fills in
    `runtime`; see `runtime_of`."""

    model: str
    context: int | None = None
    parallel: int | None = None
    port: int | None = None
    flags: Mapping[str, Any] = field(default_factory=dict)
    runtime: str | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """A machine. `ssh` is an alias of ~/.ssh/config or [user@]address[:port]; `local` means this very
    machine.

    An `intermittent` host may be off; `mac` is the address that wakes it, by a packet that the host
    `wake_via` sends, and with `wake_on_demand` a question that only it answers well does. After
    `idle_minutes` without a question `swarmctl idle` does what `when_idle` says, by `sleep_command` where
    there is one.
    """

    name: str
    ssh: str
    roles: tuple[str, ...] = ("inference",)
    llamacpp: LlamaCppWish | None = None
    models: tuple[Placement, ...] = ()
    data_dir: str = DEFAULT_DATA_DIR
    limits: Limits = field(default_factory=Limits)
    energy: Energy = field(default_factory=Energy)
    connect_timeout: float = 5.0
    ollama: OllamaWish | None = None
    intermittent: bool = False
    mac: str | None = None
    idle_minutes: float | None = None
    when_idle: str = "nothing"
    sleep_command: tuple[str, ...] = ()
    wake_via: str | None = None
    wake_on_demand: bool = False
    train: TrainWish | None = None

    @property
    def local(self) -> bool:
        """Whether commands run here, without SSH."""
        return self.ssh == "local"


@dataclass(frozen=True, slots=True)
class RoutingWish:
    """What the router may do beyond taking the cheapest that is likely good enough.

    `explore` is the share of questions, 0 to 1, that may be spent on learning; `cascade` allows a small model
    to be asked first, `hedge` a second request to an idle host where the first is late. At most `queue`
    questions wait for a free slot, each at most `queue_seconds`.
    """

    explore: float = 0.03
    cascade: bool = True
    hedge: bool = True
    queue: int = 64
    queue_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class Inventory:
    """All wishes. `ssh_config` replaces ~/.ssh/config (like `ssh -F`); `airgap` is a folder to take runtimes
    from. `between_hosts` says how hosts may give each other weights: see BETWEEN_HOSTS and docs/models.md.

    `value_of_time` is money per hour of a person's waiting: it weighs seconds against energy in the router's
    price. `cost_of_bad_answer` is what one bad answer costs, in seconds of a person's time.
    """

    hosts: tuple[Host, ...]
    models: Mapping[str, ModelWish]
    source: str
    ssh_config: str | None = None
    airgap: str | None = None
    between_hosts: str = "auto"
    value_of_time: float = 30.0
    cost_of_bad_answer: float = 60.0
    routing: RoutingWish = field(default_factory=RoutingWish)

    def host(self, name: str) -> Host:
        """The host of that name; KeyError where there is none."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise KeyError(name)


def runtime_of(host: Host, placement: Placement) -> str:
    """The runtime that serves a placement: the one it names, else the only one the host names, else
    llama.cpp."""
    only_ollama = host.ollama is not None and host.llamacpp is None
    return placement.runtime or ("ollama" if only_ollama else "llamacpp")


def placed_on(host: Host, runtime: str) -> tuple[tuple[Placement, int], ...]:
    """The placements of one runtime in the inventory's order, each with its loopback port."""
    return tuple((placement, port) for placement, port in zip(host.models, placement_ports(host), strict=True)
                 if runtime_of(host, placement) == runtime)


def placement_ports(host: Host) -> tuple[int, ...]:
    """The loopback port of each placement, in the order of `host.models`: Ollama's for all that it serves; of
    llama.cpp's its own, else the host's first port plus its position. The parser refuses inventories in which
    two servers of one machine would meet on a port."""
    first, ollama = (host.llamacpp or LlamaCppWish()).port, (host.ollama or OllamaWish()).port
    return tuple(ollama if runtime_of(host, placement) == "ollama" else placement.port or first + index
                 for index, placement in enumerate(host.models))
