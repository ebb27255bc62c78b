"""A Hugging Face model folder, looked at before anything is made of it: whole or refused, never altered.

A truncated file or a missing shard would otherwise be found out after hours of copying, or never. Weights
are safetensors (their header says how long the file must be); no package is needed and no weight is read.
`as_sent` holds what servers get wrong silently: Ollama 0.33 knows neither transformers 5's `rope_parameters`
nor chat_template.jinja, so the copy that is sent says the same in the places where it looks. What no copy can
mend is in `unfit_for_ollama` and `mistaken`: such a model reaches Ollama as a GGUF.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from swarmctl.errors import SwarmError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

INDEX = "model.safetensors.index.json"
CONFIG, TOKENIZER_CONFIG, TEMPLATE = "config.json", "tokenizer_config.json", "chat_template.jinja"
#: the small files that belong to a model
SMALL = (CONFIG, "generation_config.json", "tokenizer.json", "tokenizer.model", TOKENIZER_CONFIG,
         "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt",
         "modules.json", "sentence_bert_config.json")
#: any of these is a tokenizer
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"), ("vocab.txt",))
LONGEST_HEADER = 100 << 20
LARGEST_SMALL = 256 << 20


@dataclass(frozen=True, slots=True)
class HfFolder:
    """A whole model in a folder. `weights` are its safetensors files, `small` the rest that belongs to it;
    `size` is bytes of weights."""

    path: Path
    architecture: str
    weights: tuple[Path, ...]
    small: tuple[Path, ...]
    size: int


def read_folder(path: Path) -> HfFolder:
    """Look at a folder. Raises UsageError or SwarmError that names the file and what would be right."""
    config = _config(path)
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        raise SwarmError(f"{path / CONFIG} names no architecture",
                         hint='it needs "architectures": ["LlamaForCausalLM"] or the like')
    weights = _weights(path)
    if not any(all((path / name).is_file() for name in names) for names in TOKENIZERS):
        raise SwarmError(f"{path} has no tokenizer",
                         hint="tokenizer.json or tokenizer.model belongs beside config.json: fetch the model "
                              "again, or `tokenizer.save_pretrained(FOLDER)`")
    small = tuple(path / name for name in SMALL if (path / name).is_file())
    return HfFolder(path, architectures[0], weights, small, sum(file.stat().st_size for file in weights))


def as_sent(folder: HfFolder) -> dict[str, bytes]:
    """The small files by name as a server gets them; see the module."""
    files = {file.name: file.read_bytes() for file in folder.small}
    files[CONFIG] = _dumped(_with_rope(_object(folder.path / CONFIG)), files[CONFIG])
    template = folder.path / TEMPLATE
    if template.is_file():
        known = _object(folder.path / TOKENIZER_CONFIG) if TOKENIZER_CONFIG in files else {}
        text = template.read_text(encoding="utf-8", errors="replace")
        files[TOKENIZER_CONFIG] = _dumped({**known, "chat_template": text}, b"")
    return files


def unfit_for_ollama(folder: HfFolder) -> str | None:
    """Why Ollama's own converter would make another model of it; None where it may try. All were found with
    0.33: greedy answers differed."""
    if (folder.path / "tokenizer.model").is_file():
        return ("it drops what tokenizer.model says of spaces and of symbols, so prompts would be cut into "
                "other tokens")
    tokenizer = folder.path / "tokenizer.json"
    model = _object(tokenizer).get("model") if tokenizer.is_file() else None
    if not isinstance(model, dict) or model.get("type") != "BPE":
        return "of tokenizers it is trusted with BPE in tokenizer.json only"
    return None


def mistaken(folder: HfFolder, made: Mapping[str, Any]) -> str | None:
    """What is wrong with the model that Ollama made of a folder, by its GGUF's key-value pairs; or None."""
    if made.get("tokenizer.ggml.pre", "default") == "default":
        return "it does not know how this tokenizer cuts text into words"
    ends = _object(folder.path / CONFIG).get("eos_token_id")
    if ends is not None and made.get("tokenizer.ggml.eos_token_id") not in (
            ends if isinstance(ends, list) else [ends]):
        return "it took another token for the end of an answer"
    return None


