"""The half of RouteLLM's prompts that nothing was tuned on, made anew from their public source.

    python bench/routing/held.py CLONE     (git clone https://github.com/lm-sys/RouteLLM; commit 0b64fda)

mmlu.csv.gz and gsm8k.csv.gz beside this file are one half of what is there, open to tuning. The held half is
the rest: every prompt that RouteLLM's own evaluation keeps (it drops the contaminated ones) and whose text is
not in the open half. First the open half itself is made from the source by the same code, and must come out
the same, row by row: so the parsing is right. Folds are a hash of the prompt's text, so that equal prompts
share one.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
COMMIT = "0b64fdafe049"
WEAK, STRONG = "mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview"
#: The protocol's own numbers.
EXPECTED = {"mmlu": 7022, "gsm8k": 654}
FOLDS = 5


def main(clone):
    """Write mmlu-held.csv.gz and gsm8k-held.csv.gz."""
    csv.field_size_limit(1 << 24)
    for name, source in (("mmlu", mmlu), ("gsm8k", gsm8k)):
        text = gzip.decompress((HERE / f"{name}.csv.gz").read_bytes()).decode()
        openly = list(csv.DictReader(io.StringIO(text, newline="")))
        columns, found = list(openly[0]), source(clone)
        folds = {row["prompt"]: row["fold"] for row in openly}
        again = [row | {"fold": folds[row["prompt"]]} for row in found if row["prompt"] in folds]
        if [{key: str(row[key]) for key in columns} for row in again] != openly:
            raise SystemExit(f"{name}: {clone} does not give the open half again: is it at {COMMIT}?")
        held = [row | {"fold": fold(row["prompt"])} for row in found if row["prompt"] not in folds]
        if len(held) != EXPECTED[name]:
            raise SystemExit(f"{name}: {len(held)} prompts are left, not {EXPECTED[name]}")
        packed = gzip.compress(written(columns, held).encode(), mtime=0)
        (HERE / f"{name}-held.csv.gz").write_bytes(packed)
        print(f"{name}: the open half comes out again, {len(openly)} prompts; {len(held)} are held")


def mmlu(clone):
    """Each question and whether the two models were right, by subject."""
    files = git(clone, "ls-tree", "--name-only", COMMIT, "routellm/evals/mmlu/responses/").splitlines()
    found = []
    for file in files:
        group = Path(file).stem.removeprefix("mmlu_")
        found += [(f"{group}/{number}", {"group": group, **scored(row)})
                  for number, row in enumerate(table(clone, file))]
    return kept(clone, "mmlu", found)


def gsm8k(clone):
    """The same, with the weak model's answer."""
    rows = table(clone, "routellm/evals/gsm8k/gsm8k_responses.csv")
    return kept(clone, "gsm8k", [(f"gsm8k/{number}", {
        "dataset": "routellm_gsm8k", "prompt_id": f"gsm8k/{number}", "group": "gsm8k", **scored(row),
        "weak_model": "mixtral-8x7b-instruct-v0.1", "strong_model": STRONG,
        "weak_response": row[f"{WEAK}_response"]}) for number, row in enumerate(rows)])


def scored(row):
    """What both halves and both sets have."""
    mark = {"True": 1, "False": 0}
    return {"prompt": row["prompt"], "weak_score": mark[row[WEAK]], "strong_score": mark[row[STRONG]]}


def kept(clone, name, found):
    """Less the contaminated, in the open half's order: by id, as text."""
    lines = git(clone, "show", f"{COMMIT}:routellm/evals/{name}/contaminated_prompts.jsonl").split("\n")
    out = {json.loads(line)["eval_prompt"] for line in lines if line.strip()}
    return [row for _, row in sorted(found, key=lambda one: one[0]) if row["prompt"] not in out]


def fold(prompt):
    """0 to 4."""
    return int(hashlib.sha256(f"held:{prompt}".encode()).hexdigest(), 16) % FOLDS


def table(clone, path):
    """A CSV file of the source."""
    return list(csv.DictReader(io.StringIO(git(clone, "show", f"{COMMIT}:{path}"), newline="")))


def written(columns, rows):
    """Rows as CSV."""
    text = io.StringIO(newline="")
    out = csv.DictWriter(text, columns, lineterminator="\n")
    out.writeheader()
    out.writerows(rows)
    return text.getvalue()


def git(clone, *argv):
    """What git says of the clone."""
    done = subprocess.run(["git", "-C", str(clone), *argv], capture_output=True, check=False, timeout=60)
    if done.returncode:
        raise SystemExit(f"git -C {clone} {' '.join(argv)}: {done.stderr.decode().strip()}")
    return done.stdout.decode()


if __name__ == "__main__":
    main(*sys.argv[1:])
