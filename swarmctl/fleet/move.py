"""Moves one host's runtime to another version and judges it there: keep it, or go back and say why.

Laws, each with a test: the old install stays beside the new one; the version in force changes only when the
new one was found as good, so that a move cut anywhere leaves a host that `up` or a second `upgrade` puts
right; what was worse is never left serving while the host can be reached.
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from swarmctl.errors import CommandFailed, ServerError, SwarmError
from swarmctl.facts import VersionChange
from swarmctl.facts.ollama import OWN
from swarmctl.fleet.converge import STOP_LIMIT, Work, apply
from swarmctl.fleet.host_shell import on_host
from swarmctl.fleet.install import BUILD_LIMIT
from swarmctl.fleet.measure import load_limit
from swarmctl.fleet.progress import Teller
from swarmctl.fleet.sample import UNKNOWN_SIZE, measure_again, subjects, take_samples
from swarmctl.fleet.standing import upgrading
from swarmctl.fleet.survey import survey
from swarmctl.fleet.versions import write_change
from swarmctl.runtimes.ollama_plan import speed_name
from swarmctl.runtimes.plans import plan_host
from swarmctl.runtimes.regression import TOLERANCE, Sample, drift, garbled, slower, speed_words
from swarmctl.runtimes.versions import TITLES, arrival, changes, in_force
from swarmctl.steps import InstallRuntime, MeasureSpeed, StartServer, StopServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from swarmctl.facts import Facts, Speed
    from swarmctl.fleet.converge import Supply
    from swarmctl.fleet.locks import HostLock
    from swarmctl.fleet.progress import Event
    from swarmctl.fleet.sample import Subject
    from swarmctl.fleet.shell import ShellRemote
    from swarmctl.inventory import Host
    from swarmctl.runtimes.base import Want
    from swarmctl.steps import Step

#: seconds of the host's lock for sampling all models of a runtime
SAMPLE_LIMIT = 3600.0
#: measurements of a speed before it is believed to be low
ROUNDS = 3
PHASES = ("install", "wait until idle", "measure the old one", "switch", "measure the new one")


@dataclass(frozen=True, slots=True)
class Moved:
    """How a move ended. `state` is kept, returned (it was worse), undecided (the machine itself became
    slower, the old one serves again) or rolled-back. `version` is in force; `why` says what was worse,
    `notes` what was compared; `out` is how many seconds the host took no questions."""

    state: str
    version: str
    other: str
    why: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    out: float = 0.0


@dataclass(frozen=True, slots=True)
class Mover:
    """One host and one runtime. `wait_idle` waits for the answers under way, and raises where they do not
    end; `event` is told how it goes."""

    runtime: str
    host: Host
    remote: ShellRemote
    data_dir: str
    want: Want
    supply: Supply
    event: Callable[[Event], None]
    wait_idle: Callable[[Teller], None]
    clock: Callable[[], float]
    lock: HostLock
    tolerance: float = TOLERANCE
    _began: float = field(default_factory=time.monotonic)

    def upgrade(self, to: str) -> Moved:
        """Move the host to a version, or back. Raises SwarmError where nothing was changed, and where the
        host was lost in the middle."""
        with self._locked() as seen:
            old = in_force(self.runtime, seen)
            if old is None:
                raise self._error(f"no {self._title} is there", f"`swarmctl up --host {self.host.name}`")
            seen = self._settled(seen, old)
            self._write("begun", old, to)
            try:
                self._install(seen, to)
                with upgrading(self.supply.paths, self.host.name, self.clock()):
                    aside = time.monotonic()
                    self.wait_idle(self._teller(2))
                    moved = self._judged(seen, old, to)
            except KeyboardInterrupt:
                self._undo(old, to, "interrupted")
                raise
            except SwarmError as exc:
                if (lost := self._undo(old, to, exc.message)) is None:
                    raise
                raise self._error(
                    f"{exc.message}; {self._title} {old} stays the one in force, and was not put back",
                    f"once it answers, `swarmctl up` puts it back and `swarmctl upgrade` tries again "
                    f"({lost.message})") from exc
            return replace(moved, out=round(time.monotonic() - aside, 1),
                           seconds=round(time.monotonic() - self._began, 1))

    def roll_back(self, reason: str = "") -> Moved:
        """Return to the version before the one in force. Downloads nothing. Raises SwarmError where there is
        none."""
        with self._locked() as seen:
            came = arrival(self.runtime, seen)
            if came is None:
                raise self._error(f"no {self._title} came before {in_force(self.runtime, seen) or 'any'}",
                                  f"`swarmctl upgrade {self.host.name} --to VERSION` goes to one")
            if any(self._installs(step) for step in plan_host(self._to(came.other), seen)):
                raise self._error(f"{self._title} {came.other} is no longer under {seen.data_dir}",
                                  f"`swarmctl upgrade {self.host.name} --to {came.other}` installs it")
            with upgrading(self.supply.paths, self.host.name, self.clock()):
                aside = time.monotonic()
                self._switch(seen, came.other)
                self._write("rolled-back", came.other, came.version, why=(reason,) if reason else ())
                self._note_speeds(seen, came.before)
            return Moved("rolled-back", came.other, came.version, out=round(time.monotonic() - aside, 1),
                         seconds=round(time.monotonic() - self._began, 1))

    # --- upgrading

    def _settled(self, seen: Facts, old: str) -> Facts:
        """The host as it is with the old version: what a move that was cut off left behind is undone. Raises
        SwarmError where it is not as the inventory says."""
        plan = plan_host(self._to(old), seen)
        cut = changes(self.runtime, seen)[-1:]
        resumed = bool(cut) and cut[0].event == "begun"
        starts = self._starts(plan, seen)
        down = {server.name for server in seen.servers if server.pid is None}
        mine = starts if resumed else [step for step in starts if step.spec.name in down]
        left = [step for step in plan if step not in mine
                and not isinstance(step, MeasureSpeed | StopServer)]
        if left:
            raise self._error(f"it is not yet as the inventory says: {left[0].title}",
                              f"`swarmctl up --host {self.host.name}` first")
        if not mine:
            return seen
        try:
            self._start(mine, seen, 1)
        except ServerError as exc:
            self._teller(1)(f"{self._title} {old} does not serve: {exc.message}")
        return survey(self.remote, self.host)

    def _install(self, seen: Facts, to: str) -> None:
        for step in plan_host(self._to(to), seen):
            if self._installs(step):
                self._renew(BUILD_LIMIT)
                apply(self._work(seen, self._teller(1, step.title)), step)

    def _undo(self, old: str, to: str, why: str) -> SwarmError | None:
        """Something else went wrong: the old version serves again, or the error for which it does not."""
        try:
            self._renew(SAMPLE_LIMIT)
            self._switch(survey(self.remote, self.host), old)
            self._write("undecided", old, to, why=(why,))
        except SwarmError as exc:
            return exc
        return None

    def _judged(self, seen: Facts, old: str, to: str) -> Moved:
        """Measure, switch, measure, and keep or return."""
        found = subjects(self.runtime, self._to(old), seen)
        if not found:
            raise self._error(f"its {self._title} serves nothing", f"`swarmctl up --host {self.host.name}`")
        before = self._before(found, seen)
        try:
            self._switch(seen, to)
            after = self._samples(found, 5)
        except (ServerError, CommandFailed) as exc:
            return self._returned(to, old, found, before, {}, (f"{self._title} {to} does not serve: "
                                                               f"{exc.message}",))
        worse = tuple(line for one in found if (was := before.get(one.key)) and (was.answers or was.vectors)
                      for line in garbled(one.model, was, after[one.key]))
        if worse:
            return self._returned(to, old, found, before, after, worse)
        after = self._repeated(found, before, after)
        if slow := self._slower(found, before, after):
            return self._doubted(to, old, found, after, slow)
        return self._kept(to, old, found, before, after)

    def _before(self, found: Sequence[Subject], seen: Facts) -> dict[str, Sample]:
        """The baseline: what the old version does now, else the speeds that were recorded of it."""
        try:
            return self._again(found, self._samples(found, 3))
        except ServerError as exc:
            self._teller(3)(f"the old one cannot be measured: {exc.message}")
        speeds = {server.name: server.speed for server in seen.servers}
        kept = {one.key: seen.ollama_speeds.get(speed_name(one.tag)) if one.tag else speeds.get(one.key)
                for one in found}
        return {key: Sample(speed) for key, speed in kept.items() if speed}

    def _repeated(self, found: Sequence[Subject], before: Mapping[str, Sample],
                  after: dict[str, Sample]) -> dict[str, Sample]:
        """Measure the new one anew while it seems slower: any pause of the machine looks like that."""
        for _ in range(ROUNDS - 1):
            if not self._slower(found, before, after):
                break
            after = self._again(found, after)
        return after

    def _doubted(self, to: str, old: str, found: Sequence[Subject], after: dict[str, Sample],
                 slow: tuple[str, ...]) -> Moved:
        """It seems slower. Back on the old version: is that one still as fast? Else it was the machine."""
        self._switch(survey(self.remote, self.host), old)
        try:
            again = self._samples(found, 5)
            for _ in range(ROUNDS - 1):
                if self._slower(found, again, after):
                    break
                again = self._again(found, again)
        except ServerError as exc:
            raise self._error(f"{self._title} {to} was worse ({'; '.join(slow)}), and {old}, which is back, "
                              f"does not serve: {exc.message}", f"`swarmctl logs {self.host.name}`") from exc
        real = self._slower(found, again, after)
        if real:
            return self._returned(to, old, found, again, after, real, back=True)
        self._finish("undecided", old, to, again, after)
        notes = tuple(f"{line}; but then {old} was as slow itself" for line in slow)
        return Moved("undecided", old, to, notes=notes)

    def _returned(self, to: str, old: str, found: Sequence[Subject], before: dict[str, Sample],
                  after: dict[str, Sample], why: tuple[str, ...], *, back: bool = False) -> Moved:
        """It was worse: the old version serves again, and the new one is held."""
        if not back:
            self._switch(survey(self.remote, self.host), old)
        self._finish("returned", old, to, before, after, why)
        return Moved("returned", old, to, why, self._compared(found, before, after))

    def _kept(self, to: str, old: str, found: Sequence[Subject], before: dict[str, Sample],
              after: dict[str, Sample]) -> Moved:
        self._finish("kept", to, old, before, after)
        return Moved("kept", to, old, notes=self._compared(found, before, after))

    def _finish(self, event: str, version: str, other: str, before: Mapping[str, Sample],
                after: Mapping[str, Sample], why: tuple[str, ...] = ()) -> None:
        """Write down what is in force from now on, and the speed of what serves."""
        speeds = [{key: one.speed for key, one in samples.items()} for samples in (before, after)]
        seen = survey(self.remote, self.host)
        self._note_speeds(seen, speeds[1] if event == "kept" else speeds[0])
        self._write(event, version, other, why=why, before=speeds[0], after=speeds[1])

    # --- parts of both

    def _installs(self, step: Step) -> bool:
        return isinstance(step, InstallRuntime) and step.runtime == self.runtime

    def _switch(self, seen: Facts, to: str) -> None:
        """Have the servers run on that version, which is installed."""
        plan = plan_host(self._to(to), seen)
        self._start(self._starts(plan, seen), seen, 4)

    def _starts(self, plan: Sequence[Step], seen: Facts) -> list[StartServer]:
        """The starts of this runtime's servers among those that are there already."""
        there = {server.name for server in seen.servers}
        return [step for step in plan if isinstance(step, StartServer) and step.spec.name in there
                and (step.spec.name == OWN) == (self.runtime == "ollama")]

    def _start(self, steps: Sequence[StartServer], seen: Facts, phase: int) -> None:
        for step in steps:
            model = self.want.models.get(step.spec.model)
            self._renew(load_limit(model.size if model else UNKNOWN_SIZE) + STOP_LIMIT)
            apply(self._work(seen, self._teller(phase, step.title)), step)

    def _note_speeds(self, seen: Facts, speeds: Mapping[str, Speed]) -> None:
        """Keep speeds where `up` keeps what it measures."""
        names = {server.name for server in seen.servers}
        for key, speed in speeds.items():
            payload = json.dumps(asdict(speed)).encode() + b"\n"
            if self.runtime == "ollama":
                on_host(self.remote, "ollama_speed", seen.data_dir, speed_name(key), payload=payload)
            elif key in names:
                on_host(self.remote, "speed", seen.data_dir, key, payload=payload)

    def _samples(self, found: Sequence[Subject], phase: int) -> dict[str, Sample]:
        self._renew(SAMPLE_LIMIT)
        return take_samples(tuple(found), self.want, self.supply, self._teller(phase))

    def _again(self, found: Sequence[Subject], samples: dict[str, Sample]) -> dict[str, Sample]:
        self._renew(SAMPLE_LIMIT)
        return measure_again(tuple(found), samples, self.want, self.supply)

    def _slower(self, found: Sequence[Subject], before: Mapping[str, Sample],
                after: Mapping[str, Sample]) -> tuple[str, ...]:
        return tuple(line for one in found if one.key in before
                     for line in slower(one.model, before[one.key].speed, after[one.key].speed,
                                        self.tolerance))

    def _compared(self, found: Sequence[Subject], before: Mapping[str, Sample],
                  after: Mapping[str, Sample]) -> tuple[str, ...]:
        """Each model's speeds and outputs side by side."""
        both = [(one.model, before[one.key], after[one.key]) for one in found
                if one.key in before and one.key in after]
        return tuple(line for name, was, now in both for line in (
            speed_words(name, was.speed, now.speed),
            *([drift(name, was, now)] if was.answers or was.vectors else [])))

    def _to(self, version: str) -> Want:
        return replace(self.want, versions={self.runtime: version})

    def _work(self, seen: Facts, tell: Teller) -> Work:
        return Work(self.remote, self.want, seen, self.supply, tell)

    def _teller(self, phase: int, title: str = "") -> Teller:
        return Teller(self.host.name, phase, len(PHASES), title or PHASES[phase - 1], self.event)

    @contextmanager
    def _locked(self) -> Iterator[Facts]:
        """Hold the host's lock; the host as it is then."""
        self._renew(60)
        try:
            yield survey(self.remote, self.host)
        finally:
            with suppress(SwarmError):  # a host that is gone lets it expire
                self.lock.release()

    def _renew(self, seconds: float) -> None:
        self.lock.renew(seconds)

    def _write(self, event: str, version: str, other: str, *, why: tuple[str, ...] = (),
               before: Mapping[str, Speed] | None = None, after: Mapping[str, Speed] | None = None) -> None:
        write_change(self.remote, self.data_dir, VersionChange(
            self.runtime, event, version, other, why=why, before=before or {}, after=after or {}))

    @property
    def _title(self) -> str:
        return TITLES[self.runtime]

    def _error(self, message: str, hint: str) -> SwarmError:
        return SwarmError(message, host=self.host.name, hint=hint)
