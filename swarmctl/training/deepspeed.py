"""DeepSpeed's configuration for a recipe on a host: ZeRO-2 or ZeRO-3, with offload to memory or to an NVMe
disk. Pure.

ZeRO (arXiv:1910.02054) shares optimiser and gradients (2), and weights too (3), among processes; offload
(arXiv: 2101.06840, 2104.07857) keeps them where there is room, at the price of time. `auto` values are
TRL's to fill in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swarmctl.errors import Unfit

if TYPE_CHECKING:
    from swarmctl.facts import Facts
    from swarmctl.recipe import Own


def deepspeed_config(own: Own, precision: str, seen: Facts) -> dict[str, Any] | None:
    """The configuration, or None where the recipe wants no DeepSpeed. Raises Unfit where it cannot be."""
    if own.deepspeed is None:
        return None
    stage = int(own.deepspeed.removeprefix("zero"))
    zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True, "overlap_comm": bool(seen.gpus)}
    if own.offload:
        zero["offload_optimizer"] = _offload(own.offload, seen)
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
        if own.offload:
            zero["offload_param"] = _offload(own.offload, seen)
    elif own.offload == "nvme":
        raise Unfit("ZeRO-2 offloads to memory only", host=seen.hostname,
                    hint="write swarmctl: {deepspeed: zero3, offload: nvme}")
    return {
        "zero_optimization": zero, "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": precision == "fp16"},
        "train_micro_batch_size_per_gpu": "auto", "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto", "gradient_clipping": "auto",
        # the recipe's own optimiser runs, on whichever side its state lies
        "zero_force_ds_cpu_optimizer": False, "zero_allow_untested_optimizer": True,
    }


def _offload(where: str, seen: Facts) -> dict[str, Any]:
    if where == "cpu":
        return {"device": "cpu", "pin_memory": bool(seen.gpus)}
    if seen.disk.rotational:
        raise Unfit(f"offload: nvme would go to {seen.disk.device}, a rotating disk", host=seen.hostname,
                    hint="put data_dir on an NVMe disk, or write offload: cpu")
    return {"device": "nvme", "nvme_path": f"{seen.data_dir}/offload", "pin_memory": bool(seen.gpus)}
