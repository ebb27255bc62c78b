"""`swarmctl deploy` against the same by hand: convert, quantise, scp, `ollama create`, first token.

One lab host (a real sshd on this machine) whose owner runs an Ollama. By hand nothing is verified and nothing
recorded; of `deploy` the time is shown stage by stage, so what proving a release costs can be told apart.
Both start Python and torch once to convert. Needs SWARMCTL_TEST_OLLAMA, _LLAMACPP and _LLAMACPP_SRC.

    python bench/deploy.py [RUNS]
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from table import machine, median, run

from swarmctl.lab.lab import Lab
from swarmctl.shipped import shipped_model

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
KIND = "Q8_0"


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    from stocked import stock
    from test_deploy import Swarm, link_converters
    from test_ollama import Server

    tools, source = (Path(os.environ[f"SWARMCTL_TEST_LLAMACPP{end}"]) for end in ("", "_SRC"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = stock(folder / "cache", tools)
        link_converters(store.root, source)
        lab = Lab.create(folder / "lab", "loopback", 2, cache=folder / "cache")
        ollama = Server(_made(folder / "ollama"))
        try:
            lab.start()
            swarm = Swarm(lab, ollama)
            text = swarm.paths.inventory.read_text().splitlines()
            swarm.paths.inventory.write_text("\n".join(  # the Ollama host alone
                line for line in text if not any(word in line for word in ("worlock", "llamacpp", "roles:")))
                + "\n")
            swarm.run("up")
            hand = [by_hand(swarm, folder, tools, source, number) for number in range(runs)]
            ours = [by_deploy(swarm, folder, number) for number in range(runs)]
        finally:
            ollama.process.terminate()
            ollama.process.wait(30)
            lab.wipe()
    show(hand, ours)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def weights(folder: Path, name: str, number: int) -> Path:
    """A copy of large that gives another GGUF, so that nothing is there already."""
    to = folder / f"{name}{number}"
    shutil.copytree(shipped_model("large"), to, ignore=shutil.ignore_patterns("*.gguf"))
    config = json.loads((to / "config.json").read_text())
    config["rms_norm_eps"] = 1e-6 + (number + 1 + 50 * (name == "ours")) * 1e-9
    (to / "config.json").write_text(json.dumps(config))
    return to


def by_hand(swarm, folder: Path, tools: Path, source: Path, number: int) -> dict[str, float]:
    taken, model = {}, weights(folder, "hand", number)
    environ = {**os.environ, "PYTHONPATH": str(source / "gguf-py"), "CUDA_VISIBLE_DEVICES": ""}
    host = ("-F", str(swarm.lab.ssh_config), "-o", f"UserKnownHostsFile={swarm.paths.known_hosts}")
    steps = {
        "convert": (sys.executable, source / "convert_hf_to_gguf.py", model, "--outtype", "f16", "--outfile",
                    model / "f16.gguf"),
        "quantise": (tools / "llama-quantize", model / "f16.gguf", model / "model.gguf", KIND),
        "scp": ("scp", "-q", *host, model / "model.gguf", f"spinoza:hand{number}.gguf"),
        "create": ("ssh", *host, "spinoza", f"printf 'FROM ./hand{number}.gguf\\nPARAMETER num_thread 1\\n' "
                   f"> Modelfile && HOME=$PWD OLLAMA_HOST=127.0.0.1:{swarm.ollama.port} "
                   f"{os.environ['SWARMCTL_TEST_OLLAMA']}/bin/ollama create hand:{number} -f Modelfile"),
    }
    for name, argv in steps.items():
        taken[name] = run(argv, environ=environ).wall
    began = time.perf_counter()
    swarm.ollama.call("/api/chat", {"model": f"hand:{number}", "stream": False, "options": {"num_predict": 1},
                                    "messages": [{"role": "user", "content": "Hello"}]})
    return {**taken, "first token": time.perf_counter() - began}


def by_deploy(swarm, folder: Path, number: int) -> dict[str, float]:
    model = weights(folder, "ours", number)
    began = time.perf_counter()
    done = swarm.run("deploy", str(model), "-m", "small", "-q", KIND, "--json")
    wall = time.perf_counter() - began
    release = json.loads(done.stdout)["release"]
    times = {one["action"]: datetime.fromisoformat(one["at"]) for one in swarm.history()
             if one["release"] == release}
    serving = (times["share"] - times["deploy"]).total_seconds()
    began = time.perf_counter()
    swarm.run("promote", "small", "--yes")
    promote = time.perf_counter() - began
    began = time.perf_counter()
    swarm.run("rollback", "small")
    return {"finish and verify": wall - serving, "serve and inspect": serving, "promote": promote,
            "rollback": time.perf_counter() - began}


def show(hand: list[dict[str, float]], ours: list[dict[str, float]]) -> None:
    print(f"{machine()}; {len(hand)} runs each, medians, seconds\n")
    for title, rows, whole in (("by hand", hand, hand[0]), ("swarmctl deploy", ours, list(ours[0])[:2])):
        print(f"| {title} | " + " | ".join(rows[0]) + " | all of it |\n|" + "---|" * (len(rows[0]) + 2))
        cells = [f"{median([row[name] for row in rows]):.1f}" for name in rows[0]]
        total = median([sum(row[name] for name in whole) for row in rows])
        print("| seconds | " + " | ".join(cells) + f" | {total:.1f} |\n")


if __name__ == "__main__":
    main()
