"""An eye for a tiny model: a projector of llama.cpp with random weights. What it sees means nothing, but it
is real: the model reads other tokens for another image.
"""

from __future__ import annotations

import base64
import struct
import zlib
from pathlib import Path

WIDTH, HIDDEN, PATCH, SIDE = 32, 64, 4, 32
#: llama.cpp's gemma3 projector pools four by four patches to one token
TOKENS = (SIDE // PATCH // 4) ** 2


def make_eye(path: Path, out: int) -> Path:
    """Write a projector for a model whose hidden size is `out`."""
    import gguf
    import numpy

    writer, draw = gguf.GGUFWriter(path, "clip"), numpy.random.default_rng(7)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "gemma3")
    writer.add_bool("clip.use_gelu", True)
    sizes = {"image_size": SIDE, "patch_size": PATCH, "embedding_length": WIDTH, "block_count": 1,
             "feed_forward_length": HIDDEN, "projection_dim": out, "attention.head_count": 2}
    for key, value in sizes.items():
        writer.add_uint32(f"clip.vision.{key}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    for key in ("image_mean", "image_std"):
        writer.add_array(f"clip.vision.{key}", [0.5, 0.5, 0.5])
    for name, shape in _tensors(out).items():
        writer.add_tensor(name, (draw.standard_normal(shape) * 0.1).astype(numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _tensors(out: int) -> dict[str, tuple[int, ...]]:
    block = {f"{name}.{part}": (WIDTH, WIDTH) if part == "weight" else (WIDTH,)
             for name in ("attn_q", "attn_k", "attn_v", "attn_out") for part in ("weight", "bias")}
    block |= {f"{name}.{part}": (WIDTH,) for name in ("ln1", "ln2") for part in ("weight", "bias")}
    block |= {"ffn_up.weight": (HIDDEN, WIDTH), "ffn_up.bias": (HIDDEN,), "ffn_down.weight": (WIDTH, HIDDEN),
              "ffn_down.bias": (WIDTH,)}
    return {"v.patch_embd.weight": (WIDTH, 3, PATCH, PATCH), "v.patch_embd.bias": (WIDTH,),
            "v.position_embd.weight": ((SIDE // PATCH) ** 2, WIDTH),
            **{f"v.blk.0.{name}": shape for name, shape in block.items()},
            "v.post_ln.weight": (WIDTH,), "v.post_ln.bias": (WIDTH,),
            "mm.input_projection.weight": (WIDTH, out), "mm.soft_emb_norm.weight": (WIDTH,)}


def picture(red: int, green: int, blue: int) -> str:
    """A PNG of one colour, as base64."""
    rows = b"".join(b"\0" + bytes((red, green, blue)) * SIDE for _ in range(SIDE))
    head = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    chunks = (_chunk(b"IHDR", head), _chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b""))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