def _with_rope(config: dict[str, Any]) -> dict[str, Any]:
    """What transformers 5 keeps in rope_parameters, also where transformers 4 had it."""
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict):
        return config
    said: dict[str, Any] = {}
    whole, local = rope.get("full_attention"), rope.get("sliding_attention")
    if isinstance(whole, dict):  # one for each kind of layer, as Gemma 3 has it
        if isinstance(local, dict) and "rope_theta" in local:
            said["rope_local_base_freq"] = local["rope_theta"]
        rope = whole
    said |= {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    kind = rope.get("rope_type", "default")
    if kind != "default":
        said["rope_scaling"] = {**{key: value for key, value in rope.items() if key not in said},
                                "rope_type": kind, "type": kind}
    return {**said, **{key: value for key, value in config.items() if value is not None or key not in said}}


def _dumped(content: dict[str, Any], was: bytes) -> bytes:
    """As JSON; the very bytes that were there where they say the same."""
    if was and json.loads(was) == content:
        return was
    return json.dumps(content, indent=1, ensure_ascii=False).encode()


def _config(path: Path) -> dict[str, Any]:
    if (path / CONFIG).is_file():
        return _object(path / CONFIG)
    if (path / "adapter_config.json").is_file():
        raise UsageError(f"{path} holds a LoRA adapter, no model", hint="merge it into its base first: "
                         "peft's `merge_and_unload()`, then `save_pretrained(FOLDER)`")
    raise UsageError(f"{path} is a folder without config.json, so no Hugging Face model",
                     hint="name a GGUF file, or the folder that holds config.json and model.safetensors")


def _weights(path: Path) -> tuple[Path, ...]:
    """The safetensors files, each looked at."""
    if (path / INDEX).is_file():
        return tuple(_shards(path))
    whole = path / "model.safetensors"
    found = [whole] if whole.is_file() else sorted(path.glob("*.safetensors"))
    if not found:
        old = next(iter(sorted(path.glob("pytorch_model*.bin"))), None)
        raise SwarmError(f"{path} has no model.safetensors" + (f", only {old.name}" if old else ""),
                         hint="load it with transformers and `save_pretrained(FOLDER)`, which writes "
                              "safetensors" if old else "was the download cut off? Fetch the model again")
    if len(found) > 1:
        raise SwarmError(f"{path} has several safetensors files and no {INDEX}",
                         hint="fetch that file too: it says which weights lie where")
    tensors(found[0])
    return tuple(found)


def _shards(path: Path) -> Iterator[Path]:
    parts = _object(path / INDEX).get("weight_map")
    if not isinstance(parts, dict) or not parts:
        raise SwarmError(f"{path / INDEX} has no weight_map", hint="fetch that file again")
    names = sorted({str(name) for name in parts.values()})
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise SwarmError(f"{path} lacks {', '.join(missing)}, {len(missing)} of the {len(names)} files that "
                         f"{INDEX} names", hint="fetch what is missing; the download was probably cut off")
    for name in names:
        there = tensors(path / name)
        lost = [tensor for tensor, file in parts.items() if file == name and tensor not in there]
        if lost:
            raise SwarmError(f"{path / name} does not hold {lost[0]}, which {INDEX} says is there",
                             hint="the two are of different models or versions: fetch both again")
        yield path / name


def tensors(file: Path) -> frozenset[str]:
    """The names in a safetensors file. Raises SwarmError where it is none, or not whole."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if start.startswith(b"version "):
                raise SwarmError(f"{file} is a Git LFS pointer, not the weights", hint="`git lfs pull` there")
            if not 2 <= length <= LONGEST_HEADER:
                raise SwarmError(f"{file} is no safetensors file", hint="fetch it again")
            header = json.loads(stream.read(length) if 8 + length <= size else b"")
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as exc:
        raise SwarmError(f"{file} is damaged: its header cannot be read", hint="fetch it again") from exc
    whole = 8 + length + max(ends, default=0)
    if size != whole:
        raise SwarmError(f"{file} has {size:,} bytes, and its header speaks of {whole:,}",
                         hint="it is cut off or damaged: fetch it again")
    return frozenset(header) - {"__metadata__"}


def _object(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > LARGEST_SMALL:
            raise SwarmError(f"{file} is far too large", hint="fetch it again")
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise SwarmError(f"{file} is not JSON: {exc}", hint="fetch it again") from exc
    if not isinstance(found, dict):
        raise SwarmError(f"{file} holds no JSON object", hint="fetch it again")
    return found


def same_model(files: Mapping[str, str]) -> str:
    """One name for these very files: a sha256 over their names and hashes."""
    listed = "".join(f"{name}\n{digest}\n" for name, digest in sorted(files.items()))
    return sha256(listed.encode()).hexdigest()
