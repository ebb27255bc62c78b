"""sft, dpo and kto: TRL's own trainers, given the recipe's keys and what the host's facts decided.

In one process TRL runs in this very one; with more, torchrun starts them (see launch) and each comes in
through `train`. Rows that TRL would drop without a word are counted, and too many of them fail the job.
"""

from __future__ import annotations

import gc
import shutil
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from swarmctl.jobs.progress import WHOLE, callback, in_common, memory
from swarmctl.jobs.spec import JobError

if TYPE_CHECKING:
    from pathlib import Path

    from swarmctl.jobs.folder import Folder
    from swarmctl.jobs.spec import Spec

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
TRAINERS = {"sft": ("SFTTrainer", "SFTConfig"), "dpo": ("DPOTrainer", "DPOConfig"),
            "kto": ("KTOTrainer", "KTOConfig")}


def sft(spec: Spec, folder: Folder) -> dict[str, Any]:
    """Supervised: prompts and the completions to learn."""
    return _stage(spec, folder, "sft")


def dpo(spec: Spec, folder: Folder) -> dict[str, Any]:
    """Preferences: prompts, each with a chosen and a rejected answer."""
    return _stage(spec, folder, "dpo")


def kto(spec: Spec, folder: Folder) -> dict[str, Any]:
    """Single answers, each good or bad."""
    return _stage(spec, folder, "kto")


def train(spec: Spec, folder: Folder, stage: str) -> dict[str, Any]:
    """Train in this process, alone or as one of several. What came of it; the same in every process."""
    import torch

    if spec.threads:
        torch.set_num_threads(spec.threads)
    if spec.deepspeed:
        # ZeRO-3 shards weights as they are read, and takes itself for alone where this comes later
        import deepspeed

        deepspeed.init_distributed()
    began = time.monotonic()
    rows = _rows(folder.path / spec.dataset / "train.parquet", folder, spec, stage)
    trainer = _trainer(spec, folder, stage, rows)
    kept = _kept(trainer, rows, spec)
    newest = newest_checkpoint(folder)
    if newest is not None and trainer.is_world_process_zero():
        folder.say(stage, event="resumed", checkpoint=newest.name)
    done = trainer.train(resume_from_checkpoint=str(newest) if newest else None)
    out = folder.adapter if spec.args.get("use_peft") else folder.path / "out" / "trained"
    trainer.save_model(str(out))
    (out / "training_args.bin").unlink(missing_ok=True)  # a pickle, which nobody here opens
    last: dict[str, Any] = next((log for log in reversed(trainer.state.log_history) if "loss" in log), {})
    gave: dict[str, Any] = {
        "rows": len(rows), "kept": kept, "steps": trainer.state.global_step,
        "loss": float(done.training_loss), "last_loss": last.get("loss"),
        "reward_margin": last.get("rewards/margins"), "tokens": last.get("num_tokens"),
        "seconds": round(time.monotonic() - began, 3), "loop_seconds": done.metrics["train_runtime"],
        "cpu_seconds": round(time.process_time(), 3), "memory_bytes": memory(),
        "precision": spec.precision, "resumed": newest.name if newest else None,
        "trainable": sum(one.numel() for one in trainer.model.parameters() if one.requires_grad),
    }
    trainer.end()
    return gave


def newest_checkpoint(folder: Folder) -> Path | None:
    """The last checkpoint that was written to its end, on every host that trains with this one; those that
    were cut are removed."""
    found: dict[int, Path] = {}
    for path in folder.checkpoints.glob("checkpoint-*"):
        if (path / WHOLE).exists():
            found[int(path.name.rpartition("-")[2])] = path
        else:
            shutil.rmtree(path, ignore_errors=True)
    return found.get(max(in_common(found), default=-1))


