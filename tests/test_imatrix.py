"""The importance matrix that a job makes: what llama-imatrix would say of the same text, and taken by
llama-quantize."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from pathlib import Path

import pytest

from swarmctl.jobs.folder import Folder
from swarmctl.jobs.gguf import PARTS
from swarmctl.jobs.imatrix import imatrix, importance, write
from swarmctl.jobs.quantise import quantised
from swarmctl.jobs.spec import JobError, Spec
from swarmctl.learning.plain_text import TEXT
from swarmctl.shipped import shipped_model

pytestmark = [
    pytest.mark.runtime, pytest.mark.train,
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is missing")]
LARGE = shipped_model("large")
CHUNK = 256


@pytest.fixture
def source() -> Path:
    """llama.cpp's converters."""
    there = os.environ.get("SWARMCTL_TEST_LLAMACPP_SRC")
    if not there or not (Path(there) / PARTS[-1]).is_dir():
        pytest.skip("SWARMCTL_TEST_LLAMACPP_SRC names no source of llama.cpp")
    return Path(there)


def test_it_says_what_llama_imatrix_says_of_the_same_text(tmp_path, source, llamacpp_bin):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tool = llamacpp_bin / "llama-imatrix"
    if not tool.exists():
        pytest.skip("there is no llama-imatrix to compare with")
    (tmp_path / "text").write_text(TEXT * 2)
    argv = (str(tool), "-m", str(LARGE / "model.gguf"), "-f", str(tmp_path / "text"), "-t", "1", "-o",
            str(tmp_path / "theirs.gguf"), "-c", str(CHUNK), "-b", str(CHUNK), "--chunks", "3", "--no-ppl")
    subprocess.run(argv, check=True, capture_output=True, timeout=120)
    tokenizer = AutoTokenizer.from_pretrained(str(LARGE))
    ids = tokenizer(TEXT * 2, add_special_tokens=False)["input_ids"]
    texts = [ids[at:at + CHUNK] for at in range(0, 3 * CHUNK, CHUNK)]
    told = importance(AutoModelForCausalLM.from_pretrained(str(LARGE), dtype="auto"), texts, threads=1)
    count, lacking = write(told, 3 * CHUNK, LARGE / "model.gguf", tmp_path / "ours.gguf", source)
    assert (count, lacking) == (21, 0)  # three layers of seven matrices

    ours, theirs = means(tmp_path / "ours.gguf"), means(tmp_path / "theirs.gguf")
    assert set(theirs) == set(ours)
    for name, one in theirs.items():
        assert abs(ours[name] - one).max() < 0.02 * abs(one).max(), name


def means(path: Path) -> dict:
    """tensor → mean square of what enters each of its columns."""
    import gguf

    read = {one.name: one.data for one in gguf.GGUFReader(str(path)).tensors}
    return {name.removesuffix(".in_sum2"): data / read[name.replace("in_sum2", "counts")]
            for name, data in read.items() if name.endswith(".in_sum2")}


def test_the_training_set_is_what_it_is_made_of_and_llama_quantize_takes_it(tmp_path, source, llamacpp_bin):
    from datasets import Dataset

    folder = Folder(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "f16.gguf").symlink_to(LARGE / "model.gguf")
    (tmp_path / "text").write_text("too little")
    rows = [{"prompt": [{"role": "user", "content": f"What is {n} + {n}?"}],
             "chosen": [{"role": "assistant", "content": str(n + n)}],
             "rejected": [{"role": "assistant", "content": "no"}]} for n in range(40)]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "train.parquet"))
    told = {"source": str(source), "text": "text", "rows": str(tmp_path / "train.parquet")}
    spec = Spec("r", ("imatrix",), str(LARGE), "", {}, more={"imatrix": told})
    gave = imatrix(spec, folder)
    assert (gave["from"], gave["texts"], gave["tensors"], gave["lacking"]) == ("training set", 40, 21, 0)
    made = tmp_path / "out" / "imatrix.gguf"
    plain = quantised(LARGE / "model.gguf", tmp_path / "plain.gguf", "Q4_0", llamacpp_bin)
    done = quantised(LARGE / "model.gguf", tmp_path / "by.gguf", "Q4_0", llamacpp_bin, imatrix=str(made))
    assert done == plain  # as large, rounded otherwise
    assert (tmp_path / "plain.gguf").read_bytes()[-5000:] != (tmp_path / "by.gguf").read_bytes()[-5000:]

    few = Spec("r", ("imatrix",), str(LARGE), "", {}, more={"imatrix": {**told, "rows": ""}})
    with pytest.raises(JobError, match="too few"):
        imatrix(few, folder)
