"""What TRL's trainer tells while it works, as lines of progress.jsonl; and when to give a run up or save it.

Every number is what the trainer itself computed. Speed and the time that is left are for the reader to
compute from these lines: they hold the clock and the count of tokens.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from swarmctl.jobs.spec import JobError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from swarmctl.jobs.folder import Folder
    from swarmctl.jobs.spec import Spec

#: our name → the trainer's
NAMES = {"loss": "loss", "reward_margin": "rewards/margins", "learning_rate": "learning_rate",
         "epoch": "epoch", "grad_norm": "grad_norm", "tokens": "num_tokens", "eval_loss": "eval_loss"}
IN_A_ROW = 3
EXPLODED = 10.0
WHOLE = "whole"


def diverged(losses: Sequence[float]) -> str | None:
    """Why a run with these logged losses is lost, or None: not a number, or three in a row ten times the
    first."""
    if losses and not math.isfinite(losses[-1]):
        return f"the loss became {losses[-1]} after {len(losses)} reports"
    last = losses[-IN_A_ROW:]
    bound = EXPLODED * max(losses[0], 0.5) if losses else math.inf
    if len(losses) > IN_A_ROW and min(last) > bound:
        return f"the loss exploded: {losses[0]:.3g} at first, now {last[-1]:.3g}"
    return None


def callback(spec: Spec, folder: Folder, stage: str) -> Any:  # noqa: ANN401  a TrainerCallback
    """A callback that reports, saves in time, marks whole checkpoints and gives up a run that is lost."""
    from transformers import TrainerCallback

    class Report(_Report, TrainerCallback):  # type: ignore[misc]
        """TRL asks for a TrainerCallback by its class."""

    return Report(spec, folder, stage)


class _Report:
    """One training's reports. Only the first process writes. Signatures are TrainerCallback's."""

    def __init__(self, spec: Spec, folder: Folder, stage: str) -> None:
        self.spec, self.folder, self.stage = spec, folder, stage
        self.losses: list[float] = []
        self.saved = time.monotonic()

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Mapping[str, Any] | None = None,  # noqa: ANN401
               **_: Any) -> None:  # noqa: ANN401
        """The trainer has numbers to tell."""
        found = {ours: logs[theirs] for ours, theirs in NAMES.items() if logs and theirs in logs}
        if state.is_world_process_zero and found:
            self.folder.say(self.stage, step=state.global_step, steps=state.max_steps, memory_bytes=memory(),
                            **{key: _number(value) for key, value in found.items()})
        if "loss" not in found:
            return
        self.losses.append(float(found["loss"]))
        why = diverged(self.losses)
        if why:
            raise JobError(f"{self.stage} diverged at step {state.global_step}: {why}; "
                           "a lower learning_rate helps")

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401
        """A step of the optimiser is done."""
        due = time.monotonic() - self.saved > self.spec.checkpoint_minutes * 60
        if agreed(due) and state.global_step < state.max_steps:
            control.should_save = True

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:  # noqa: ANN401
        """A checkpoint was written to its end."""
        self.saved = time.monotonic()
        saved = self.folder.checkpoints / f"checkpoint-{state.global_step}"
        if args.should_save and saved.is_dir():
            (saved / WHOLE).touch()
        if state.is_world_process_zero:
            self.folder.say(self.stage, event="checkpoint", step=state.global_step, steps=state.max_steps)


def agreed(due: bool) -> bool:
    """Whether any of the processes that train together says so: a checkpoint is written by all or by none."""
    import torch
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return due
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    vote = torch.tensor(int(due), device=device)
    distributed.all_reduce(vote, op=distributed.ReduceOp.MAX)
    return bool(vote.item())


def in_common(steps: Iterable[int]) -> set[int]:
    """Of the steps that this process has, those that all have that train together: a host that died may lack
    the newest."""
    from torch import distributed

    mine = set(steps)
    if not distributed.is_available() or not distributed.is_initialized():
        return mine
    told: list[set[int] | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(told, mine)
    return set.intersection(mine, *(one for one in told if one is not None))


def memory() -> int:
    """The most bytes this process has had: on its GPU where it has one, else in RAM."""
    import resource
    import sys

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _number(value: Any) -> float | None:  # noqa: ANN401
    """A number that JSON can hold."""
    return float(value) if math.isfinite(float(value)) else None
