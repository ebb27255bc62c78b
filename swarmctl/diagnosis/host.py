"""The rules for one host, in the order in which a person wants to hear them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmctl.diagnosis.accelerator import accelerator_findings
from swarmctl.diagnosis.exposure import exposure_findings
from swarmctl.diagnosis.finding import SEVERITIES, Finding, there
from swarmctl.diagnosis.serving import serving_findings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmctl.diagnosis.examined import Patient

GIB = 2**30
MINUTE = 60.0
#: Leases and logs bear a few seconds.
SKEW, SKEW_BAD = 5.0, 60.0
LITTLE, LITTLE_SHARE = 20 * GIB, 0.1
NOTHING = GIB // 2
SWAP_SHARE = 0.05


def host_findings(patient: Patient) -> tuple[Finding, ...]:
    """Everything that is wrong with a host, errors first."""
    found = [*accelerator_findings(patient), *exposure_findings(patient), *serving_findings(patient),
             *_disk(patient), *_clock(patient), *_swap(patient), *_idle(patient)]
    return tuple(sorted(found, key=lambda one: SEVERITIES.index(one.severity)))


def _disk(patient: Patient) -> Iterator[Finding]:
    host, disk = patient.host, patient.facts.disk
    if not disk.size or disk.free >= LITTLE or disk.free / disk.size >= LITTLE_SHARE:
        return
    full = disk.free < NOTHING
    yield Finding(
        host.name, "disk", "error" if full else "warning",
        "the disk of its data folder is full" if full else "the disk of its data folder is nearly full",
        f"{disk.path}: {disk.free / GIB:.1f} of {disk.size / GIB:.1f} GiB are free ({disk.device})",
        "a model that does not arrive whole is not used, and servers that cannot write their log may end",
        f"swarmctl models prune --host {host.name}    # what is left to see: "
        + there(host, f"du -xsh {patient.facts.data_dir}/*"))


def _clock(patient: Patient) -> Iterator[Finding]:
    host, off = patient.host, abs(patient.skew)
    if not patient.examined.clock or off - patient.skew_error <= SKEW:
        return
    way = "ahead of" if patient.skew > 0 else "behind"
    yield Finding(
        host.name, "clock", "error" if off > SKEW_BAD else "warning",
        f"its clock is {off:.0f} s {way} this machine's",
        f"`date` there, give or take {patient.skew_error:.1f} s of the way",
        "a lease on the host (who may change it, until when) ends early or late, and logs cannot be compared",
        there(host, "sudo timedatectl set-ntp true"))


def _swap(patient: Patient) -> Iterator[Finding]:
    host, facts = patient.host, patient.facts
    ours = {exam.name: exam.swapped for exam in patient.examined.servers if exam.swapped > facts.memory / 100}
    if facts.swap_used <= facts.memory * SWAP_SHARE and not ours:
        return
    whose = "".join(f"; {size / GIB:.1f} GiB of it are {name}'s" for name, size in ours.items())
    yield Finding(
        host.name, "swap", "warning", "it swaps",
        f"{facts.swap_used / GIB:.1f} GiB are in swap, {facts.memory / GIB:.0f} GiB is its memory{whose}",
        "a token that waits for a disk takes a hundred times as long",
        f"swarmctl up --host {host.name}    # after a smaller `context`, `parallel` or model there")


def _idle(patient: Patient) -> Iterator[Finding]:
    host, idle = patient.host, patient.idle_minutes
    if host.idle_minutes is None or idle is None or idle < host.idle_minutes:
        return
    yield Finding(
        host.name, "idle", "info", "it may go to sleep",
        f"no question for {idle:.0f} minutes, and `idle_minutes` is {host.idle_minutes:g}",
        "it draws power for nobody; `swarmctl idle` puts it to sleep, for which `when_idle` must say how"
        if host.when_idle == "nothing" else "it draws power for nobody, and `swarmctl idle` is not running",
        f"swarmctl sleep {host.name}" if host.when_idle == "nothing" else f"swarmctl idle {host.name}")
