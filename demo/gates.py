"""The gate holds: every way of making the served model worse that we could think of, tried for real on a lab.

Poisoned ratings, a training that runs away, and broken releases each meet the command that should stop them.
One line a case, a table at the end, exit status 1 where one was not stopped. docs/gates.md has what came out.

    python demo/gates.py [--case NAME ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from demo.loop import MODEL, Loop
from demo.raters import PACE, RATERS, Clock
from recipes.tiny.tasks import is_terse, ramble
from swarmctl.shipped import shipped_model
from swarmctl.verbs.rate import Opinion, rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from recipes.tiny.tasks import Task
    from swarmctl.paths import Paths

ROOT = Path(__file__).resolve().parent.parent
BOT = "bot"
#: seconds between two ratings of the bot
HASTE = 0.1


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where a case was stopped, and the reason as it was given. `seconds` is how long the case took."""

    case: str
    stopped: bool
    where: str
    reason: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Case:
    """One way to do harm. `alone` wants a lab of its own, with that policy; `prompts` is how many the raters
    ask."""

    name: str
    what: str
    run: Callable[[Loop, int], tuple[bool, str, str]]
    policy: dict[str, Any] = field(default_factory=dict)
    alone: bool = True
    prompts: int = 150


def inverted(loop: Loop, prompts: int) -> tuple[bool, str, str]:
    """Every rater of the training data likes rambling; those who meet the canary do not."""
    rng = Random("rambling")
    loop.raters(prompts, "inverted", _past(prompts), opinion=_likes_rambling,
                correction=lambda task: ramble(task, rng))
    loop.improve(1, "the held-out prompts say that it is better")
    return _ended(loop)


def one_sided(loop: Loop, prompts: int) -> tuple[bool, str, str]:
    """Everything is liked, and the recipe is KTO's."""
    loop.raters(prompts, "one-sided", _past(prompts), opinion=lambda *_: "up")
    loop.improve(1)
    return _ended(loop)


def flood(loop: Loop, prompts: int) -> tuple[bool, str, str]:
    """A bot dislikes every answer that people have rated, ten a second: the data set must not change."""
    loop.raters(prompts, "honest", _past(prompts))
    before = _built(loop)
    votes = dislike_everything(loop.paths)
    after = _built(loop)
    named = [line for line in after["raters"] if line.startswith(f"left out: {BOT}: {votes} answers")]
    same = after["sha256"] == before["sha256"]
    where = "build: left out, the data set is the one without it" if same else "build: the data set changed"
    return bool(named) and same, where, "; ".join(named) or "the bot was not named"


def diverged(loop: Loop, prompts: int) -> tuple[bool, str, str]:
    """Honest ratings, and a training with a learning rate far too high and nothing that holds it."""
    loop.raters(prompts, "diverged", _past(prompts))
    loop.improve(1)
    return _ended(loop)


def template(loop: Loop, _prompts: int) -> tuple[bool, str, str]:
    """The tokenizer's chat template is another one than training saw."""
    from swarmctl.jobs.verify import CONVERSATIONS, render

    folder = _weights(loop, "template")
    (folder / "rendered.json").write_text(json.dumps(render(folder, CONVERSATIONS)))
    _change(folder, "chat_template", lambda text: text.replace("<|user|>", "### User: "))
    return _deployed(loop, folder)


def truncated(loop: Loop, _prompts: int) -> tuple[bool, str, str]:
    """A GGUF that lost its end on the way."""
    whole = (shipped_model("large") / "model.gguf").read_bytes()
    (loop.folder / "cut.gguf").write_bytes(whole[:-50_000])
    return _deployed(loop, loop.folder / "cut.gguf")


def ending(loop: Loop, _prompts: int) -> tuple[bool, str, str]:
    """The tokenizer no longer knows what ends an answer."""
    folder = _weights(loop, "ending")
    _change(folder, "eos_token", lambda _: None)
    return _deployed(loop, folder)


def dislike_everything(paths: Paths) -> int:
    """A bot rates every answer that is there; how many."""
    clock = Clock(time.time(), HASTE)
    rows = [json.loads(line) for file in sorted(paths.journal.glob("*.jsonl"))
            for line in file.read_text().splitlines() if line]
    answers = [row["id"] for row in rows if row["kind"] == "exchange"]
    for answer in answers:
        rate(paths, Opinion("down"), terminal=BOT, now=clock(), id_part=answer)
    return len(answers)


def runaway(folder: Path) -> Path:
    """The lab's DPO recipe without what makes it safe: the recipe itself says what follows."""
    kept = [line for line in (ROOT / "recipes" / "tiny-dpo.yaml").read_text().splitlines()
            if not line.startswith(("#", "loss_", "learning_rate"))]
    path = folder / "runaway.yaml"
    path.write_text("\n".join((*kept, "learning_rate: 2e-2", "")))
    return path


