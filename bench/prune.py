"""What pruning costs and saves, on the shipped large model: the table in docs/prune.md.

For each wish: the job of recipes/tiny-prune.yaml on terse answers, then the served GGUF's size and speed.

    SWARMCTL_TEST_LLAMACPP=BIN SWARMCTL_TEST_LLAMACPP_SRC=SOURCE python bench/prune.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from recipes.tiny.tasks import draw  # noqa: E402
from swarmctl.fleet.recipes import read_recipe  # noqa: E402
from swarmctl.jobs.gguf import convert  # noqa: E402
from swarmctl.jobs.spec import Spec  # noqa: E402
from swarmctl.shipped import shipped_model  # noqa: E402

ROWS, HELD, ROUNDS = 1600, 64, 7
KINDS = ("capital", "spelling", "sum", "code")
WISHES = ({"layers": 1}, {"ffn": 0.25}, {"layers": 1, "ffn": 0.25})


def rows(count: int, *, held_out: bool) -> list[dict]:
    """Questions with their terse answers."""
    rng = Random("bench")
    tasks = [draw(KINDS[number % len(KINDS)], rng, held_out=held_out) for number in range(count)]
    return [{"prompt": [{"role": "user", "content": task.question}],
             "completion": [{"role": "assistant", "content": task.answer}]} for task in tasks]


def job(folder: Path, wish: dict[str, float]) -> dict:
    """Run one job; what its stages gave."""
    import pyarrow
    from pyarrow import parquet

    (folder / "data").mkdir(parents=True)
    for name, count in (("train", ROWS), ("heldout", HELD)):
        table = pyarrow.Table.from_pylist(rows(count, held_out=name == "heldout"))
        parquet.write_table(table, folder / "data" / f"{name}.parquet")
    recipe = read_recipe("tiny-prune")
    spec = Spec("bench", recipe.stages, str(shipped_model("large")), "data", dict(recipe.keys), threads=1,
                more={"prune": wish})
    (folder / "spec.json").write_text(spec.to_json())
    subprocess.run((sys.executable, "-m", "swarmctl.jobs", "spec.json"), cwd=folder, check=True,
                   env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=1800)
    return json.loads((folder / "result.json").read_text())["stages"]


def speed(gguf: Path) -> tuple[float, float]:
    """Tokens a second read and written on one thread, by llama-bench."""
    argv = (str(Path(os.environ["SWARMCTL_TEST_LLAMACPP"]) / "llama-bench"), "-m", str(gguf), "-t", "1",
            "-p", "128", "-n", "128", "-r", "3", "-o", "json")
    told = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True, timeout=600).stdout)
    reads, writes = (one["avg_ts"] for one in told)
    return reads, writes


def served(files: list[Path]) -> list[dict[str, float]]:
    """Size in MB, and the median speed of several rounds: each file once a round, so that what else the
    machine does meets all of them."""
    rounds = [[speed(file) for file in files] for _ in range(ROUNDS)]
    return [{"mb": file.stat().st_size / 1e6, "reads": median(one[at][0] for one in rounds),
             "writes": median(one[at][1] for one in rounds)} for at, file in enumerate(files)]


def main() -> None:
    """Print one JSON object a line."""
    source = Path(os.environ["SWARMCTL_TEST_LLAMACPP_SRC"])
    files, measured = [shipped_model("large") / "model.gguf"], [{"wish": {}}]
    with tempfile.TemporaryDirectory() as temporary:
        for number, wish in enumerate(WISHES):
            folder = Path(temporary) / str(number)
            gave = job(folder, wish)
            files.append(convert(folder / "out" / "merged", folder / "model.gguf", source, name="pruned"))
            measured.append({"wish": wish, "before": gave["prune"]["before"], "after": gave["prune"]["after"],
                             "recovered": gave["compare"]["recovered"]})
        for one, found in zip(measured, served(files), strict=True):
            print(json.dumps({**one, **found}), flush=True)


if __name__ == "__main__":
    main()
