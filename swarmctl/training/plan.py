"""A training on one host, wholly decided before anything starts: what it computes in, in how many
processes. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swarmctl.errors import Unfit
from swarmctl.jobs.spec import Spec
from swarmctl.training.deepspeed import deepspeed_config
from swarmctl.training.memory import Sum, disk_needed, memory_needed
from swarmctl.training.precision import gpus_for_training, precision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swarmctl.facts import Facts
    from swarmctl.inventory import Limits
    from swarmctl.recipe import Recipe
    from swarmctl.training.shape import ModelShape


@dataclass(frozen=True, slots=True)
class Fitting:
    """How a recipe would run on a host. `why` explains the precision."""

    precision: str
    why: str
    processes: int
    threads: int | None
    memory: Sum
    disk: Sum
    deepspeed: Mapping[str, Any] | None = None

    @property
    def lacks(self) -> tuple[Sum, ...]:
        """What there is too little of."""
        return tuple(one for one in (self.memory, self.disk) if not one.fits)


@dataclass(frozen=True, slots=True)
class Load:
    """What a training brings to a host: the longest row in tokens, and bytes that are still to be put
    there."""

    longest: int
    weights: int
    dataset: int
    environment: int


def fitting(recipe: Recipe, shape: ModelShape, load: Load, seen: Facts, limits: Limits) -> Fitting:
    """Decide how a recipe runs on a host. Raises Unfit where its hardware cannot do what the recipe asks
    for."""
    chosen, why = precision(recipe, seen)
    gpus = gpus_for_training(seen)
    if (recipe.keys.get("load_in_4bit") or recipe.keys.get("load_in_8bit")) and not any(
            gpu.vendor == "nvidia" for gpu in gpus):
        raise Unfit("the recipe loads its base in 4 or 8 bits, which needs an NVIDIA GPU", host=seen.hostname,
                    hint="dpo-lora keeps the base in 16 bits")
    processes = recipe.own.processes or max(1, len(gpus))
    if gpus and processes > len(gpus):
        raise Unfit(f"{processes} processes need as many GPUs, and there are {len(gpus)}", host=seen.hostname,
                    hint="leave `processes` out of the recipe")
    of, has = _room(seen, processes)
    memory = memory_needed(recipe, shape, chosen, load.longest, of=of, has=has)
    disk = disk_needed(recipe, shape, weights=load.weights, dataset=load.dataset,
                       environment=load.environment, has=min(seen.disk.free, limits.disk or seen.disk.free))
    threads = None if gpus else max(1, (limits.threads or seen.cpu.threads) // processes)
    return Fitting(chosen, why, processes, threads, memory, disk, deepspeed_config(recipe.own, chosen, seen))


def spec_of(recipe: Recipe, fit: Fitting, *, run: str, model: str) -> Spec:
    """The job's spec.json. `model` is the folder of the weights on the host."""
    return Spec(run=run, stages=recipe.stages, model=model, dataset="data", args=dict(recipe.keys),
                precision=fit.precision, processes=fit.processes, threads=fit.threads,
                checkpoint_minutes=recipe.own.checkpoint_minutes, dropped=recipe.own.dropped,
                deepspeed=fit.deepspeed, more={"prune": dict(recipe.own.prune)} if recipe.own.prune else {})


def _room(seen: Facts, processes: int) -> tuple[str, int]:
    """What one process may take: free memory of the GPU with the least of it, or its part of the
    machine's."""
    gpus = gpus_for_training(seen)[:processes]
    free = [gpu.memory_free if gpu.memory_free is not None else gpu.memory for gpu in gpus]
    known = [size for size in free if size is not None]
    if gpus:
        return f"memory of {gpus[0].name}", min(known, default=0)
    of = "memory" if processes == 1 else f"memory, for each of {processes} processes"
    return of, seen.memory_available // processes
