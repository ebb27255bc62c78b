"""`improve`: decide whether another round is worth it, and run it: data set, training, a release that is
served to nobody, its evaluation, a human's signature, a canary, and the end.

The steps themselves are other verbs', handed in as `Steps`. Each stage is recorded when it has ended, so a
round that was cut goes on where it was, and none is done twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from swarmctl.errors import SwarmError, UsageError
from swarmctl.fleet.locks import local_lock
from swarmctl.learning.approval import wilson
from swarmctl.learning.labels import new_since, standing
from swarmctl.learning.policy import HOUR, WEEK, Due, Seen, due
from swarmctl.learning.raters import floods
from swarmctl.ledger import rounds
from swarmctl.ledger.labels import read_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from swarmctl.inventory import ImproveWish, Inventory
    from swarmctl.learning.approval import Approval
    from swarmctl.learning.gates import Judgement
    from swarmctl.learning.labels import Labels
    from swarmctl.ledger.rounds import Round
    from swarmctl.paths import Paths

LOCK_WAIT = 5.0
#: ratings that count as lately, and the least before them, for a drop to be seen
LATELY, BEFORE = 50, 50
#: the last stage that ended → the one that is under way
FOLLOWING = dict(zip(rounds.STAGES, (*rounds.STAGES[1:], "end"), strict=True))


class Refused(SwarmError):
    """A step refused what it was given (a bad data set, a diverged run, a broken release): the round is
    over."""


class Steps(Protocol):
    """What a round is made of. Each may be called again after a crash and must then not do its work twice.

    Each raises Refused where the round must end, and any other SwarmError where it may be tried again.
    """

    def build(self, model: str, policy: ImproveWish) -> Mapping[str, Any]:
        """Build the data set: `dataset`, `rows`, `heldout`, `until`."""
        ...

    def train(self, model: str, policy: ImproveWish, dataset: str, started: Callable[[str], None],
              run: str | None) -> Mapping[str, Any]:
        """Train, or follow the run that was started: `run`, `hours`, `kwh`."""
        ...

    def deploy(self, model: str, policy: ImproveWish, run: str) -> Mapping[str, Any]:
        """Quantise, verify and serve with a share of 0: `release`, `sha256`."""
        ...

    def evaluate(self, model: str, policy: ImproveWish, release: str, dataset: str) -> Mapping[str, Any]:
        """Ask the held-out prompts: `decision`, `reasons`, `report` (a folder), `old`, `new` (shares)."""
        ...

    def share(self, model: str, release: str, share: float, details: Mapping[str, Any]) -> None:
        """Let the canary answer a share of the conversations."""
        ...

    def votes(self, model: str, release: str) -> Judgement:
        """What the canary's votes say."""
        ...

    def promote(self, model: str, release: str, details: Mapping[str, Any]) -> None:
        """Let it serve the model."""
        ...

    def retire(self, model: str, release: str, details: Mapping[str, Any]) -> None:
        """Take the canary away."""
        ...


@dataclass(frozen=True, slots=True)
class Standing:
    """How a model stands after `improve`: the round under way or just ended, or why none began."""

    model: str
    due: Due | None = None
    round: Round | None = None


def policies(inventory: Inventory, models: Sequence[str]) -> dict[str, ImproveWish]:
    """The models that have a policy, or those named. Raises UsageError."""
    found = {name: wish.improve for name, wish in inventory.models.items() if wish.improve is not None}
    unknown = [name for name in models if name not in found]
    if unknown or not found:
        raise UsageError(f"{inventory.source} says nothing of improving {', '.join(unknown) or 'any model'}",
                         hint="give the model an `improve:` entry: docs/improve.md")
    return {name: found[name] for name in models or found}


