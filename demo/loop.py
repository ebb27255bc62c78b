"""The whole loop, for real: rounds of asking, rating and `swarmctl improve` on a lab of three SSH hosts.

Raters whose taste is written down (raters.py) ask and rate; `improve` builds a data set of it, trains with
TRL on a host, quantises, evaluates the served result, and makes it a canary; the raters vote; `improve`
promotes it. After every round the served model answers prompts that nobody trained on, drawn at temperature 1
as the raters' are.

    python demo/loop.py [--rounds 3] [--prompts 150] [--ollama FOLDER] [--json FILE] [--plot FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo.raters import LONGEST, Clock, abilities, ask_and_rate, exam
from recipes.tiny.tasks import is_right, is_terse
from swarmctl.dispatch.swarm import read_swarm
from swarmctl.evaluation.answering import lanes_of
from swarmctl.exchange import ChatRequest, Message
from swarmctl.fleet.ports import free_ports
from swarmctl.fleet.snapshot import read_fleet
from swarmctl.paths import Paths

MODEL = "tiny-large"
EXAM, ABILITIES = 200, 300
#: votes that the raters give a canary before they give up on it
BALLOTS, BALLOT = 12, 20
IMPROVE = {"recipe": "tiny-dpo", "labels": 100, "cooldown_hours": 0, "quantize": "Q8_0", "share": 0.5,
           "sign": True,
           "measure": "exact", "temperature": 1, "samples": 2, "max_tokens": LONGEST}


@dataclass(frozen=True, slots=True)
class Score:
    """How one server of the model does on the exam: shares of terse and right, of right, and of the
    abilities."""

    round: int
    runtime: str
    release: str
    exact: float
    right: float
    abilities: float


class Loop:
    """One lab and its home."""

    def __init__(self, folder: Path, ollama: Path | None, **policy: Any) -> None:  # noqa: ANN401
        self.folder, self.ollama, self.policy = folder, ollama, {**IMPROVE, **policy}
        self.spoken = 0.0
        self.environ = {**os.environ, "SWARMCTL_LAB": str(folder / "lab")}
        self.swarmctl("lab", "up", "--mode", "loopback")
        told = self.swarmctl("lab", "env", quiet=True).stdout
        for line in told.splitlines():
            key, _, value = line.removeprefix("export ").partition("=")
            self.environ[key] = value.strip("'\"")
        self.paths = Paths.from_environ(self.environ)
        self.inventory = Path(self.environ.get("SWARMCTL_INVENTORY", str(self.paths.inventory)))
        self._configure()

    def swarmctl(self, *args: str, quiet: bool = False,
                 check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command as a person types it, shown with what it says."""
        if not quiet:
            print(f"\n$ swarmctl {' '.join(args)}", flush=True)
        done = subprocess.run((sys.executable, "-m", "swarmctl", *args), env=self.environ, text=True,
                              stdout=subprocess.PIPE, stderr=None if not quiet else subprocess.PIPE,
                              check=False)
        if not quiet:
            sys.stdout.write(done.stdout)
        if check and done.returncode:
            raise SystemExit(f"swarmctl {' '.join(args)} ended with {done.returncode}\n{done.stderr or ''}")
        return done

    def _configure(self) -> None:
        """The lab's inventory with a policy, a training environment, and Ollama on one host where it is at
        hand."""
        import yaml

        capability = self.folder / "abilities.jsonl"
        capability.write_text("".join(json.dumps({"prompt": task.question, "answer": task.answer}) + "\n"
                                      for task in abilities(ABILITIES, "gate")))
        wishes = yaml.safe_load(self.inventory.read_text())
        wishes["models"][MODEL]["improve"] = {**self.policy, "capability": str(capability)}
        wishes["hosts"]["worlock"]["train"] = {"python": sys.executable}
        if self.ollama:
            airgap = self.folder / "airgap"
            host = wishes["hosts"]["calisota"]
            host["ollama"] = {"port": free_ports(1, 1)[0], "manage": "own", "version": _version(self.ollama)}
            for placement in host["models"]:
                placement["runtime"] = "ollama"
            host.pop("llamacpp")
            _pack(self.ollama, airgap, _version(self.ollama))
            wishes["airgap"] = str(airgap)
        self.inventory.write_text(yaml.safe_dump(wishes, sort_keys=False))
        self.swarmctl("up")

    def raters(self, prompts: int, seed: str, began: float,
               **mind: Any) -> None:  # noqa: ANN401  see ask_and_rate
        """The raters ask and rate; by their own clocks they began at a time (seconds since 1970)."""
        swarm = read_swarm(self.paths, self.inventory, print)
        assert swarm is not None
        clock = Clock(max(began, self.spoken))
        said = ask_and_rate(swarm, MODEL, prompts, seed=seed, clock=clock, **mind)
        self.spoken = clock.now
        print(f"raters: {2 * prompts} answers to {prompts} prompts, {said['up']} liked, {said['down']} not",
              flush=True)

    def improve(self, number: int, comment: str = "terse at last") -> None:
        """One round, to its end."""
        self.swarmctl("improve", MODEL, "--once")
        self.swarmctl("review", "show", f"{MODEL}-{number}")
        if self.round(number)["status"] != "waiting":
            return
        self.swarmctl("review", "approve", f"{MODEL}-{number}", "--comment", comment)
        self.swarmctl("improve", MODEL, "--once")
        for ballot in range(BALLOTS):
            self.raters(BALLOT, f"ballot {number} {ballot}", time.time())
            self.swarmctl("improve", MODEL, "--once")
            if self.round(number)["status"] != "waiting":
                return

    def round(self, number: int) -> dict[str, Any]:
        """How a round stands."""
        shown = self.swarmctl("review", "show", f"{MODEL}-{number}", "--json", quiet=True).stdout
        found: dict[str, Any] = json.loads(shown)
        return found

    def scores(self, number: int) -> list[Score]:
        """The exam, on every runtime that serves the model now."""
        fleet = read_fleet(self.paths.fleet)
        assert fleet is not None
        found = []
        for entry in fleet.hosts:
            for served in entry.served:
                if served.model != MODEL or served.canary:
                    continue
                lane = next(one for one in lanes_of(self.paths, fleet, served.digest, entry.name)
                            if one.served == served)
                if any(score.runtime == served.runtime for score in found):
                    continue
                found.append(_score(lane, number, served.runtime, served.release or "as shipped"))
                print(f"exam after round {number}, {served.runtime} on {entry.name} ({found[-1].release}): "
                      f"{found[-1].exact:.1%} terse and right, {found[-1].right:.1%} right; abilities "
                      f"{found[-1].abilities:.1%}", flush=True)
        return found

    def close(self) -> None:
        """Nothing is left running."""
        self.swarmctl("lab", "down", "--wipe", quiet=True, check=False)


