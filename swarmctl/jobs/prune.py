"""Structured pruning that every runtime can serve: whole layers and feed-forward channels, by measured
importance.

What is left is an ordinary, smaller model of the same architecture: the training that follows in the same job
recovers it, and the converter, the quantiser and the servers see nothing special. Importance is measured on
the data set's own texts:

- a layer by its block influence, 1 - cos(what goes in, what comes out) (ShortGPT, arXiv:2403.03853);
- a feed-forward channel by the mean size of its activation times the norm of its column in the down
projection (the structured form of Wanda, arXiv:2306.11695), the same count in every layer.

`sparsity` also sets the smallest weights to zero (torch.nn.utils.prune); that makes files compress better and
serves nothing else here: no runtime of ours skips zeros.
"""

from __future__ import annotations

import math
import shutil
import time
from typing import TYPE_CHECKING, Any

from swarmctl.jobs.merge import base_folder, complete, refuse_quantised
from swarmctl.jobs.spec import JobError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from swarmctl.jobs.folder import Folder
    from swarmctl.jobs.spec import Spec

#: texts to measure importance on, and as many to measure perplexity on; tokens of each; the least of them
TEXTS, LONGEST, LEAST = 64, 512, 8
#: llama.cpp's k-quants want rows of multiples of 256; tiny models only of 32
WIDE, NARROW = 256, 32
#: bytes that a GPU must have free for each byte of weights
ROOM = 1.3


def prune(spec: Spec, folder: Folder) -> dict[str, Any]:
    """Write out/pruned. `more["prune"]` has `layers` (how many go, or the share of them), `ffn` and
    `sparsity` (shares). Parameters, bytes, perplexity and tokens per second before and after.

    Raises JobError for an architecture without gated feed-forward layers, or where nothing would be left.
    """
    import torch

    torch.set_num_threads(spec.threads or torch.get_num_threads())
    wish, base, part = spec.more["prune"], base_folder(spec.model), folder.pruned.with_name(".pruned")
    ffn, sparsity = (_share(wish, name) for name in ("ffn", "sparsity"))
    refuse_quantised(base)
    for path in (part, folder.pruned):
        shutil.rmtree(path, ignore_errors=True)
    model = _load(base)
    count = _count(wish.get("layers", 0), len(_layers(model)))
    measured, held = _texts(spec, folder, base, "train"), _held(spec, folder, base)
    before = examine(model, held)
    gone = _drop_layers(model, count, measured)
    width = _narrow(model, ffn, measured)
    _sparsify(model, sparsity)
    model.save_pretrained(str(part))
    del model
    complete(part, base)
    after = examine(_load(part), held)
    part.rename(folder.pruned)
    folder.say("prune", event=f"{before['parameters']:,} parameters became {after['parameters']:,}, "
                              f"{_fell(before, after)}")
    return {"layers_dropped": gone, "ffn_width": width, "before": before, "after": after}


def compare(spec: Spec, folder: Folder) -> dict[str, Any]:
    """The stage after training and merging: the same numbers for what was recovered."""
    import torch

    torch.set_num_threads(spec.threads or torch.get_num_threads())
    recovered = examine(_load(folder.merged), _held(spec, folder, folder.merged))
    pruned = (folder.stage("prune") or {}).get("after", recovered)
    folder.say("compare", event=_fell(pruned, recovered))
    return {"recovered": recovered}


def examine(model: Any, texts: Sequence[Any]) -> dict[str, Any]:  # noqa: ANN401  a PreTrainedModel
    """Parameters, bytes in memory, perplexity of the texts' answers, and tokens per second reading them."""
    import torch

    loss, count, read, began = 0.0, 0, 0, time.monotonic()
    with torch.no_grad():
        for ids, start in texts:
            ids = ids.to(model.device)
            labels = ids.clone()
            labels[:, :start] = -100
            answered = ids.shape[1] - start
            loss += float(model(input_ids=ids, labels=labels).loss) * answered
            count, read = count + answered, read + ids.shape[1]
    seconds = time.monotonic() - began
    weights = list(model.parameters())
    return {"parameters": sum(one.numel() for one in weights), "perplexity": round(math.exp(loss / count), 4),
            "bytes": sum(one.numel() * one.element_size() for one in weights),
            "tokens_per_second": round(read / seconds, 1), "zeros": _zeros(weights)}


