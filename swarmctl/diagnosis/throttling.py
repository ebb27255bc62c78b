"""Rules about processors that run slower than they can: heat, power, a level that somebody set. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmctl.diagnosis.clocks import POWER_CAP
from swarmctl.diagnosis.finding import Finding, there

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmctl.diagnosis.clocks import GpuClock
    from swarmctl.diagnosis.examined import Patient

AIR = "    # then clean its fans, give it air, or check its power cables"
SLOW = "heat or the power supply slows every answer"
#: Mach's thermal pressure levels (OSThermalNotification.h).
PRESSURE = ("nominal", "moderate", "heavy", "trapping", "sleeping")
#: `vcgencmd get_throttled` (Raspberry Pi documentation): this moment's bits; 16 above them, the past's.
PI = {0x1: "under-voltage", 0x2: "its frequency is capped", 0x4: "throttled", 0x8: "soft temperature limit"}


def throttling_findings(patient: Patient) -> Iterator[Finding]:
    """GPUs of any maker, Macs, Raspberry Pis."""
    for clock in patient.examined.gpu_clocks:
        if clock.reasons:
            yield _gpu(patient, clock)
    yield from _mac(patient)
    yield from _pi(patient)


def _gpu(patient: Patient, gpu: GpuClock) -> Finding:
    only_cap = gpu.reasons == (POWER_CAP,)
    level = next((reason for reason in gpu.reasons if reason.startswith("performance level")), "")
    state = ", ".join(text for value, text in (
        (gpu.temperature, f"{gpu.temperature or 0:.0f} °C"),
        (gpu.power, f"{gpu.power or 0:.0f} of {gpu.power_limit or 0:.0f} W"),
        (gpu.clock, f"{gpu.clock or 0:.0f} of {gpu.clock_most or 0:.0f} MHz")) if value is not None)
    why = "its power limit is reached, which is normal under full load" if only_cap else SLOW
    if level:
        why = "somebody set that level, and with it the card stays at its lowest clocks under any load"
    return Finding(
        patient.host.name, "throttling", "info" if only_cap else "warning",
        f"GPU {gpu.index} is held back: {', '.join(gpu.reasons)}",
        state or ("nvidia-smi says so" if gpu.maker == "nvidia" else "rocm-smi says so"), why,
        _mend(patient, gpu, low=bool(level)) + ("" if only_cap or level else AIR))


def _mend(patient: Patient, gpu: GpuClock, *, low: bool) -> str:
    if gpu.maker == "nvidia":
        return there(patient.host, f"nvidia-smi -q -i {gpu.index} -d PERFORMANCE,TEMPERATURE,POWER")
    if low:
        return there(patient.host, f"sudo rocm-smi -d {gpu.index} --setperflevel auto")
    return there(patient.host, f"rocm-smi -d {gpu.index} --showtemp --showpower --showclocks")


def _mac(patient: Patient) -> Iterator[Finding]:
    said = patient.examined.board
    seen = []
    if said.speed_limit is not None and said.speed_limit < 100:
        seen.append(f"`pmset -g therm`: CPU_Speed_Limit = {said.speed_limit}")
    if said.warning:
        seen.append(f"`pmset -g therm`: Thermal Warning Level = {said.warning}")
    if said.pressure:
        name = PRESSURE[min(said.pressure, len(PRESSURE) - 1)]
        seen.append(f"its thermal pressure is {said.pressure} ({name})")
    if seen:
        mild = said.pressure == 1 and len(seen) == 1
        yield Finding(
            patient.host.name, "throttling", "info" if mild else "warning",
            "this Mac is held back by its heat", "; ".join(seen), SLOW,
            there(patient.host, "pmset -g therm") + "    # then give it air; one without fans needs pauses")


def _pi(patient: Patient) -> Iterator[Finding]:
    bits = patient.examined.board.throttled or 0
    now = [name for bit, name in PI.items() if bits & bit]
    past = [name for bit, name in PI.items() if bits >> 16 & bit]
    if not now and not past:
        return
    voltage = (now or past)[0] == PI[1]
    yield Finding(
        patient.host.name, "throttling", "warning" if now else "info",
        f"this Raspberry Pi is held back: {', '.join(now)}" if now else
        f"this Raspberry Pi was held back since it started: {', '.join(past)}",
        f"`vcgencmd get_throttled`: 0x{bits:x}", SLOW,
        there(patient.host, "vcgencmd measure_volts" if voltage else "vcgencmd measure_temp")
        + ("    # then a power supply made for this board, and a short cable" if voltage else
           "    # then a heat sink and a fan"))
