"""The GGUF reader against files that the gguf package writes, and against noise."""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmctl.errors import SwarmError
from swarmctl.runtimes.gguf_header import read_header, read_model_file

gguf = pytest.importorskip("gguf")


def write(path, *, kv_heads=2, extra=None, file_type=1):
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(512)
    writer.add_block_count(3)
    writer.add_embedding_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(kv_heads)
    writer.add_token_list([f"piece{n}" for n in range(500)])
    writer.add_token_scores([0.5] * 2000)
    if file_type is not None:
        writer.add_file_type(file_type)
    writer.add_chat_template("{{ messages }}")
    for key, value in (extra or {}).items():
        writer.add_uint32(key, value)
    writer.add_tensor("a.weight", np.zeros((16, 128), dtype=np.float16))
    writer.add_tensor("b.weight", np.zeros((7,), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_model_file_is_described_from_its_header(tmp_path):
    path = write(tmp_path / "m.gguf")
    seen = read_model_file("m", path, "d" * 64)
    assert (seen.layers, seen.context_train, seen.quantisation) == (3, 512, "F16")
    assert seen.parameters == 16 * 128 + 7
    assert seen.kv_bytes_per_token == 2 * 3 * 2 * (32 + 32)
    assert seen.template_sha256 == sha256(b"{{ messages }}").hexdigest()
    assert seen.size == path.stat().st_size


def test_heads_may_differ_by_layer_and_have_their_own_width(tmp_path):
    path = write(tmp_path / "m.gguf", kv_heads=[1, 2, 0],
                 extra={"llama.attention.key_length": 64, "llama.attention.value_length": 16})
    assert read_model_file("m", path, "d").kv_bytes_per_token == 2 * 3 * (64 + 16)


def test_without_a_file_type_the_heaviest_tensor_type_names_the_quantisation(tmp_path):
    assert read_model_file("m", write(tmp_path / "m.gguf", file_type=None), "d").quantisation == "F16"


def test_every_truncation_is_refused_in_words(tmp_path):
    whole = write(tmp_path / "m.gguf").read_bytes()
    end = whole.index(b"b.weight")
    for size in (0, 3, 4, 20, 100, 1000, end):
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(whole[:size])
        with pytest.raises(SwarmError, match="not a usable GGUF"):
            read_model_file("m", cut, "d")


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(SwarmError, match=r"absent\.gguf cannot be read"):
        read_model_file("m", tmp_path / "absent.gguf", "d")


@given(st.binary(max_size=400))
@settings(max_examples=200)
def test_noise_after_the_magic_never_ends_in_another_error(noise):
    for head in (b"", b"GGUF", b"GGUF\x03\x00\x00\x00" + b"\x01" + b"\0" * 7 + b"\x01" + b"\0" * 7):
        with suppress(ValueError, struct.error):
            read_header(io.BytesIO(head + noise))
