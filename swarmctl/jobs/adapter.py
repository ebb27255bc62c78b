"""A LoRA adapter that is served over the weights that hosts hold already: converted, and compared with what
was trained.

llama.cpp's converter of adapters knows less than PEFT does, and drops some of that without a word, so what it
would get wrong is refused before. Then the served base with the converted adapter must give the
log-probabilities of the base and the adapter that were trained.
"""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmctl.jobs.gguf import convert_adapter
from swarmctl.jobs.quantise import digest_of
from swarmctl.jobs.spec import JobError
from swarmctl.jobs.verify import CONVERSATIONS, DoesNotServe, post, render, serving

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from swarmctl.jobs.folder import Folder
    from swarmctl.jobs.spec import Spec

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: PEFT's setting → why llama.cpp would serve something else than was trained
UNKNOWN = {
    "use_dora": "it is a DoRA, whose magnitudes llama.cpp does not know",
    "use_rslora": "it is scaled by rsLoRA (alpha / sqrt(r)), and llama.cpp scales by alpha / r",
    "modules_to_save": "it holds whole modules (modules_to_save), and llama.cpp takes none",
    "alpha_pattern": "its modules have alphas of their own (alpha_pattern), and llama.cpp knows one for all",
    "lora_bias": "it holds biases (lora_bias), and llama.cpp takes none",
    "trainable_token_indices": "it holds new rows of the embedding, and llama.cpp takes none",
    "alora_invocation_tokens": "it begins at an invocation (aLoRA), which requests would have to name",
}
LARGEST_HEADER = 100 << 20
#: tokens that are compared after each conversation, and of each the likeliest ones
TOKENS, LIKELIEST = 12, 10


