"""The plan of a host: what each of its runtimes wants, in one order. Pure.

llama.cpp's servers are placed first, as each holds its memory for good; Ollama gets what they leave, and
shares it among its models by evicting.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from swarmctl.inventory import LlamaCppWish, placed_on
from swarmctl.runtimes.llamacpp_build import choose_build
from swarmctl.runtimes.llamacpp_fit import room
from swarmctl.runtimes.llamacpp_plan import plan_llamacpp
from swarmctl.runtimes.llamacpp_serve import room_left
from swarmctl.runtimes.ollama_plan import adopted, notes, plan_ollama, wanted_server
from swarmctl.runtimes.ollama_serve import usable_gpus
from swarmctl.runtimes.versions import version_notes

if TYPE_CHECKING:
    from swarmctl.facts import Facts
    from swarmctl.runtimes.base import Want
    from swarmctl.runtimes.llamacpp_fit import Room
    from swarmctl.steps import Step


def plan_host(want: Want, seen: Facts) -> tuple[Step, ...]:
    """The steps that make a host what is wanted; empty when it is. Raises SwarmError where none could."""
    left = ollama_room(want, seen)
    own = wanted_server(want, seen, left)
    return (*plan_llamacpp(want, seen, (own,) if own else ()), *plan_ollama(want, seen, left))


def host_notes(want: Want, seen: Facts) -> tuple[str, ...]:
    """What a person should know of a plan that has no step for it: what is adopted, which version stays."""
    own = ("llamacpp",) if adopted(want, seen) else ("llamacpp", "ollama")
    return (*notes(want, seen), *version_notes(want, seen, own))


def ollama_room(want: Want, seen: Facts) -> Room:
    """The memory that llama.cpp's servers leave to Ollama on a host."""
    whole = room(seen, want.host.limits, usable_gpus(seen))
    if not placed_on(want.host, "llamacpp") or not placed_on(want.host, "ollama"):
        return whole
    build = choose_build((want.host.llamacpp or LlamaCppWish()).backend, seen)
    left = room_left(want, seen, build)
    return left if build.backend.gpus else replace(whole, memory=left.memory)
