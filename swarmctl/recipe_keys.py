"""What a recipe's keys mean beyond their types: which TRL has dropped, which swarmctl sets, which do not go
together.

FACTS: TRL 1.16 and transformers 5.23. A test holds GONE against the installed TRL: none of it may still be
there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: keys of older TRL and transformers → what to write now
GONE = {
    "torch_dtype": "write `dtype`",
    "max_prompt_length": "`max_length` bounds prompt and answer together",
    "max_completion_length": "`max_length` bounds prompt and answer together",
    "max_target_length": "`max_length` bounds prompt and answer together",
    "max_seq_length": "write `max_length`",
    "tokenizer": "the model's folder brings its tokenizer",
    "tokenizer_name": "the model's folder brings its tokenizer",
    "generate_during_eval": "`swarmctl eval` asks the served model",
    "rpo_alpha": "write loss_type: [sigmoid, sft] and loss_weights: [1.0, ALPHA]",
    "reference_free": "there is no such loss; take another `loss_type`",
    "label_pad_token_id": "leave it out",
    "padding_value": "leave it out; the tokenizer's own padding is used",
    "is_encoder_decoder": "leave it out; only decoders are trained",
    "model_adapter_name": "leave it out",
    "ref_adapter_name": "leave it out",
    "force_use_ref_model": "leave it out",
    "use_logits_to_keep": "leave it out",
    "base_model_attribute_name": "leave it out",
    "ref_model_init_kwargs": "leave it out; the reference is the model before training",
    "use_num_logits_to_keep": "leave it out",
    "warmup_ratio": "write `warmup_steps` as a share below 1",
    "overwrite_output_dir": "leave it out; every run has a folder of its own",
    "logging_dir": "leave it out; event files lie in the run's folder",
    "evaluation_strategy": "write `eval_strategy`",
    "no_cuda": "write `use_cpu`",
    "per_gpu_train_batch_size": "write `per_device_train_batch_size`",
    "group_by_length": "write train_sampling_strategy: group_by_length",
    "fp16_backend": "leave it out",
    "half_precision_backend": "leave it out",
    "use_lora": "write `use_peft`",
    "lora_bias": "leave it out",
}

_HUB = "swarmctl uploads nothing; leave it out"
#: TRL's keys that a recipe may not set → why, or what to write instead
OURS = {
    "output_dir": "swarmctl gives every run a folder of its own; leave it out",
    "resume_from_checkpoint": "`swarmctl jobs resume RUN` does this; leave it out",
    "dataset_config": "a dataset is a folder of `swarmctl dataset build`; leave it out",
    "dataset_streaming": "a dataset is a folder of `swarmctl dataset build`; leave it out",
    "dataset_train_split": "the split is always train; leave it out",
    "dataset_test_split": "the split is always test; leave it out",
    "report_to": "TensorBoard's event files are always written, and nothing else; leave it out",
    "trust_remote_code": "swarmctl runs no code that comes with a model; leave it out",
    "deepspeed": "write swarmctl: {deepspeed: zero2} (or zero3)",
    "local_rank": "torchrun sets it; leave it out",
    "do_train": "leave it out", "do_eval": "leave it out", "do_predict": "leave it out",
    **dict.fromkeys(("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy",
                     "hub_always_push", "hub_revision", "trackio_space_id", "trackio_bucket_id",
                     "trackio_static_space_id", "project"), _HUB),
}
_COUNTS = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
           "lora_r", "lora_alpha", "max_length")


def odd(raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Keys that do not go together, or have no sense in this range: (key, what is wrong and what to do)."""
    for key in _COUNTS:
        if raw.get(key) is not None and raw[key] < 1:
            yield key, "must be at least 1"
    if raw.get("learning_rate", 1) <= 0:
        yield "learning_rate", "must be above 0"
    if raw.get("num_train_epochs", 1) <= 0 and (raw.get("max_steps") or 0) <= 0:
        yield "num_train_epochs", "must be above 0: this would train nothing"
    if raw.get("bf16") and raw.get("fp16"):
        yield "fp16", "bf16 and fp16 exclude each other; leave both out, and the host's hardware decides"
    yield from _odd_adapter(raw)
    if raw.get("trainer") == "dpo":
        kinds, weights = raw.get("loss_type", ["sigmoid"]), raw.get("loss_weights")
        if weights is not None and len(weights) != len(kinds):
            yield "loss_weights", f"{len(weights)} weights for {len(kinds)} of `loss_type`; give one each"
    if raw.get("trainer") == "kto":
        yield from _odd_kto(raw)
    yield from _odd_own(raw.get("swarmctl") or {})


def _odd_own(own: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if own.get("offload") and not own.get("deepspeed"):
        yield "swarmctl", "`offload` needs `deepspeed: zero2` or `zero3`"
    if "prune" not in own:
        return
    layers = own["prune"].get("layers", 0)
    if not any(own["prune"].values()):
        yield "swarmctl", "`prune` takes nothing away; give it layers, ffn or sparsity"
    if layers > 1 and layers != int(layers):
        yield "swarmctl", f"prune: `layers: {layers}` is neither a count nor a share below 1"
    if len(own.get("hosts", ())) > 1:
        yield "swarmctl", "`prune` works on one host; leave `hosts` out"


def _odd_adapter(raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in ("load_in_4bit", "load_in_8bit"):
        if raw.get(key) and not raw.get("use_peft"):
            yield key, "a quantised base is trained through an adapter only; add use_peft: true"
    if not raw.get("use_peft"):
        named = [key for key in raw if key.startswith("lora_") and key != "lora_task_type"]
        if named:
            yield named[0], "has no effect without use_peft: true"
    if "lm_head" in (raw.get("lora_target_modules") or []):
        yield "lora_target_modules", "lm_head cannot be trained by LoRA here; leave it out"


def _odd_kto(raw: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if raw.get("per_device_train_batch_size", 8) < 2:
        yield "per_device_train_batch_size", "KTO pairs each row with its neighbour: at least 2"
    if raw.get("train_sampling_strategy", "sequential") != "sequential":
        yield "train_sampling_strategy", "KTO needs sequential; the rows are shuffled by `seed` before"