def improve(paths: Paths, model: str, policy: ImproveWish, steps: Steps, *, drift: str | None,
            clock: Callable[[], float], say: Callable[[str], None], dry_run: bool = False) -> Standing:
    """Go on with the model's round, or begin one where the policy says so.

    Raises LockBusy where another `improve` is at it, and what a step raises that may be tried again.
    """
    if dry_run:
        current = _open(paths, model)
        return Standing(model, None if current else _due(paths, model, policy, drift, clock()), current)
    with local_lock(paths.state / "improve.lock", "swarmctl improve", wait=LOCK_WAIT, on_wait=say):
        current = _open(paths, model)
        found = None
        if current is None:
            found = _due(paths, model, policy, drift, clock())
            if not found.go:
                return Standing(model, found)
            current = _begin(paths, model, found, clock())
        return Standing(model, found, _Runner(paths, policy, steps, clock, say).run(current))


def sign(paths: Paths, round_id: str, *, approve: bool, by: str, comment: str, now: float) -> Round:
    """A human's word on a round that waits for it. Raises UsageError."""
    waiting = {one.id: one for one in rounds.read(paths) if one.unsigned}
    if round_id not in waiting:
        raise UsageError(f"{round_id}: no such round waits for a signature",
                         hint=f"waiting: {', '.join(waiting) or 'none'}")
    one = waiting[round_id]
    rounds.append(paths, now, round=one.id, model=one.model, stage="sign", by=by,
                  status="open", reasons=(comment,) if comment else (),
                  details={"signed": "approved" if approve else "rejected"})
    return next(each for each in rounds.read(paths) if each.id == one.id)


def _open(paths: Paths, model: str) -> Round | None:
    return next((one for one in reversed(rounds.read(paths)) if one.model == model and not one.over), None)


def _begin(paths: Paths, model: str, found: Due, now: float) -> Round:
    number = sum(one.model == model for one in rounds.read(paths)) + 1
    event = rounds.append(paths, now, round=f"{model.replace(':', '-')}-{number}", model=model, stage="begin",
                          status="open", reasons=found.reasons)
    return rounds.rounds([event])[0]


def _due(paths: Paths, model: str, policy: ImproveWish, drift: str | None, now: float) -> Due:
    past = [one for one in rounds.read(paths) if one.model == model]
    everything = read_labels(paths)
    labels = everything.without({vote for flood in floods(everything) for vote in flood.votes})
    of_model = {answer for answer, found in labels.answers.items() if found.model == model}
    until = next((str(one.details["until"]) for one in reversed(past) if one.details.get("until")), "")
    mine = labels.without({one.id for one in labels.said if not _about(one, of_model)})
    before, lately = _approval(mine)
    recent = [one for one in past if now - _seconds(one.began) < WEEK]
    return due(Seen(
        labels=new_since(mine, until), before=before, lately=lately, drift=drift,
        hours_since=(now - _seconds(past[-1].began)) / HOUR if past else None,
        hours=sum(float(one.details.get("hours", 0.0)) for one in recent),
        kwh=sum(float(one.details.get("kwh", 0.0)) for one in recent)), policy)


def _about(said: Any, of_model: set[str]) -> bool:  # noqa: ANN401  a vote or a choice
    return bool({getattr(said, name, None) for name in ("exchange", "a", "b")} & of_model)


def _approval(labels: Labels) -> tuple[Approval | None, Approval | None]:
    """Approval of what is served now (the digest rated last), earlier and lately; None where too few
    voted."""
    votes = sorted(standing(labels.votes).values(), key=lambda vote: vote.id)
    rated = [(labels.answers[vote.exchange].digest, (1 + vote.score) / 2) for vote in votes
             if vote.score is not None and vote.exchange in labels.answers]
    mine = [good for digest, good in rated if digest == rated[-1][0]]
    if len(mine) < LATELY + BEFORE:
        return None, None
    return wilson(sum(mine[:-LATELY]), len(mine) - LATELY), wilson(sum(mine[-LATELY:]), LATELY)


