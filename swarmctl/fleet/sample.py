"""What a runtime does on a host at this moment: each model's speed, and its answers to fixed prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from swarmctl.errors import ServerError
from swarmctl.exchange import ChatRequest, Message
from swarmctl.fleet.converge import endpoint_of
from swarmctl.fleet.measure import load_limit, measure, measure_embedding
from swarmctl.inventory import placed_on
from swarmctl.runtimes.llamacpp_plan import wanted_servers
from swarmctl.runtimes.named import embedder, runtime
from swarmctl.runtimes.ollama_plan import tag_of
from swarmctl.runtimes.ollama_serve import served_context, shape_of
from swarmctl.runtimes.plans import ollama_room
from swarmctl.runtimes.regression import Answer, Sample, better_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from swarmctl.facts import Facts, Speed
    from swarmctl.fleet.converge import Supply
    from swarmctl.runtimes.base import Endpoint, Want

#: short, of several kinds, and with answers that any chat model begins the same way every time
PROMPTS = ("hello", "What is the capital of France?", "What is 17 + 25?", "Count from one to five.",
           "Write a Python function that adds two numbers.", "Is the sun hot? Answer yes or no.")
TEXTS = ("hello", "What is the capital of France?", "The parcel arrived late, and wet.")
#: tokens of an answer: as many as the server gives in SECONDS, within bounds
SECONDS, FEWEST, MOST = 4.0, 8, 64
CONNECT = 5.0
#: bytes of a model of unknown size, for its time to load
UNKNOWN_SIZE = 20 << 30


@dataclass(frozen=True, slots=True)
class Subject:
    """A model on a host, as it is sampled. `key` is its server's name, in Ollama its own."""

    key: str
    model: str
    runtime: str
    port: int
    context: int
    size: int
    embedding: bool
    tag: str = ""


def subjects(name: str, want: Want, seen: Facts) -> tuple[Subject, ...]:
    """The models that a runtime serves on a host now."""
    return tuple(_llamacpp(want, seen) if name == "llamacpp" else _ollama(want, seen))


def take_samples(found: tuple[Subject, ...], want: Want, supply: Supply,
                 tell: Callable[[str], None]) -> dict[str, Sample]:
    """A sample of each, by its key. Raises ServerError where one cannot be measured."""
    samples = {}
    for one in found:
        tell(f"measuring {one.model}")
        endpoint = replace(endpoint_of(want, one.port, supply), model=one.tag or one.model)
        samples[one.key] = _sample(one, endpoint)
    return samples


def measure_again(found: tuple[Subject, ...], samples: dict[str, Sample], want: Want,
                  supply: Supply) -> dict[str, Sample]:
    """The same samples, each with the better of its speed and one measured now. Raises ServerError."""
    return {one.key: replace(samples[one.key], speed=better_of(samples[one.key].speed, _speed(
        one, replace(endpoint_of(want, one.port, supply), model=one.tag or one.model)))) for one in found}


def _sample(one: Subject, endpoint: Endpoint) -> Sample:
    speed = _speed(one, endpoint)
    if one.embedding:
        made = embedder(one.runtime).embed(endpoint, TEXTS, connect_timeout=CONNECT,
                                           timeout=load_limit(one.size))
        return Sample(speed, vectors=tuple(tuple(vector) for vector in made.vectors))
    most = max(FEWEST, min(MOST, int(speed.decode * SECONDS), one.context // 2))
    return Sample(speed, tuple(_answer(one, endpoint, prompt, most) for prompt in PROMPTS))


def _speed(one: Subject, endpoint: Endpoint) -> Speed:
    if one.embedding:
        return measure_embedding(one.runtime, endpoint, context=one.context, load=0.0)
    return measure(one.runtime, endpoint, context=one.context, limit=load_limit(one.size))


def _answer(one: Subject, endpoint: Endpoint, prompt: str, most: int) -> Answer:
    """A greedy answer. A server that fails at it is not an error here: it is what was asked."""
    ask = ChatRequest((Message("user", prompt),), max_tokens=most, temperature=0.0, seed=1)
    limit = load_limit(one.size)
    text, finish = "", "error"
    try:
        for chunk in runtime(one.runtime).chat(endpoint, ask, connect_timeout=CONNECT,
                                               first_token_timeout=limit, token_timeout=limit):
            text += chunk.text
            finish = chunk.finish or finish
    except ServerError as exc:
        return Answer(exc.message, "error")
    return Answer(text, finish)


def _llamacpp(want: Want, seen: Facts) -> Iterator[Subject]:
    there = {server.name for server in seen.servers}
    for spec, _ in wanted_servers(want, seen)[0] if placed_on(want.host, "llamacpp") else ():
        if spec.name in there:
            yield Subject(spec.name, spec.model, "llamacpp", spec.port, spec.context,
                          want.models[spec.model].size, want.embeds(spec.model))


def _ollama(want: Want, seen: Facts) -> Iterator[Subject]:
    placed = placed_on(want.host, "ollama")
    shape = shape_of(want, seen, ollama_room(want, seen)) if placed else None
    for placement, port in placed:
        tag = tag_of(want, placement)
        if shape and tag in seen.ollama_kept:
            model = want.models.get(placement.model)
            yield Subject(tag, placement.model, "ollama", port,
                          served_context(want, placement, shape, adopted=False),
                          model.size if model else UNKNOWN_SIZE, want.embeds(placement.model), tag)