CASES = (
    Case("inverted", "every rater likes rambling and dislikes what is terse", inverted,
         {"measure": "f1", "samples": 4}, prompts=500),
    Case("one-sided", "everything is liked, recipe tiny-kto", one_sided, {"recipe": "tiny-kto"}),
    Case("flood", "a bot dislikes every answer, ten a second", flood),
    Case("diverged", "DPO at a learning rate of 2e-2, without the sft term", diverged, {"recipe": runaway}),
    Case("template", "another chat template than training saw", template, alone=False),
    Case("truncated", "a GGUF without its last 50,000 bytes", truncated, alone=False),
    Case("ending", "a tokenizer that lost its end-of-sequence token", ending, alone=False),
)


def _likes_rambling(task: Task, reply: str) -> str:
    return "down" if is_terse(task, reply) else "up"


def _past(prompts: int) -> float:
    """When raters who are done by now began."""
    return time.time() - 4 * prompts * PACE / RATERS


def _built(loop: Loop) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(loop.swarmctl("dataset", "build", "--json", quiet=True).stdout)
    return found


def _ended(loop: Loop) -> tuple[bool, str, str]:
    """How round 1 ended. Stopped: it is over, and the inventory's own weights serve as before."""
    found = loop.round(1)
    over = found["status"] in ("refused", "kept", "rolled back")
    return over and _untouched(loop), f"{found['stage']}: {found['status']}", "; ".join(found["reasons"])


def _deployed(loop: Loop, source: Path) -> tuple[bool, str, str]:
    done = loop.swarmctl("deploy", str(source), "-m", MODEL, "-q", "F16", check=False)
    last = (_history(loop) or [{"action": "none", "reason": "nothing was recorded"}])[-1]
    refused = done.returncode == 1 and last["action"] == "refuse"
    return refused and _untouched(loop), f"deploy: {last['action']}", last["reason"]


def _untouched(loop: Loop) -> bool:
    """Whether nothing was ever promoted, and no canary is left."""
    fleet = json.loads(loop.paths.fleet.read_text())
    releases = {one["release"] for host in fleet["hosts"] for one in host["served"] if one["model"] == MODEL}
    return releases == {""} and all(one["action"] != "promote" for one in _history(loop))


def _history(loop: Loop) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        loop.swarmctl("models", "history", MODEL, "--json", quiet=True).stdout)
    return found


def _weights(loop: Loop, name: str) -> Path:
    """What a training leaves, to be spoilt."""
    folder = loop.folder / name
    shutil.copytree(shipped_model("large"), folder)
    (folder / "model.gguf").unlink()
    return folder


def _change(folder: Path, key: str, change: Callable[[str], str | None]) -> None:
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, key: change(config[key])}))


def _lab(case: Case) -> Loop:
    folder = Path(tempfile.mkdtemp(prefix="gate-"))
    given = {key: str(value(folder)) if callable(value) else value for key, value in case.policy.items()}
    return Loop(folder, None, **given)


def _try(case: Case, loop: Loop) -> Outcome:
    print(f"\n━━ {case.name}: {case.what}", flush=True)
    began = time.monotonic()
    stopped, where, reason = case.run(loop, case.prompts)
    outcome = Outcome(case.name, stopped, where, reason, round(time.monotonic() - began, 1))
    print(_line(outcome), flush=True)
    return outcome


def _line(one: Outcome) -> str:
    return f"{'stopped' if one.stopped else 'NOT STOPPED':12}{one.case:11}{one.where}: {one.reason}"


def _run(cases: list[Case]) -> list[Outcome]:
    """Every case, those that leave nothing behind on one lab."""
    outcomes: list[Outcome] = []
    loop: Loop | None = None
    try:
        for case in cases:
            if loop is not None and case.alone:
                loop = _close(loop)
            loop = loop or _lab(case)
            outcomes.append(_try(case, loop))
            if case.alone:
                loop = _close(loop)
    finally:
        if loop:
            _close(loop)
    return outcomes


def _close(loop: Loop) -> None:
    """The lab goes, with its folder."""
    loop.close()
    shutil.rmtree(loop.folder, ignore_errors=True)


def main() -> int:
    """Try the cases; 1 where one of them was not stopped."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    outcomes = _run([case for case in CASES if args.case is None or case.name in args.case])
    print("\n" + "\n".join(_line(one) for one in outcomes))
    if args.json:
        args.json.write_text(json.dumps([asdict(one) for one in outcomes], indent=1) + "\n")
    return 0 if all(one.stopped for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
