"""What swarmctl's part of a training costs in CPU, against TRL's own classes, in turn within one process.

    python bench/train_cpu.py [ROUNDS]

bench/train.py compares whole processes, minutes apart: on a busy machine their CPU differs by more than what
is looked for. Here both train the shipped small model on the same rows one after the other, each round in the
other order; the first round warms up and is left out.
"""

from __future__ import annotations

import contextlib
import gc
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import table
from train import ROWS, write_rows

from swarmctl.fleet.recipes import read_recipe
from swarmctl.jobs.folder import Folder
from swarmctl.jobs.spec import Spec
from swarmctl.jobs.training import train
from swarmctl.shipped import shipped_model

RECIPE = read_recipe("tiny-dpo", ["num_train_epochs=1"])


def main() -> None:
    """Measure and print."""
    import torch

    torch.set_num_threads(1)
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    took: dict[str, list[float]] = {"hand": [], "ours": []}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_rows(root / "data")
        for number in range(rounds + 1):
            order = ("hand", "ours") if number % 2 else ("ours", "hand")
            for name in order:
                took[name].append(spent(by_hand if name == "hand" else by_swarmctl, root, number))
    hand, ours = (statistics.median(took[name][1:]) for name in ("hand", "ours"))
    table.show("Training, CPU alone", f"python {' '.join(('bench/train_cpu.py', *sys.argv[1:]))}",
               ("", "TRL by hand", "swarmctl", "more"),
               [("CPU of one epoch", f"{hand:.2f} s", f"{ours:.2f} s", f"{ours / hand - 1:+.1%}")],
               f"Medians of {rounds} rounds in turn; {ROWS} rows, recipe tiny-dpo, one thread.")


def spent(what, root: Path, number: int) -> float:
    """CPU seconds of this process, its threads included."""
    gc.collect()
    before = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        what(root, number)
    return time.process_time() - before


def by_hand(root: Path, number: int) -> None:
    """TRL's documented way."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    keys, out = dict(RECIPE.keys), str(root / f"hand{number}")
    keys.pop("use_peft")
    lora = LoraConfig(r=keys.pop("lora_r"), lora_alpha=keys.pop("lora_alpha"), task_type="CAUSAL_LM",
                      lora_dropout=keys.pop("lora_dropout"),
                      target_modules=keys.pop("lora_target_modules")[0])
    rows = Dataset.from_parquet(str(root / "data" / "train.parquet"), cache_dir=f"{out}/cache")
    args = DPOConfig(output_dir=out, use_cpu=True, report_to=["tensorboard"], save_strategy="no",
                     disable_tqdm=True, dataloader_pin_memory=False, **keys)
    trainer = DPOTrainer(model=str(shipped_model("small")), args=args, train_dataset=rows, peft_config=lora)
    trainer.train()
    trainer.save_model(f"{out}/adapter")


def by_swarmctl(root: Path, number: int) -> None:
    """The stage of a job."""
    folder = Folder(root / f"ours{number}")
    folder.path.mkdir()
    (folder.path / "data").symlink_to(root / "data")
    spec = Spec("bench", ("dpo",), str(shipped_model("small")), "data", dict(RECIPE.keys), threads=1)
    train(spec, folder, "dpo")


if __name__ == "__main__":
    main()
