"""What a GGUF file says of itself, read from its header alone: no weights are touched, no package is needed.

The layout is the GGUF specification's (ggml's docs/gguf.md): magic, version, counts, key-value pairs, tensor
descriptions, all little-endian. Anything else is refused with `SwarmError`, however damaged the file is.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any, BinaryIO

from swarmctl.errors import SwarmError
from swarmctl.runtimes.base import ModelFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

#: value type → struct format, for the fixed-size ones (7 is bool, 8 string, 9 array)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
LONGEST_STRING = 64 << 20
MOST_ITEMS = 16 << 20
MOST_TENSORS = 1 << 17

#: general.file_type → name, llama.cpp's llama_ftype
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
    36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}
#: ggml tensor type → name, for files that carry no general.file_type
TENSOR_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K",
                11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 30: "BF16", 39: "MXFP4"}
#: ggml tensor type → weights in a block and the block's bytes (ggml's type_traits); others are not known
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40),
          10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
          16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110),
          22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
          29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17)}
#: {arch}.pooling_type → name, llama.cpp's llama_pooling_type; none (0) is as good as not said
POOLINGS = {1: "mean", 2: "cls", 3: "last", 4: "rank"}


@dataclass(frozen=True, slots=True)
class Header:
    """The key-value pairs, the number of weights, and the tensor type that holds most of them.

    Long arrays (vocabularies) are skipped: their value is their length. `tensors` is how many there are, and
    `extent` the bytes that a whole file has at least, 0 where a tensor's type is not known.
    """

    fields: Mapping[str, Any]
    parameters: int
    main_type: int
    tensors: int = 0
    extent: int = 0


def read_model_file(name: str, path: Path, digest: str) -> ModelFile:
    """Describe the GGUF file at `path`, whose sha256 is `digest`.

    Raises SwarmError where it is not a whole GGUF header of a language model.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            header = read_header(stream)
    except OSError as exc:
        raise SwarmError(f"model {name}: {path} cannot be read: {exc.strerror}") from exc
    except (struct.error, ValueError) as exc:
        raise SwarmError(f"model {name}: {path} is not a usable GGUF file: {exc}",
                         hint="point `source` at a whole .gguf file, or fetch it again") from exc
    return describe(header, name=name, path=str(path), digest=digest, size=size)


