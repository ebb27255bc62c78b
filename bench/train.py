"""What `swarmctl train` costs over the same TRL script run by hand: wall-clock and peak memory.

    python bench/train.py [MINUTES] [ROUNDS]

Both train the shipped small model on the same rows with the recipe tiny-dpo, one thread, and merge. By
hand: one Python process with TRL's own classes. By swarmctl: the command, over a real sshd of a loopback
lab, preflight included.

First a short job, one after the other, thrice: what a run costs however long it trains. Then a job of
MINUTES (4.5) by hand, ROUNDS (2) times: both at once, each on a core of its own with all that it starts, and
the cores changed every round, so that whatever the machine does meets both alike. Linux, two idle cores.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path

import table

from swarmctl.fleet.recipes import read_recipe
from swarmctl.lab.lab import Lab
from swarmctl.shipped import shipped_model

COUNTRIES = {"France": "Paris", "Spain": "Madrid", "Italy": "Rome", "Japan": "Tokyo", "Peru": "Lima"}
ROWS = 300
SHORT, FEW = 3, 4  # rounds of a short job, and its epochs
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
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
del trainer
base = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
merged = PeftModel.from_pretrained(base, out + "/adapter")
merged.merge_and_unload(safe_merge=True).save_pretrained(out + "/merged")
AutoTokenizer.from_pretrained(model).save_pretrained(out + "/merged")
print(json.dumps({"seconds": loop, "cpu": cpu, "memory": most}))
"""


def main() -> None:
    """Measure and print."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 4.5
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        sys.exit("this takes two cores")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_rows(root / "data")
        lab = Lab.create(root / "lab", hosts=1)
        lab.start()
        try:
            inventory(lab)
            short = [(by_hand(root, FEW), by_swarmctl(lab, root, FEW)) for _ in range(SHORT)]
            epochs = epochs_of(minutes * 60, [hand for hand, _ in short])
            found = [at_once(lab, root, epochs, cores[::-1] if number % 2 else cores)
                     for number in range(rounds)]
        finally:
            lab.wipe()
    show(found, short, epochs)


def at_once(lab: Lab, root: Path, epochs: int, cores: list[int]) -> tuple[dict, dict]:
    """One round of both: by hand on the first core; this process, the sshd and the job on the second."""
    hand: list[dict] = []
    lab.stop()
    os.sched_setaffinity(0, {cores[1]})
    lab.start()
    beside = threading.Thread(target=lambda: hand.append(by_hand(root, epochs, cores[0])), daemon=True)
    beside.start()
    ours = by_swarmctl(lab, root, epochs)
    beside.join()
    return hand[0], ours


def by_hand(root: Path, epochs: int, core: int | None = None) -> dict:
    """One run of the script: wall-clock, and what it says of itself."""
    keys = read_recipe("tiny-dpo", [f"num_train_epochs={epochs}"]).keys
    with tempfile.TemporaryDirectory(dir=root) as out:
        argv = [sys.executable, "-c", HAND, str(shipped_model("small")), str(root / "data" / "train.parquet"),
                out, json.dumps(dict(keys))]
        if core is not None:
            argv = ["taskset", "-c", str(core), *argv]
        began = time.monotonic()
        done = subprocess.run(argv, capture_output=True, text=True, check=True,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
        wall = time.monotonic() - began
    told = json.loads(done.stdout.splitlines()[-1])
    return {"wall": wall, "job": wall, "loop": told["seconds"], "cpu": told["cpu"], "memory": told["memory"]}


def by_swarmctl(lab: Lab, root: Path, epochs: int) -> dict:
    """One run of the command. The job runs under sshd, so only its own result tells its memory; its first and
    last records tell what passed before and after it."""
    environ = {**os.environ, **lab.environ, "OMP_NUM_THREADS": "1"}
    began = time.time()
    argv = [sys.executable, "-m", "swarmctl", "train", "tiny-dpo", "-d", str(root / "data"), "--json",
            "--set", f"num_train_epochs={epochs}"]
    done = subprocess.run(argv, capture_output=True, text=True, env=environ, check=False)
    ended = time.time()
    if done.returncode:
        sys.exit(done.stderr)
    run = json.loads(done.stdout)
    stage = run["result"]["stages"]["dpo"]
    log = lab.hosts[0].data_dir / "runs" / run["id"] / "progress.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    shutil.rmtree(lab.hosts[0].data_dir / "runs")
    first, last = (datetime.fromisoformat(line["at"]).timestamp() for line in (lines[0], lines[-1]))
    return {"wall": ended - began, "job": last - first, "before": first - began, "after": ended - last,
            "loop": stage["loop_seconds"], "cpu": stage["cpu_seconds"], "memory": stage["memory_bytes"]}


def epochs_of(seconds: float, short: list[dict]) -> int:
    """How many epochs take that long by hand, where each takes what it took in the short runs."""
    loop = statistics.median(one["loop"] for one in short)
    rest = statistics.median(one["wall"] for one in short) - loop
    return max(1, round((seconds - rest) / loop * FEW))


def show(found, short, epochs: int) -> None:
    """Medians, with the least and the most; ratios are of the two of one round."""
    names = (("CPU of the process, imports and training", "cpu", "s", 1),
             ("the training loop", "loop", "s", 1), ("process: imports, training, merging", "job", "s", 1),
             ("the whole command, preflight included", "wall", "s", 1),
             ("peak memory of training", "memory", "MB", 1e6))
    rows = [(name, *(spread([pair[side][key] / scale for pair in found], ",.1f", f" {unit}")
                     for side in (0, 1)),
             spread([100 * (ours[key] / hand[key] - 1) for hand, ours in found], "+.1f", " %"))
            for name, key, unit, scale in names]
    rows.append((f"{FEW} epochs: the whole command",
                 *(spread([pair[side]["wall"] for pair in short], ".1f", " s") for side in (0, 1)),
                 spread([ours["wall"] - hand["wall"] for hand, ours in short], "+.1f", " s")))
    every = [ours for _, ours in (*short, *found)]
    fixed = spread([one["before"] + one["after"] for one in every], ".1f", " s")
    rows.append(("fixed cost: before the job and after it", "", fixed, ""))
    header = ("", "TRL by hand", "swarmctl train", "more")
    table.show("Training", f"python {' '.join(('bench/train.py', *sys.argv[1:]))}", header, rows,
               f"Median (least to most) of {len(found)} rounds of {epochs} epochs, both at once on a core "
               f"each, and of {len(short)} rounds of {FEW} in turn. {ROWS} rows, recipe tiny-dpo, one "
               f"thread. Fixed cost: {parts(every)}.")


def parts(every) -> str:
    """Where the fixed cost lies."""
    before, after = (statistics.median(one[key] for one in every) for key in ("before", "after"))
    return f"{before:.1f} s until the job's first record, {after:.1f} s from its last"


def spread(values, form: str, unit: str) -> str:
    """Such as 3.1 s (3.0 to 3.3)."""
    middle, least, most = (format(value, form) for value in (statistics.median(values), min(values),
                                                              max(values)))
    return f"{middle}{unit} ({least} to {most})"


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