def _fell(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Two measurements for a person."""
    return f"perplexity {before['perplexity']:.4g} became {after['perplexity']:.4g}"


def _share(wish: Mapping[str, Any], name: str) -> float:
    share = float(wish.get(name, 0.0))
    if not 0 <= share < 1:
        raise JobError(f"prune.{name} is {share:g}: it is a share from 0 to below 1")
    return share


def _load(folder: Path) -> Any:  # noqa: ANN401
    """The model, on the GPU where it fits there as it is stored."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto").eval()
    size = sum(one.numel() * one.element_size() for one in model.parameters())
    fits = torch.cuda.is_available() and torch.cuda.mem_get_info()[0] > ROOM * size
    return model.to("cuda") if fits else model


def _held(spec: Spec, folder: Folder, base: Path) -> list[tuple[Any, int]]:
    """What perplexity is measured on: rows that training never sees. Without such rows it flatters what was
    recovered."""
    there = (folder.path / spec.dataset / "heldout.parquet").is_file()
    if not there:
        folder.say("prune", event="the dataset has no held-out rows: perplexity is that of rows trained on")
    return _texts(spec, folder, base, "heldout" if there else "train")


def _texts(spec: Spec, folder: Folder, base: Path, split: str) -> list[tuple[Any, int]]:
    """Up to TEXTS conversations of a split, each as token ids and where its answer begins."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    rows = Dataset.from_parquet(str(folder.path / spec.dataset / f"{split}.parquet"),
                                cache_dir=str(folder.path / "cache"))
    answer = next((name for name in ("chosen", "completion") if name in rows.column_names), None)
    if answer is None or not len(rows):
        raise JobError(f"{split}.parquet has no answers to measure on: it needs chosen or completion")
    if "label" in rows.column_names:
        rows = rows.select([at for at, good in enumerate(rows["label"]) if good])
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    rows = rows.shuffle(seed=spec.args.get("seed", 42)).select(range(min(TEXTS, len(rows))))
    found = [_conversation(tokenizer, list(row["prompt"]), list(row[answer])) for row in rows]
    whole = [(ids, start) for ids, start in found if 0 < start < ids.shape[1]]
    if len(whole) < LEAST:
        raise JobError(f"{split}.parquet has {len(whole)} good answers whose question fits in {LONGEST} "
                       f"tokens: too few to prune by, {LEAST} are needed")
    return whole


def _conversation(tokenizer: Any, prompt: list[Any], answer: list[Any]) -> tuple[Any, int]:  # noqa: ANN401
    ids, asked = (tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True,
                                                add_generation_prompt=turns is prompt)["input_ids"]
                  for turns in (prompt + answer, prompt))
    return ids[:, :LONGEST], asked.shape[1]


def _layers(model: Any) -> Any:  # noqa: ANN401
    """The decoder's layers. Raises JobError where they are not of the gated kind."""
    layers = getattr(getattr(model, "model", None), "layers", None)
    parts = ("gate_proj", "up_proj", "down_proj")
    if not layers or not all(hasattr(getattr(layers[0], "mlp", None), part) for part in parts):
        raise JobError(f"{type(model).__name__} has no gated feed-forward layers: only models built like "
                       "Llama (Qwen, Mistral, Gemma …) can be pruned")
    return layers


def _count(wish: float, layers: int) -> int:
    count = round(wish * layers) if 0 < wish < 1 else int(wish)
    if not 0 <= count < layers:
        raise JobError(f"prune.layers is {wish:g}, and the model has {layers} layers: at least one must stay")
    return count


