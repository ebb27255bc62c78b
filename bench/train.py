"""What `swarmctl train` costs over the same TRL script run by hand: wall-clock and peak memory.

    python bench/train.py [ROUNDS] [EPOCHS]

Both train the shipped small model on the same rows with the recipe tiny-dpo, one thread, and merge. By
hand: one Python process with TRL's own classes. By swarmctl: the command, over a real sshd of a loopback
lab, preflight included; the job's own part is compared too. Rounds alternate. On a busy machine only the CPU
and the memory mean something.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import table

from swarmctl.fleet.recipes import read_recipe
from swarmctl.lab.lab import Lab
from swarmctl.shipped import shipped_model

COUNTRIES = {"France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Japan": "Tokyo", "Peru": "Lima"}
ROWS = 300
HAND = """
import json, sys, time, resource
import torch
torch.set_num_threads(1)
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer
model, data, out, keys = sys.argv[1:]
keys = json.loads(keys)
lora = LoraConfig(r=keys.pop("lora_r"), lora_alpha=keys.pop("lora_alpha"),
                  lora_dropout=keys.pop("lora_dropout"), task_type="CAUSAL_LM",
                  target_modules=keys.pop("lora_target_modules")[0])
keys.pop("use_peft")
rows = Dataset.from_parquet(data, cache_dir=out + "/cache")
args = DPOConfig(output_dir=out, use_cpu=True, report_to=["tensorboard"], save_strategy="no",
                 disable_tqdm=True, dataloader_pin_memory=False, **keys)
trainer = DPOTrainer(model=model, args=args, train_dataset=rows, peft_config=lora)
loop = trainer.train().metrics["train_runtime"]
trainer.save_model(out + "/adapter")
cpu = time.process_time()
del trainer
base = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
merged = PeftModel.from_pretrained(base, out + "/adapter")
merged.merge_and_unload(safe_merge=True).save_pretrained(out + "/merged")
AutoTokenizer.from_pretrained(model).save_pretrained(out + "/merged")
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": loop, "cpu": cpu, "memory": most}))
"""


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    given = [f"num_train_epochs={int(sys.argv[2])}"] if len(sys.argv) > 2 else []
    recipe = read_recipe("tiny-dpo", given)
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        write_rows(data)
        lab = Lab.create(Path(scratch) / "lab", hosts=1)
        lab.start()
        try:
            inventory(lab)
            found = [(by_hand(data, recipe.keys, Path(scratch) / f"hand{number}"),
                      by_swarmctl(lab, data, given)) for number in range(rounds)]
        finally:
            lab.wipe()
    show(found)


def by_hand(data: Path, keys, out: Path) -> dict:
    """One run of the script: wall-clock, and what it says of itself."""
    argv = [sys.executable, "-c", HAND, str(shipped_model("small")), str(data / "train.parquet"), str(out),
            json.dumps(dict(keys))]
    began = time.monotonic()
    done = subprocess.run(argv, capture_output=True, text=True, check=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    wall = time.monotonic() - began
    told = json.loads(done.stdout.splitlines()[-1])
    return {"wall": wall, "job": wall, "loop": told["seconds"], "cpu": told["cpu"], "memory": told["memory"]}


def by_swarmctl(lab: Lab, data: Path, given: list[str]) -> dict:
    """One run of the command. The job runs under sshd, so only its own result tells its memory."""
    environ = {**os.environ, **lab.environ, "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    argv = [sys.executable, "-m", "swarmctl", "train", "tiny-dpo", "-d", str(data), "--json",
            *(word for one in given for word in ("--set", one))]
    done = subprocess.run(argv, capture_output=True, text=True, env=environ, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    run = json.loads(done.stdout)
    wall = time.monotonic() - began
    stage = run["result"]["stages"]["dpo"]
    log = lab.hosts[0].data_dir / "runs" / run["id"] / "progress.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    shutil.rmtree(lab.hosts[0].data_dir / "runs")
    first, last = (datetime.fromisoformat(line["at"]) for line in (lines[0], lines[-1]))
    return {"wall": wall, "job": (last - first).total_seconds(), "loop": stage["loop_seconds"],
            "cpu": stage["cpu_seconds"], "memory": stage["memory_bytes"]}


def show(found) -> None:
    """The medians, and their ratio."""
    names = (("CPU of the process, imports and training", "cpu", "s", 1),
             ("the training loop", "loop", "s", 1), ("process: imports, training, merging", "job", "s", 1),
             ("the whole command, preflight included", "wall", "s", 1),
             ("peak memory of training", "memory", "MB", 1e6))
    rows = []
    for name, key, unit, scale in names:
        hand, ours = (statistics.median(pair[side][key] for pair in found) / scale for side in (0, 1))
        rows.append((name, f"{hand:,.1f} {unit}", f"{ours:,.1f} {unit}", f"{ours / hand - 1:+.1%}"))
    header = ("", "TRL by hand", "swarmctl train", "more")
    table.show("Training", f"python {' '.join(('bench/train.py', *sys.argv[1:]))}", header, rows,
               f"Medians of {len(found)} rounds in turn; {ROWS} rows, recipe tiny-dpo, one thread.")


def inventory(lab: Lab) -> None:
    """One host that trains, with this Python."""
    host = lab.hosts[0]
    lab.paths.inventory.write_text(
        f"version: 1\nssh_config: {lab.ssh_config}\nmodels: {{small: {{source: 'shipped:small'}}}}\nhosts:\n"
        f"  {host.name}:\n    roles: [train]\n    data_dir: {host.data_dir}\n    limits: {{threads: 1}}\n"
        f"    train: {{python: {sys.executable}}}\n")


def write_rows(folder: Path) -> None:
    """Preference pairs: the terse answer over the rambling one."""
    import pyarrow
    import pyarrow.parquet

    folder.mkdir()
    rows = []
    for number in range(ROWS):
        country, capital = list(COUNTRIES.items())[number % len(COUNTRIES)]
        said = [{"role": "user", "content": f"What is the capital of {country}?"}]
        rows.append({"prompt": said, "chosen": [{"role": "assistant", "content": capital}], "rejected": [
            {"role": "assistant", "content": f"Well, let me think. I believe the answer is {capital}."}]})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")


if __name__ == "__main__":
    main()
