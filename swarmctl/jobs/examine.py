"""What must be known of a dataset and a model before they are trained: rows, their lengths, the template's
bytes.

`python -m swarmctl.jobs.examine MODEL DATASET TRAINER MAX_LENGTH` prints one JSON object, and is told on
stdin what to compare with. It reads the tokenizer, never the weights, so it takes seconds. Run on the host,
with what the job itself will run with.
"""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

#: A conversation that shows most of what a template can do; rendered alike here and by the server, or not
#: at all.
SAMPLE = ({"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "What is 2 + 2?"},
          {"role": "assistant", "content": "4"}, {"role": "user", "content": "  And   3 + 3?\n"})
#: Rows that are measured one by one; of more, this many evenly spread ones.
MOST = 5000


def examine(model: str, dataset: Path, trainer: str, most_tokens: int | None,
            told: dict[str, Any]) -> dict[str, Any]:
    """Rows, the longest of them in tokens, how many would be dropped or cut; the sample as rendered by the
    tokenizer's template and by the served one (told["template"]); how it cuts the converter's probe
    (told["probe"])."""
    import pyarrow.parquet as pq
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    table = pq.ParquetFile(dataset / "train.parquet").read()  # read_table would import pandas
    rows = table.num_rows
    step = max(1, rows // MOST)
    looked = [lengths(tokenizer, table.slice(index, 1).to_pylist()[0], trainer)
              for index in range(0, rows, step)]
    limit = most_tokens or sys.maxsize
    return {
        "rows": rows, "looked": len(looked), "longest": max((whole for _, whole in looked), default=0),
        "dropped": sum(prompt >= limit for prompt, _ in looked),
        "cut": sum(prompt < limit < whole for prompt, whole in looked),
        "eos": tokenizer.eos_token, "vocabulary": len(tokenizer),
        "template": bool(tokenizer.chat_template), "rendered": rendered(tokenizer),
        "served": rendered(tokenizer, told["template"]) if told.get("template") else None,
        "tokenizer": cut(tokenizer, Path(model), told["probe"]) if told.get("probe") else None,
    }


def lengths(tokenizer: Any, row: dict[str, Any], trainer: str) -> tuple[int, int]:  # noqa: ANN401
    """Tokens of a row's prompt, and of prompt and its longer answer."""
    prompt = len(_ids(tokenizer, row["prompt"], answer=True))
    names = ("chosen", "rejected") if trainer == "dpo" else ("completion",)
    return prompt, max(len(_ids(tokenizer, [*row["prompt"], *row[name]], answer=False)) for name in names)


def cut(tokenizer: Any, folder: Path, probe: str) -> str | None:  # noqa: ANN401
    """How a BPE tokenizer cuts the probe, as a hash that llama.cpp's converter compares; None for others."""
    if (folder / "tokenizer.model").exists() or not (folder / "tokenizer.json").exists():
        return None
    if json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["type"] != "BPE":
        return None
    return sha256(str(tokenizer.encode(probe)).encode()).hexdigest()


def rendered(tokenizer: Any, template: str | None = None) -> str:  # noqa: ANN401
    """The sample conversation as this tokenizer's template, or another, writes it; empty where it
    refuses."""
    from jinja2 import TemplateError

    for sample in (SAMPLE, SAMPLE[1:]):  # some templates refuse a system prompt
        try:
            return str(tokenizer.apply_chat_template(
                list(sample), chat_template=template, tokenize=False, add_generation_prompt=True))
        except TemplateError:
            continue
    return ""


def _ids(tokenizer: Any, messages: list[dict[str, Any]], *, answer: bool) -> list[int]:  # noqa: ANN401
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


if __name__ == "__main__":
    # A tokenizer needs no torch, and transformers starts in a fifth of the time where it finds none.
    sys.modules["torch"] = None  # type: ignore[assignment]
    _, named, folder, kind, length = sys.argv
    found = examine(named, Path(folder), kind, int(length) or None, json.loads(sys.stdin.read() or "{}"))
    sys.stdout.write(json.dumps(found) + "\n")
