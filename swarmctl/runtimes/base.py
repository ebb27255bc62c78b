"""What the rest of swarmctl knows of a model server.

A `Runtime` plans purely (`plan(want, seen)`) and speaks to a running server (`health`, `chat`, `load`). An
`Endpoint` says where its HTTP is: a unix socket (the near end of an SSH tunnel) or a loopback port.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from swarmctl.exchange import ChatRequest, Chunk
    from swarmctl.facts import Facts
    from swarmctl.inventory import Host, ModelWish
    from swarmctl.steps import Step


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server's HTTP is reached from this process: `socket` (a unix socket's path), else
    127.0.0.1:`port`. `model` is the name by which a server of many models knows the one that is meant."""

    socket: str | None = None
    port: int | None = None
    model: str = ""


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """The GGUF of a LoRA adapter; `over` is the release whose weights it goes over, empty for the
    inventory's own."""

    path: str
    sha256: str
    size: int
    over: str = ""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model's weights as swarmctl knows them, read from the GGUF header once.

    `parameters` counts weights, `size` is bytes of the file, `kv_bytes_per_token` the F16 KV cache a token
    takes. `pooling` is how an embedding model makes one vector of many tokens (mean, cls, last), rank for a
    reranker, and empty where the file does not say. With an `adapter` the model is this file and that one.
    """

    name: str
    path: str
    sha256: str
    size: int
    parameters: int
    quantisation: str
    context_train: int
    layers: int
    kv_bytes_per_token: int
    template_sha256: str
    pooling: str = ""
    adapter: AdapterFile | None = None

    @property
    def digest(self) -> str:
        """What tells these weights from all others: the file's hash, or with an adapter that of both."""
        return adapted_digest(self.sha256, self.adapter.sha256) if self.adapter else self.sha256

    @property
    def loaded(self) -> int:
        """Bytes of all its weights."""
        return self.size + (self.adapter.size if self.adapter else 0)

    @property
    def files(self) -> tuple[tuple[str, int], ...]:
        """Hash and bytes of its files where they are several, else nothing: `sha256` and `size` say it."""
        adapter = self.adapter
        return ((self.sha256, self.size), (adapter.sha256, adapter.size)) if adapter else ()

    def file(self, sha256: str) -> str:
        """The path of that one of its files."""
        return self.adapter.path if self.adapter and self.adapter.sha256 == sha256 else self.path


def adapted_digest(base: str, adapter: str) -> str:
    """The digest of weights with a LoRA adapter over them, from those of the two files."""
    return sha256(f"{base}+{adapter}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Want:
    """All that is wanted of one host: its inventory entry, and by name the model files and wishes its
    placements mean. `versions` are those of runtimes that are to run there whatever runs now."""

    host: Host
    models: Mapping[str, ModelFile] = field(default_factory=dict)
    wishes: Mapping[str, ModelWish] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def embeds(self, name: str) -> bool:
        """Whether a model makes vectors instead of answers: the inventory says so, or its file does."""
        wish, file = self.wishes.get(name), self.models.get(name)
        return bool(wish and wish.embedding) or bool(file and file.pooling in ("mean", "cls", "last"))


@dataclass(frozen=True, slots=True)
class Health:
    """`state` is unreachable, starting, loading, idle (not loaded), ready or degraded. Ready means that it
    generated a token.

    `seconds` is the time that token took.
    """

    state: str
    detail: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a server is: requests being answered, and slots (answers it can give at once)."""

    busy: int
    slots: int


class Speaker(Protocol):
    """How a running model server is spoken to."""

    name: str

    def ping(self, endpoint: Endpoint, *, timeout: float) -> bool:
        """Whether the model is loaded and ready to answer, from a server that is quick to say so even at
        work.

        Raises TunnelDown where nothing listens, ServerUnavailable where nothing is said in time.
        """
        ...

    def health(self, endpoint: Endpoint, *, timeout: float) -> Health:
        """Ask for one token. Loads, evicts and restarts nothing."""
        ...

    def chat(self, endpoint: Endpoint, ask: ChatRequest, *, connect_timeout: float,
             first_token_timeout: float, token_timeout: float) -> Iterator[Chunk]:
        """Stream an answer. Closing the iterator stops the server's work.

        Raises ServerUnavailable before the first token, StreamBroken after it, RequestRejected on a 4xx.
        """
        ...

    def load(self, endpoint: Endpoint, *, timeout: float) -> Load:
        """How busy the server is right now. Raises ServerUnavailable."""
        ...


class Runtime(Speaker, Protocol):
    """One kind of model server, planned and spoken to."""

    def plan(self, want: Want, seen: Facts) -> tuple[Step, ...]:
        """The steps from what was seen to what is wanted; empty when they agree. Pure."""
        ...