def read_header(stream: BinaryIO) -> Header:
    """Parse a header. Raises ValueError or struct.error where the bytes are not GGUF version 2 or 3."""
    if stream.read(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version, tensors, pairs = _unpack(stream, "<IQQ")
    if version not in (2, 3):
        raise ValueError(f"GGUF version {version} is unknown")
    if tensors > MOST_TENSORS or pairs > MOST_TENSORS:
        raise ValueError("its counts are absurd")
    fields = {_string(stream): _value(stream, _unpack(stream, "<I")[0]) for _ in range(pairs)}
    weights: dict[int, int] = {}
    ends: list[int] = []
    for _ in range(tensors):
        kind, count, offset = _tensor(stream)
        weights[kind] = weights.get(kind, 0) + count
        block, size = BLOCKS.get(kind, (1, 0))
        ends.append(offset + count // block * size if size else 0)
    if not weights:
        raise ValueError("it holds no tensors")
    most = max(weights, key=lambda kind: (weights[kind], -kind))
    extent = _aligned(stream.tell(), fields) + max(ends) if all(ends) else 0
    return Header(fields, sum(weights.values()), most, tensors, extent)


def check_whole(name: str, path: Path) -> int:
    """The number of tensors of a GGUF file that holds them all. Raises SwarmError, with the numbers, where it
    was cut off or is no GGUF."""
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            header = read_header(stream)
    except OSError as exc:
        raise SwarmError(f"model {name}: {path} cannot be read: {exc.strerror}") from exc
    except (struct.error, ValueError) as exc:
        raise SwarmError(f"model {name}: {path} is not a whole GGUF file: {exc}") from exc
    if size < header.extent:
        raise SwarmError(f"model {name}: {path} was cut off: its {header.tensors} tensors take "
                         f"{header.extent:,} bytes, and it has {size:,}", hint="fetch or convert it again")
    return header.tensors


def describe(header: Header, *, name: str, path: str, digest: str, size: int) -> ModelFile:
    """Turn a header into what plans need. Raises SwarmError where it is no language model."""
    fields = header.fields
    arch = fields.get("general.architecture")
    layers = fields.get(f"{arch}.block_count")
    if not isinstance(arch, str) or not isinstance(layers, int):
        raise SwarmError(f"model {name}: {path} is a GGUF file, but not of a language model "
                         "(general.architecture or block_count is missing)")
    template = fields.get("tokenizer.chat_template", "")
    return ModelFile(
        name=name, path=path, sha256=digest, size=size, parameters=header.parameters,
        quantisation=_quantisation(header), context_train=_count(fields, f"{arch}.context_length", 2048),
        layers=layers, kv_bytes_per_token=_kv_bytes(fields, arch, layers),
        template_sha256=sha256(str(template).encode()).hexdigest() if template else "",
        pooling=POOLINGS.get(_count(fields, f"{arch}.pooling_type", 0), ""),
    )


def _kv_bytes(fields: Mapping[str, Any], arch: str, layers: int) -> int:
    """F16 bytes of keys and values one token takes over all layers. Sliding windows are not subtracted. An
    encoder reads its text at once and keeps none."""
    if fields.get(f"{arch}.attention.causal") is False:
        return 0
    heads = _count(fields, f"{arch}.attention.head_count", 1)
    head = _count(fields, f"{arch}.embedding_length", 0) // max(heads, 1)
    width = (_count(fields, f"{arch}.attention.key_length", head)
             + _count(fields, f"{arch}.attention.value_length", head))
    kv_heads = fields.get(f"{arch}.attention.head_count_kv", heads)
    total = sum(kv_heads) if isinstance(kv_heads, tuple) else int(kv_heads) * layers
    return 2 * total * width


def _count(fields: Mapping[str, Any], key: str, default: int) -> int:
    value = fields.get(key, default)
    if isinstance(value, tuple) and value:
        value = max(value)
    return value if isinstance(value, int) and value >= 0 else default


def _quantisation(header: Header) -> str:
    file_type = header.fields.get("general.file_type")
    named = FILE_TYPES.get(file_type) if isinstance(file_type, int) else None
    return named or TENSOR_TYPES.get(header.main_type, f"type-{header.main_type}")


def _aligned(at: int, fields: Mapping[str, Any]) -> int:
    """Where the tensors begin, which is padded."""
    step = max(1, _count(fields, "general.alignment", 32))
    return -(-at // step) * step


def _tensor(stream: BinaryIO) -> tuple[int, int, int]:
    """Read one tensor's description; its type, the number of its weights, and where it begins."""
    _string(stream)
    dims = _unpack(stream, "<I")[0]
    if dims > 8:
        raise ValueError(f"a tensor has {dims} dimensions")
    count = 1
    for size in _unpack(stream, f"<{dims}Q"):
        count *= size
    kind, offset = _unpack(stream, "<IQ")
    return kind, count, offset


def _value(stream: BinaryIO, kind: int) -> Any:  # noqa: ANN401  the format's own variant type
    if kind == STRING:
        return _string(stream)
    if kind == ARRAY:
        return _array(stream)
    if kind not in SCALARS:
        raise ValueError(f"value type {kind} is unknown")
    return _unpack(stream, "<" + SCALARS[kind])[0]


def _array(stream: BinaryIO) -> tuple[int, ...] | int:
    """Read an array of up to 1024 integers (per-layer settings); skip any other and say how long it is."""
    kind, count = _unpack(stream, "<IQ")
    if count > MOST_ITEMS:
        raise ValueError(f"an array of {count} items is absurd")
    if kind == STRING:
        for _ in range(count):
            stream.read(_length(stream))
        return int(count)
    if kind not in SCALARS:
        raise ValueError(f"array type {kind} is unknown")
    if count <= 1024 and SCALARS[kind] not in "fd?":
        return tuple(_unpack(stream, f"<{count}{SCALARS[kind]}"))
    _read(stream, count * struct.calcsize("<" + SCALARS[kind]))
    return int(count)


def _string(stream: BinaryIO) -> str:
    return _read(stream, _length(stream)).decode("utf-8", "replace")


def _length(stream: BinaryIO) -> int:
    length = int(_unpack(stream, "<Q")[0])
    if length > LONGEST_STRING:
        raise ValueError(f"a string of {length} bytes is absurd")
    return length


def _unpack(stream: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, _read(stream, struct.calcsize(layout)))


def _read(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise ValueError("it ends in the middle of its header")
    return data