def _score(lane, number: int, runtime: str, release: str) -> Score:  # noqa: ANN001  a Lane
    def replies(tasks):  # noqa: ANN001, ANN202
        for at, task in enumerate(tasks):
            yield task, lane.reply(ChatRequest((Message("user", task.question),), LONGEST, 1.0,
                                               1000 + at)).answer

    asked = list(replies(exam(EXAM, "final")))
    able = list(replies(abilities(EXAM, "final")))
    return Score(number, runtime, release, sum(is_terse(*one) for one in asked) / EXAM,
                 sum(is_right(*one) for one in asked) / EXAM, sum(is_right(*one) for one in able) / EXAM)


def _version(ollama: Path) -> str:
    said = subprocess.run((str(ollama / "bin" / "ollama"), "--version"), capture_output=True, text=True,
                          check=True)
    return said.stdout.split()[-1]


def _pack(ollama: Path, folder: Path, version: str) -> None:
    """The air-gapped folder's archive of a release, as its makers pack it."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"ollama-{version}-linux-amd64.tgz"
    subprocess.run(("tar", "-C", str(ollama), "-czf", str(archive), "bin", "lib"), check=True)
    digest = subprocess.run(("sha256sum", archive.name), cwd=folder, capture_output=True, text=True,
                            check=True)
    (folder / f"{archive.name}.sha256").write_text(digest.stdout)


def plot(scores: list[Score]) -> str:
    """Exact match after each round, as SVG."""
    width, height, left, bottom = 640, 320, 50, 40
    last = max(score.round for score in scores) or 1

    def x(number: int) -> float:
        return left + (width - left - 150) * number / last

    def y(share: float) -> float:
        return height - bottom - (height - bottom - 20) * share

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
             'font-family="sans-serif" font-size="13">', '<rect width="100%" height="100%" fill="white"/>']
    parts += [f'<line x1="{left}" x2="{x(last)}" y1="{y(at)}" y2="{y(at)}" stroke="#ddd"/>'
              f'<text x="{left - 8}" y="{y(at) + 4}" text-anchor="end">{at:.0%}</text>'
              for at in (0.0, 0.25, 0.5, 0.75, 1.0)]
    parts += [f'<text x="{x(n)}" y="{height - 15}" text-anchor="middle">'
              f'{f"round {n}" if n else "as shipped"}</text>' for n in range(last + 1)]
    lines = [(runtime, key, label) for runtime in dict.fromkeys(score.runtime for score in scores)
             for key, label in (("exact", "terse and right"), ("abilities", "abilities"))]
    colours = ("#1a7f37", "#9ec5a8", "#0b5cad", "#a9c7e8")
    ends = sorted((y(next(getattr(s, key) for s in reversed(scores) if s.runtime == runtime)), at)
                  for at, (runtime, key, _) in enumerate(lines))
    for rank, (end, at) in enumerate(ends):
        runtime, key, label = lines[at]
        rows = [score for score in scores if score.runtime == runtime]
        points = " ".join(f"{x(row.round):.1f},{y(getattr(row, key)):.1f}" for row in rows)
        below = max((ends[before][0] + 15 * (rank - before) for before in range(rank)), default=0.0)
        colour = colours[at % 4]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>'
                     f'<text x="{x(last) + 8}" y="{max(end, below) + 4:.0f}" fill="{colour}">'
                     f"{runtime}: {label}</text>")
    return "\n".join((*parts, "</svg>")) + "\n"


def main() -> int:
    """Run the rounds; 0 where the last scores are what the loop promises."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=150)
    parser.add_argument("--ollama", type=Path, default=os.environ.get("SWARMCTL_TEST_OLLAMA"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="swarm-"))
    loop = Loop(folder, Path(args.ollama) if args.ollama else None)
    scores: list[Score] = []
    try:
        scores += loop.scores(0)
        for number in range(1, args.rounds + 1):
            print(f"\n━━ round {number}", flush=True)
            loop.raters(args.prompts, f"round {number}", time.time())
            loop.improve(number)
            scores += loop.scores(number)
        loop.swarmctl("models", "history", MODEL)
    finally:
        loop.close()
        shutil.rmtree(folder, ignore_errors=True)
        if args.json:
            args.json.write_text(json.dumps([asdict(score) for score in scores], indent=1) + "\n")
        if args.plot and scores:
            args.plot.write_text(plot(scores))
    return 0 if all(score.exact >= 0.85 for score in scores if score.round == args.rounds) else 1


if __name__ == "__main__":
    sys.exit(main())
