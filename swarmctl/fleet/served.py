"""What a host serves once it is as wanted, in the snapshot's words: one `Served` for each model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmctl.fleet.snapshot import Served
from swarmctl.inventory import placed_on
from swarmctl.runtimes.llamacpp_plan import wanted_servers
from swarmctl.runtimes.llamacpp_serve import server_name
from swarmctl.runtimes.ollama_plan import adopted, speed_name, tag_of
from swarmctl.runtimes.ollama_serve import served_context, shape_of
from swarmctl.runtimes.plans import ollama_room
from swarmctl.shipped import shipped_quality

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from swarmctl.facts import Facts, OllamaModel
    from swarmctl.inventory import ModelWish
    from swarmctl.runtimes.base import Want

#: bytes a weight takes, where only a model's size is known: a 4-bit quantisation with its scales
BYTES_PER_WEIGHT = 0.6


def served_on(want: Want, seen: Facts) -> Iterator[Served]:
    """Every model that runs on the host as wanted and whose speed is known, llama.cpp's first."""
    if placed_on(want.host, "llamacpp"):
        yield from _llamacpp(want, seen)
    if placed_on(want.host, "ollama"):
        yield from _ollama(want, seen)


def expected_quality(wish: ModelWish) -> Mapping[str, float]:
    """What the inventory expects of a model; for a shipped one what was measured when it was made."""
    if not wish.quality and wish.source.startswith("shipped:"):
        return shipped_quality(wish.source.removeprefix("shipped:"))
    return wish.quality


def _llamacpp(want: Want, seen: Facts) -> Iterator[Served]:
    speeds = {server.name: server.speed for server in seen.servers}
    for spec, _ in wanted_servers(want, seen)[0]:
        model, wish, speed = want.models[spec.model], want.wishes[spec.model], speeds.get(spec.name)
        if speed is None:
            continue
        yield Served(
            runtime="llamacpp", server=spec.name, model=wish.served_as, digest=model.digest,
            template=model.template_sha256, port=spec.port, context=spec.context, parallel=spec.parallel,
            parameters=model.parameters, size=model.loaded, quantisation=model.quantisation,
            prefill_speed=speed.prefill, decode_speed=speed.decode, overhead=speed.overhead,
            load_seconds=speed.load, quality=expected_quality(wish), embedding=want.embeds(spec.model),
            release=wish.release, share=wish.share, canary=wish.canary, files=model.files)


def _ollama(want: Want, seen: Facts) -> Iterator[Served]:
    """`server` names model and runtime: one Ollama serves many, and each is learned of by itself."""
    there = adopted(want, seen)
    shape = shape_of(want, seen, ollama_room(want, seen))
    for placement, port in placed_on(want.host, "ollama"):
        tag = tag_of(want, placement)
        held = _held(seen, port, tag)
        speed = seen.ollama_speeds.get(speed_name(tag))
        if held is None or speed is None:
            continue
        model, wish = want.models.get(placement.model), want.wishes[placement.model]
        yield Served(
            runtime="ollama", server=f"ollama:{server_name(placement.model)}", model=wish.served_as,
            digest=model.digest if model else held.digest, template=model.template_sha256 if model else "",
            port=port, context=served_context(want, placement, shape, adopted=there is not None),
            parallel=1 if there else shape.parallel,
            parameters=model.parameters if model else int(held.size / BYTES_PER_WEIGHT),
            size=model.loaded if model else held.size,
            quantisation=model.quantisation if model else held.quantisation,
            prefill_speed=speed.prefill, decode_speed=speed.decode, overhead=speed.overhead,
            load_seconds=speed.load, quality=expected_quality(wish), tag=tag,
            embedding=want.embeds(placement.model), release=wish.release, share=wish.share,
            canary=wish.canary)


def _held(seen: Facts, port: int, tag: str) -> OllamaModel | None:
    return next((model for ollama in seen.ollamas if ollama.port == port for model in ollama.models
                 if model.name == tag), None)
