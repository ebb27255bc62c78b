"""Base and adapter become one model of 16 or 32 bits, in a folder that llama.cpp's converter and Ollama
understand.

An adapter is never merged into a quantised base (peft#2321: rounding ruins it): the base is read again as
it was stored. transformers 5 moved two things where others do not look: rope_theta into rope_parameters,
and the chat template into a file of its own; both are put back as well.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmctl.jobs.spec import JobError

if TYPE_CHECKING:
    from swarmctl.jobs.folder import Folder
    from swarmctl.jobs.spec import Spec

#: a tokenizer's files are taken over byte by byte: writing them anew has lost things before
TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
             "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model",
             "generation_config.json", "chat_template.jinja", "chat_template.json")


def merge(spec: Spec, folder: Folder) -> dict[str, Any]:
    """Write out/merged. Raises JobError where the base is quantised or the result is not finite."""
    began = time.monotonic()
    part = folder.merged.with_name(".merged")
    shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(folder.merged, ignore_errors=True)
    base = base_folder(folder.start(spec.model))
    refuse_quantised(base)
    trained = folder.path / "out" / "trained"
    model = _whole(trained) if trained.is_dir() else _merged(base, folder.adapter)
    model.save_pretrained(str(part))
    count, dtype = sum(one.numel() for one in model.parameters()), str(model.dtype).removeprefix("torch.")
    complete(part, base)
    part.rename(folder.merged)
    size = sum(path.stat().st_size for path in folder.merged.iterdir())
    return {"parameters": count, "dtype": dtype, "bytes": size, "seconds": round(time.monotonic() - began, 3)}


def base_folder(model: str) -> Path:
    """The folder of the base weights; of a name on the hub, where it was downloaded to."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, ignore_patterns=["*.bin", "*.pth", "*.gguf", "*.onnx"]))


def refuse_quantised(base: Path) -> None:
    """Raise JobError where the base's weights are stored in fewer than 16 bits."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        raise JobError(f"{base} holds quantised weights, into which nothing is merged: "
                       "train from the 16-bit ones")


def complete(folder: Path, base: Path) -> None:
    """Give a folder of weights the base's tokenizer, and put what transformers 5 moved back to where others
    look."""
    for name in TOKENIZER:
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)
    template = folder / "chat_template.jinja"
    if template.exists():
        _update(folder / "tokenizer_config.json", chat_template=template.read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        _update(folder / "config.json", rope_theta=rope["rope_theta"])


def _update(path: Path, **more: Any) -> None:  # noqa: ANN401  any JSON
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**before, **more}, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _whole(trained: Path) -> Any:  # noqa: ANN401  a PreTrainedModel
    from transformers import AutoModelForCausalLM

    return _finite(AutoModelForCausalLM.from_pretrained(str(trained), dtype="auto"))


def _merged(base: Path, adapter: Path) -> Any:  # noqa: ANN401
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(str(base), dtype="auto")
    try:
        merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    except ValueError as exc:  # what safe_merge raises on NaN
        raise JobError(f"the adapter cannot be merged: {exc}") from exc
    return _finite(merged)


def _finite(model: Any) -> Any:  # noqa: ANN401
    import torch

    broken = [name for name, one in model.named_parameters() if not torch.isfinite(one).all()]
    if broken:
        raise JobError(f"{broken[0]} holds numbers that are not finite: the training diverged")
    return model
