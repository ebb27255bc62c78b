"""Which hosts of the fleet could give another one a runtime, from what a survey saw of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmctl.runtimes.ollama_plan import ollama_platform

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from swarmctl.facts import Facts
    from swarmctl.fleet.shell import Remote


def build_holders(hosts: Sequence[tuple[Remote, Facts]], key: str) -> Iterator[tuple[Remote, str]]:
    """The hosts with that build of llama.cpp, each with its data_dir."""
    for remote, seen in hosts:
        if any(runtime.key == key for runtime in seen.runtimes):
            yield remote, seen.data_dir


def ollama_holders(hosts: Sequence[tuple[Remote, Facts]], version: str,
                   platform: str) -> Iterator[tuple[Remote, str, str]]:
    """The hosts with that Ollama for that platform, each with its data_dir and the program's path."""
    for remote, seen in hosts:
        if ollama_platform(seen) == platform and (binary := _ollama_binary(seen, version)):
            yield remote, seen.data_dir, binary


def _ollama_binary(seen: Facts, version: str) -> str | None:
    """Where a host has that release: what swarmctl installed, else its owner's own."""
    ours = next((runtime.path for runtime in seen.runtimes
                 if runtime.name == "ollama" and runtime.key == version), None)
    return f"{ours}/bin/ollama" if ours else seen.tool_paths.get("ollama") if seen.ollama == version else None