def _seconds(at: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(at).timestamp()


class _Runner:
    """Runs one round, stage after stage."""

    def __init__(self, paths: Paths, policy: ImproveWish, steps: Steps, clock: Callable[[], float],
                 say: Callable[[str], None]) -> None:
        self.paths, self.policy, self.steps, self.clock, self.say = paths, policy, steps, clock, say

    def run(self, one: Round) -> Round:
        """Until the round is over or has to wait."""
        following = {"begin": self._build, "build": self._train, "train": self._deploy,
                     "deploy": self._evaluate, "evaluate": self._signed, "sign": self._canary,
                     "canary": self._watch}
        while not one.over:
            try:
                one = following[one.stage](one)
            except Refused as exc:
                one = self._refuse(one, exc)
            if one.status == "waiting":
                break
        return one

    def _note(self, one: Round, stage: str, status: str, details: Mapping[str, Any] | None = None,
              reasons: Sequence[str] = ()) -> Round:
        event = rounds.append(self.paths, self.clock(), round=one.id, model=one.model, stage=stage,
                              status=status, details=dict(details or {}), reasons=tuple(reasons))
        return rounds.rounds((*one.events, event))[0]

    def _build(self, one: Round) -> Round:
        self.say(f"{one.id}: building the data set")
        return self._note(one, "build", "open", self.steps.build(one.model, self.policy))

    def _train(self, one: Round) -> Round:
        held = [one]

        def started(run: str) -> None:
            held[0] = self._note(held[0], "build", "open", {"run": run})

        self.say(f"{one.id}: training")
        details = self.steps.train(one.model, self.policy, str(one.details["dataset"]), started,
                                   one.details.get("run"))
        return self._note(held[0], "train", "open", details)

    def _deploy(self, one: Round) -> Round:
        self.say(f"{one.id}: quantising, verifying and serving it to nobody yet")
        return self._note(one, "deploy", "open",
                          self.steps.deploy(one.model, self.policy, str(one.details["run"])))

    def _evaluate(self, one: Round) -> Round:
        self.say(f"{one.id}: evaluating {one.details['release']} on held-out prompts")
        found = self.steps.evaluate(one.model, self.policy, str(one.details["release"]),
                                    str(one.details["dataset"]))
        reasons = tuple(str(reason) for reason in found.get("reasons", ()))
        if found["decision"] != "promote":
            self.steps.retire(one.model, str(one.details["release"]), found)
            status = "refused" if found["decision"] == "rollback" else "kept"
            return self._note(one, "evaluate", status, found, reasons)
        return self._note(one, "evaluate", "waiting" if self.policy.sign else "open", found, reasons)

    def _signed(self, one: Round) -> Round:
        if self.policy.sign:
            self.say(f"{one.id} waits for a signature: swarmctl review show {one.id}, then "
                     f"swarmctl review approve {one.id} (or reject)")
            return one
        return self._note(one, "sign", "open", {"signed": "by policy"})

    def _canary(self, one: Round) -> Round:
        release = str(one.details["release"])
        if one.details.get("signed") == "rejected":
            self.steps.retire(one.model, release, {"reasons": list(one.reasons)})
            return self._note(one, "end", "rejected", reasons=one.reasons)
        if self.policy.share in (0.0, 1.0):
            self.steps.promote(one.model, release, one.details)
            return self._note(one, "end", "promoted", reasons=one.reasons)
        self.steps.share(one.model, release, self.policy.share, one.details)
        self.say(f"{one.id}: {release} answers {self.policy.share:.0%} of the conversations now")
        return self._note(one, "canary", "waiting")

    def _watch(self, one: Round) -> Round:
        release = str(one.details["release"])
        judgement = self.steps.votes(one.model, release)
        details = {**one.details, "reasons": list(judgement.reasons)}
        if judgement.decision == "promote":
            self.steps.promote(one.model, release, details)
            return self._note(one, "end", "promoted", reasons=judgement.reasons)
        if judgement.decision == "rollback":
            self.steps.retire(one.model, release, details)
            return self._note(one, "end", "rolled back", reasons=judgement.reasons)
        self.say(f"{one.id}: {'; '.join(judgement.reasons)}; the canary goes on")
        return one

    def _refuse(self, one: Round, exc: Refused) -> Round:
        if "release" in one.details:
            self.steps.retire(one.model, str(one.details["release"]), {"reasons": [exc.message]})
        return self._note(one, FOLLOWING[one.stage], "refused", reasons=(exc.message,))