def problems(folder: Path) -> tuple[str, ...]:
    """Why llama.cpp cannot serve an adapter, in PEFT's format, as it was trained; empty where it can."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        names = _tensors(folder / WEIGHTS)
    except (OSError, ValueError, struct.error) as exc:
        return (f"its adapter cannot be read: {exc}",)
    return tuple(dict.fromkeys((*_settings(config), *_strange(names))))


def adapter(spec: Spec, folder: Folder) -> dict[str, Any]:
    """The stage: out/adapter.gguf. `more["adapter"]` has the converter's `source` and the `run`'s folder,
    whose spec.json names the base."""
    more, outfile = spec.more["adapter"], folder.path / "out" / "adapter.gguf"
    run = Path(more["run"])
    convert_adapter(run / "out" / "adapter", _base(run), outfile, Path(more["source"]))
    return {"size": outfile.stat().st_size, "sha256": digest_of(outfile)}


def likeness(spec: Spec, folder: Folder) -> dict[str, Any]:
    """The stage: how far the served base with out/adapter.gguf is from what was trained, in nats a token, and
    how far from the base alone.

    `more["likeness"]` has the `run`'s folder, the base's GGUF as `served`, the folder of llama-server as
    `tools`, and may have `prompts`. The divergence is that of the likeliest tokens and of the rest as one.
    """
    more = spec.more["likeness"]
    run, tools = Path(more["run"]), Path(more["tools"])
    rendered = render(folder.path / spec.model, [*CONVERSATIONS, *more.get("prompts", ())])
    try:
        with serving(tools / "llama-server", folder.path / more["served"], folder.path / "likeness.log",
                     folder.path / "out" / "adapter.gguf") as address:
            said = [_said(address, one["tokens"]) for one in rendered]
    except DoesNotServe as exc:
        return {"broken": str(exc)}
    folder.say("likeness", step=1, steps=2)
    return _compared(run, spec.threads, [(one["tokens"], each) for one, each in
                                         zip(rendered, said, strict=True)])


def _settings(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("peft_type") != "LORA":
        yield f"it is a {config.get('peft_type')} adapter, and llama.cpp knows LoRA only"
    yield from (why for key, why in UNKNOWN.items() if config.get(key))
    if config.get("bias", "none") != "none":
        yield "it holds biases, and llama.cpp takes none"


def _strange(names: Sequence[str]) -> Iterator[str]:
    for part in ("embed_tokens", "lm_head"):
        if any(f".{part}." in name for name in names):
            yield f"it changes {part}, which llama.cpp's converter refuses"
    rest = [name for name in names if not any(mark in name for mark in (
        ".lora_A.weight", ".lora_B.weight", ".embed_tokens.", ".lm_head."))]
    if rest:
        yield f"it holds {rest[0]}, which is no part of a plain LoRA"


def _tensors(path: Path) -> list[str]:
    """The names in a safetensors file: eight bytes of length, then JSON."""
    with path.open("rb") as stream:
        size, = struct.unpack("<Q", stream.read(8))
        if size > LARGEST_HEADER:
            raise ValueError(f"{path.name} is no safetensors file")
        return [name for name in json.loads(stream.read(size)) if name != "__metadata__"]


def _base(run: Path) -> Path:
    """The weights that a run trained over. Raises JobError where it pruned them: nobody serves those."""
    if (run / "out" / "pruned").is_dir():
        raise JobError("it was trained over weights that the same run pruned, and no host serves those")
    try:
        return Path(json.loads((run / "spec.json").read_text(encoding="utf-8"))["model"])
    except (OSError, ValueError, KeyError) as exc:
        raise JobError(f"{run}/spec.json does not say what was trained: {exc}") from exc


def _said(address: str, tokens: Sequence[int]) -> list[tuple[int, dict[int, float]]]:
    """What the server goes on with: each token, and the log-probabilities of the likeliest there."""
    said = post(address, "/completion", {"prompt": list(tokens), "n_predict": TOKENS, "temperature": 0,
                                         "n_probs": LIKELIEST, "cache_prompt": False})
    return [(int(one["id"]), {int(top["id"]): float(top["logprob"]) for top in one["top_logprobs"]})
            for one in said.get("completion_probabilities") or ()]


def _compared(run: Path, threads: int | None,
              said: Sequence[tuple[list[int], list[tuple[int, dict[int, float]]]]]) -> dict[str, Any]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads or max(1, (os.cpu_count() or 2) // 2))
    base = AutoModelForCausalLM.from_pretrained(str(_base(run)), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(run / "out" / "adapter")).eval()
    trained: list[float] = []
    alone: list[float] = []
    widest = 0.0
    with torch.inference_mode():
        for prompt, served in said:
            ids = torch.tensor([[*prompt, *(token for token, _ in served)]])
            with_it = model(ids).logits[0].float().log_softmax(-1)
            with model.disable_adapter():
                without = model(ids).logits[0].float().log_softmax(-1)
            for at, (_, likeliest) in enumerate(served, len(prompt) - 1):
                trained.append(divergence(with_it[at], likeliest))
                alone.append(divergence(without[at], likeliest))
                widest = max([widest, *(abs(float(with_it[at][token]) - there)
                                        for token, there in likeliest.items() if there > math.log(0.01))])
    if not trained:
        return {"broken": "llama-server gives no log-probabilities with this adapter"}
    return {"tokens": len(trained), "kl_mean": sum(trained) / len(trained), "kl_max": max(trained),
            "kl_base": sum(alone) / len(alone), "widest": round(widest, 6)}


def divergence(true: Any, served: Mapping[int, float]) -> float:  # noqa: ANN401  log-probabilities by token
    """Kullback-Leibler divergence, in nats, of what was served from what is true, over the tokens that were
    told and all others as one."""
    pairs = [(math.exp(float(true[token])), math.exp(there)) for token, there in served.items()]
    rest = [max(1e-9, 1.0 - sum(column)) for column in zip(*pairs, strict=True)]
    return math.fsum(p * math.log(p / q) for p, q in (*pairs, (rest[0], rest[1])) if p > 0 and q > 0)
