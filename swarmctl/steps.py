"""One step of a plan: what would be done on a host, and why. Pure data, comparable, so that plans are tested
as data.

A runtime's `plan(want, seen)` makes steps, `fleet.converge` applies them. Every step can be cut anywhere and
applied again; `plan(want, seen-after-apply) == ()`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class InstallRuntime:
    """Put a build of the runtime under data_dir/runtimes/: from our store, an air-gapped folder, a like host,
    or by building it on the host with `cmake_flags`. `key` names version, platform, backend and flags.

    Ollama comes as its official archive instead: `key` is the version, `backend` the platform, `sha256` the
    archive's hash where the inventory or swarmctl knows it.
    """

    key: str
    version: str
    backend: str
    cmake_flags: tuple[str, ...]
    reason: str
    runtime: str = "llamacpp"
    sha256: str | None = None

    @property
    def title(self) -> str:
        """What a person reads in the plan."""
        name = "Ollama" if self.runtime == "ollama" else "llama.cpp"
        return f"install {name} {self.version} ({self.backend})"


@dataclass(frozen=True, slots=True)
class PutBlob:
    """Put a file's bytes under data_dir/blobs/ by content hash. `size` in bytes."""

    model: str
    sha256: str
    size: int
    reason: str

    @property
    def title(self) -> str:
        """What a person reads in the plan."""
        return f"put model {self.model} ({self.size / 1e6:,.1f} MB)"


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """A server to run. `argv` holds absolute paths on the host; `digest` is the hash of everything here.

    An Ollama serves many models: its `model` is empty.
    """

    name: str
    model: str
    sha256: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    port: int
    context: int
    parallel: int
    mode: str
    digest: str


@dataclass(frozen=True, slots=True)
class StartServer:
    """Start a server under supervision, or replace the one of that name."""

    spec: ServerSpec
    reason: str

    @property
    def title(self) -> str:
        """What a person reads in the plan."""
        return f"serve {self.spec.model or 'Ollama'} on 127.0.0.1:{self.spec.port}"


@dataclass(frozen=True, slots=True)
class StopServer:
    """Stop a server that swarmctl started."""

    name: str
    mode: str
    reason: str

    @property
    def title(self) -> str:
        """What a person reads in the plan."""
        return f"stop server {self.name}"


@dataclass(frozen=True, slots=True)
class MeasureSpeed:
    """Time a short prefill and decode, so that the router knows this (host, model) before the first
    question."""

    server: str
    model: str
    port: int
    context: int
    reason: str
    tag: str = ""
    embedding: bool = False

    @property
    def title(self) -> str:
        """What a person reads in the plan."""
        return f"measure the speed of {self.model}"


@dataclass(frozen=True, slots=True)
class CreateModel:
    """Make a model in an Ollama of a GGUF's bytes, under a name that says which bytes. `size` in bytes;
    `parameters` are Ollama's, fixed when the model is made. `anew` where one of that name lacks weights.
    Where the bytes are a LoRA adapter's, `base` is the Ollama model that it goes over."""

    model: str
    tag: str
    sha256: str
    size: int
    port: int
    parameters: Mapping[str, int]
    reason: str
    anew: bool = False
    base: str = ""

    @property
    def title(self) -> str:
        """What a person reads in the plan."""
        said = ", ".join((*([f"an adapter over {self.base}"] if self.base else []),
                          *(f"{key} {value}" for key, value in self.parameters.items())))
        return f"create {self.tag} in Ollama ({self.size / 1e6:,.1f} MB{', ' if said else ''}{said})"


@dataclass(frozen=True, slots=True)
class PullModel:
    """Have an Ollama fetch a model from its registry; `anew` where one of that name lacks weights."""

    model: str
    tag: str
    port: int
    reason: str
    anew: bool = False

    @property
    def title(self) -> str:
        """What a person reads in the plan."""
        return f"pull {self.tag} into Ollama"


Step = InstallRuntime | PutBlob | StartServer | StopServer | MeasureSpeed | CreateModel | PullModel