def _stage(spec: Spec, folder: Folder, stage: str) -> dict[str, Any]:
    """Train, in as many processes as the spec says, and leave no memory taken behind."""
    if spec.processes > 1 or spec.node or spec.deepspeed:
        from swarmctl.jobs.launch import launch

        gave: dict[str, Any] = launch(spec, folder, stage)
    else:
        gave = train(spec, folder, stage)
        _free()
    shutil.rmtree(folder.checkpoints, ignore_errors=True)
    shutil.rmtree(folder.path / "cache", ignore_errors=True)
    return gave


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _rows(path: Path, folder: Folder, spec: Spec, stage: str) -> Any:  # noqa: ANN401  a datasets.Dataset
    from datasets import Dataset

    if not path.exists():
        raise JobError(f"{path} is missing: the dataset has no train split")
    rows = Dataset.from_parquet(str(path), cache_dir=str(folder.path / "cache"))
    wanted = {"sft": ("prompt", "completion"), "dpo": ("prompt", "chosen", "rejected"),
              "kto": ("prompt", "completion", "label")}[stage]
    missing = [name for name in wanted if name not in rows.column_names]
    if missing:
        raise JobError(f"the dataset is not for {stage}: it lacks {', '.join(missing)}")
    if not len(rows):
        raise JobError("the dataset has no rows to train on")
    rows = rows.select_columns(list(wanted))
    # KTO compares each row with its neighbour and therefore samples in order: the order must be no pattern.
    return rows.shuffle(seed=spec.args.get("seed", 42)) if stage == "kto" else rows


def _trainer(spec: Spec, folder: Folder, stage: str, rows: Any) -> Any:  # noqa: ANN401
    import torch
    import trl

    trainer, config = (getattr(trl, name) for name in TRAINERS[stage])
    named = {one.name for one in fields(trl.ModelConfig)}
    given = {key: value for key, value in spec.args.items()
             if key not in ("model_name_or_path", "dataset_name")}
    start = folder.start(spec.model)
    model = trl.ModelConfig(model_name_or_path=start, **{
        "dtype": _dtype(spec), **{key: value for key, value in given.items() if key in named}})
    if (model.load_in_4bit or model.load_in_8bit) and not torch.cuda.is_available():
        raise JobError("a quantised base needs CUDA, and there is none here: leave load_in_4bit out")
    args = config(**{**_arguments(spec, folder, stage),
                     **{key: value for key, value in given.items() if key not in named}})
    args.model_init_kwargs = {"dtype": model.dtype, "attn_implementation": model.attn_implementation,
                              **(args.model_init_kwargs or {})}
    held = folder.path / spec.dataset / "heldout.parquet"
    evaluated = _rows(held, folder, spec, stage) if args.eval_strategy != "no" and held.exists() else None
    return trainer(
        model=start, args=args, train_dataset=rows, eval_dataset=evaluated,
        quantization_config=trl.get_quantization_config(model), peft_config=trl.get_peft_config(model),
        callbacks=[callback(spec, folder, stage)])


def _dtype(spec: Spec) -> str:
    """Frozen weights may lie in 16 bits; weights that are trained themselves stay in 32, or lose small
    updates."""
    return DTYPES[spec.precision] if spec.args.get("use_peft") else "float32"


def _arguments(spec: Spec, folder: Folder, stage: str) -> dict[str, Any]:
    """What swarmctl sets, where the recipe does not say otherwise."""
    import torch

    gpu = torch.cuda.is_available()
    own = {
        "output_dir": str(folder.checkpoints), "run_name": spec.run, "report_to": ["tensorboard"],
        "bf16": spec.precision == "bf16", "fp16": spec.precision == "fp16", "use_cpu": not gpu,
        "dataloader_pin_memory": gpu, "disable_tqdm": True, "logging_first_step": True,
        "logging_nan_inf_filter": False, "save_total_limit": 2,
        "save_strategy": "steps" if "save_steps" in spec.args else "no",
    }
    if stage == "kto":
        own["train_sampling_strategy"] = "sequential"
    if spec.deepspeed:
        own["deepspeed"] = dict(spec.deepspeed)
    if (spec.processes > 1 or spec.node) and not gpu:
        own["ddp_backend"] = "gloo"
    if spec.node:
        own["save_on_each_node"] = True  # each host resumes from its own checkpoint
    return own


def _kept(trainer: Any, rows: Any, spec: Spec) -> int:  # noqa: ANN401
    """Rows that TRL kept. Raises JobError where it dropped more than the recipe allows."""
    kept = len(trainer.train_dataset)
    if spec.args.get("packing"):
        return len(rows)
    lost = len(rows) - kept
    if lost > spec.dropped * len(rows):
        raise JobError(
            f"{lost} of {len(rows)} rows are longer than max_length ({trainer.args.max_length} tokens) and "
            f"would be dropped; raise max_length, or allow it: swarmctl: {{dropped: {lost / len(rows):.2f}}}")
    return kept
