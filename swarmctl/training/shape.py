"""A model to be trained, as its config.json and the size of its weights describe it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

#: bytes of one weight, by the dtype that config.json names
WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8}


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder. `parameters` are counted from the bytes of its weights; `linear` is the sum of (in + out)
    over the linear layers of one block, which is what LoRA of rank 1 on all of them adds."""

    architecture: str
    parameters: int
    hidden: int
    layers: int
    vocabulary: int
    linear: int
    stored: int

    def lora(self, rank: int) -> int:
        """Parameters of an adapter of this rank on all linear layers."""
        return rank * self.linear * self.layers


def shape_of(config: Mapping[str, Any], weights_bytes: int) -> ModelShape:
    """Read config.json of a Llama-like decoder; `weights_bytes` are those of its safetensors files."""
    config = config.get("text_config") or config
    hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    heads = int(config.get("num_attention_heads") or 1)
    head = int(config.get("head_dim") or hidden // heads)
    kv = int(config.get("num_key_value_heads") or heads) * head
    inner = int(config.get("intermediate_size") or 4 * hidden)
    linear = 2 * (hidden + heads * head) + 2 * (hidden + kv) + 3 * (hidden + inner)
    stored = WIDTHS.get(str(config.get("dtype") or config.get("torch_dtype")), 2)
    names = config.get("architectures") or ["unknown"]
    return ModelShape(str(names[0]), weights_bytes // stored, hidden, layers, int(config["vocab_size"]),
                      linear, stored)