def _drop_layers(model: Any, count: int, texts: Sequence[Any]) -> list[int]:  # noqa: ANN401
    """Take out the layers of least influence, one after the other: each changes what the others do."""
    layers, names, gone = _layers(model), list(range(len(_layers(model)))), []
    for _ in range(count):
        influence = _influence(model, texts)
        least = min(range(len(influence)), key=influence.__getitem__)
        gone.append(names.pop(least))
        del layers[least]
        for index, layer in enumerate(layers):
            layer.self_attn.layer_idx = index
        model.config.num_hidden_layers = len(layers)
        if getattr(model.config, "layer_types", None):
            model.config.layer_types = [kind for at,
                                        kind in enumerate(model.config.layer_types) if at != least]
    return sorted(gone)


def _influence(model: Any, texts: Sequence[Any]) -> list[float]:  # noqa: ANN401
    """1 - the mean cosine between what goes into a layer and what comes out, of every layer."""
    import torch

    sums, count = [0.0] * len(_layers(model)), 0
    with torch.no_grad():
        for ids, _ in texts:
            states = model.model(input_ids=ids.to(model.device), output_hidden_states=True,
                                 use_cache=False).hidden_states
            for index in range(len(sums)):
                alike = torch.cosine_similarity(states[index].float(), states[index + 1].float(), dim=-1)
                sums[index] += float((1 - alike).sum())
            count += ids.shape[1]
    return [total / count for total in sums]


def _narrow(model: Any, share: float, texts: Sequence[Any]) -> int:  # noqa: ANN401
    """Take out that share of every layer's feed-forward channels, the least important ones; the new width."""
    import torch

    width = int(model.config.intermediate_size)
    step = WIDE if width >= 4 * WIDE else NARROW
    kept = max(step, round(width * (1 - share) / step) * step)
    if kept >= width:
        return width
    for layer, size in zip(_layers(model), _sizes(model, texts), strict=True):
        mlp = layer.mlp
        best = torch.sort(torch.topk(size * mlp.down_proj.weight.float().norm(dim=0), kept).indices).values
        for name in ("gate_proj", "up_proj"):
            _keep(getattr(mlp, name), best, 0)
        _keep(mlp.down_proj, best, 1)
    model.config.intermediate_size = kept
    return kept


def _sizes(model: Any, texts: Sequence[Any]) -> list[Any]:  # noqa: ANN401
    """The mean absolute activation of every channel, a tensor a layer."""
    import torch

    sums: list[Any] = [0.0] * len(_layers(model))

    def watch(index: int) -> Any:  # noqa: ANN401  a hook
        def hook(_module: Any, given: tuple[Any, ...]) -> None:  # noqa: ANN401
            sums[index] = sums[index] + given[0].detach().abs().float().flatten(0, -2).mean(dim=0)

        return hook

    hooks = [layer.mlp.down_proj.register_forward_pre_hook(watch(index))
             for index, layer in enumerate(_layers(model))]
    with torch.no_grad():
        for ids, _ in texts:
            model.model(input_ids=ids.to(model.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return sums


def _keep(linear: Any, which: Any, dim: int) -> None:  # noqa: ANN401
    """Leave only these rows (0) or columns (1) of a linear layer."""
    import torch

    linear.weight = torch.nn.Parameter(linear.weight.detach().index_select(dim, which).contiguous())
    if dim == 0 and linear.bias is not None:
        linear.bias = torch.nn.Parameter(linear.bias.detach().index_select(0, which))
    linear.out_features, linear.in_features = linear.weight.shape


def _sparsify(model: Any, share: float) -> None:  # noqa: ANN401
    """Set that share of the smallest weights of every projection to zero."""
    from torch.nn.utils import prune as torch_prune

    for linear in _projections(model) if share else ():
        torch_prune.l1_unstructured(linear, "weight", amount=share)
        torch_prune.remove(linear, "weight")


def _projections(model: Any) -> Iterator[Any]:  # noqa: ANN401
    import torch

    for layer in _layers(model):
        yield from (part for part in layer.modules() if isinstance(part, torch.nn.Linear))


def _zeros(weights: Sequence[Any]) -> float:
    zeros = sum(int((one == 0).sum()) for one in weights)
    return round(zeros / sum(int(one.numel()) for one in weights), 4)
