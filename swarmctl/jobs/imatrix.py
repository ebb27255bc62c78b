"""How much each input of each weight matters, measured on what the model was trained to say: an importance
matrix, by which llama-quantize rounds what matters least.

It is what llama.cpp's llama-imatrix measures (tools/imatrix: the sum of the squares of what enters each
matrix, over all tokens), taken from the weights before they are converted. So no host has to build one more
program.
"""

from __future__ import annotations

import os
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmctl.jobs.spec import JobError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from swarmctl.jobs.folder import Folder
    from swarmctl.jobs.spec import Spec

#: rows of the training set that are read at most, spread over all of it, and tokens of each
ROWS, LONGEST = 256, 1024
#: tokens of a piece of plain text
PIECE = 512
#: below this the matrix says more of the few texts than of the model
FEWEST_TOKENS = 256


def imatrix(spec: Spec, folder: Folder) -> dict[str, Any]:
    """The stage: out/imatrix.gguf for the weights in `spec.model`, which out/f16.gguf was made of.

    `more["imatrix"]` has the converter's `source`, a `text` in the run's folder, and may have `rows`, the
    train.parquet of the run: then that is read, prompts and answers as the template renders them.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    more, weights = spec.more["imatrix"], str(folder.path / spec.model)
    tokenizer = AutoTokenizer.from_pretrained(weights)
    rows = Path(more["rows"]) if more.get("rows") else None
    known = rows is not None and rows.is_file()
    read = _rendered(tokenizer, rows) if rows and known else _pieces(tokenizer, folder.path / more["text"])
    texts = list(read)
    tokens = sum(map(len, texts))
    if tokens < FEWEST_TOKENS:
        raise JobError(f"{tokens} tokens are too few for an importance matrix: {FEWEST_TOKENS} are the least")
    model = AutoModelForCausalLM.from_pretrained(weights, dtype="auto").eval()
    told = importance(model, _told(texts, folder), threads=spec.threads)
    count, lacking = write(told, tokens, folder.path / "out" / "f16.gguf",
                           folder.path / "out" / "imatrix.gguf", Path(more["source"]))
    return {"from": "training set" if known else "text", "texts": len(texts), "tokens": tokens,
            "tensors": count, "lacking": lacking}


def importance(model: Any, texts: Iterable[Sequence[int]], *, threads: int | None = None  # noqa: ANN401
               ) -> dict[str, Any]:
    """The sums of squares of what enters each linear module over texts of token ids, by the module's name."""
    import torch

    torch.set_num_threads(threads or max(1, (os.cpu_count() or 2) // 2))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    sums: dict[str, Any] = {}

    def watch(name: str) -> Any:  # noqa: ANN401  a hook
        def add(_module: Any, entered: tuple[Any, ...]) -> None:  # noqa: ANN401
            found = entered[0].detach().float().square().reshape(-1, entered[0].shape[-1]).sum(0)
            sums[name] = sums[name] + found if name in sums else found
        return add

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in model.named_modules()
             if isinstance(module, torch.nn.Linear)]
    try:
        with torch.inference_mode():
            for text in texts:
                model(torch.tensor([list(text)], device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: found.cpu().numpy() for name, found in sums.items()}


def write(sums: Mapping[str, Any], tokens: int, gguf_file: Path, outfile: Path,
          source: Path) -> tuple[int, int]:
    """Write the matrix in llama.cpp's GGUF form; how many tensors of `gguf_file` it has, and how many
    matrices of layers it has not (experts of a mixture: they are not linear modules)."""
    import numpy as np

    sys.path.insert(0, str(source / "gguf-py"))
    import gguf

    reader = gguf.GGUFReader(str(gguf_file))
    there = {one.name: int(one.shape[0]) for one in reader.tensors if len(one.shape) > 1}
    names = _names(gguf, reader)
    part = outfile.with_name(f"{outfile.name}.part")
    writer = gguf.GGUFWriter(str(part), "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["swarmctl"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", tokens)
    found = {name: total for module, total in sums.items()
             if (name := names.get_name(f"{module}.weight", try_suffixes=(".weight",))) in there
             and there[name] == len(total)}
    for name, total in found.items():
        writer.add_tensor(f"{name}.in_sum2", total.astype(np.float32).reshape(1, -1))
        writer.add_tensor(f"{name}.counts", np.full((1, 1), tokens, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(outfile)
    return len(found), sum(name.startswith("blk.") and name not in found for name in there)


def _names(gguf: Any, reader: Any) -> Any:  # noqa: ANN401  gguf-py's TensorNameMap
    named = reader.get_field("general.architecture").contents()
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == named)
    return gguf.get_tensor_name_map(arch, int(reader.get_field(f"{named}.block_count").contents()))


def _rendered(tokenizer: Any, rows: Path) -> Iterator[list[int]]:  # noqa: ANN401
    """Rows of a training set, spread over all of it, as training saw them."""
    from datasets import Dataset

    every = Dataset.from_parquet(str(rows), cache_dir=str(rows.parent.parent / "cache"))
    step = max(1, len(every) // ROWS)
    for row in islice(every, 0, None, step):
        answer = row.get("chosen") or row.get("completion") or []
        text = tokenizer.apply_chat_template([*row["prompt"], *answer], tokenize=False)
        if ids := tokenizer(text, add_special_tokens=False)["input_ids"][:LONGEST]:
            yield list(ids)


def _pieces(tokenizer: Any, text: Path) -> Iterator[list[int]]:  # noqa: ANN401
    ids = list(tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"])
    for at in range(0, len(ids), PIECE):
        yield ids[at:at + PIECE]


def _told(texts: Sequence[Sequence[int]], folder: Folder) -> Iterator[Sequence[int]]:
    for number, text in enumerate(texts):
        folder.say("imatrix", step=number, steps=len(texts))
        yield text
