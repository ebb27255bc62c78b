"""What holds processors back, from the words of nvidia-smi, amdgpu, rocm-smi, pmset and vcgencmd as they are
printed, and from a sysfs of our making that the real script reads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest
from test_doctor import EXAMINE, SERVER, claim, clocks, examination, healthy, patient, rules

from swarmctl.diagnosis import host_findings, parse_examination
from swarmctl.inventory import Host

HOT = 1 << 36  # SMU_THROTTLER_TEMP_HOTSPOT_BIT
CAP = 1 << 0  # SMU_THROTTLER_PPT0_BIT
SYSFS = """card
level {level}
sclk 0: 500Mhz
sclk 1: {clock}Mhz *
sclk 2: 2575Mhz
temp 58000 100000
temp {junction}000 110000
temp 64000 108000
power 214000000 280000000"""
METRICS_TEXT = """======================= ROCm System Management Interface =======================
================================= Temperature ==================================
GPU[0]\t\t: Temperature (Sensor edge) (C): 67.0
GPU[0]\t\t: Temperature (Sensor junction) (C): {junction}
GPU[0]\t\t: Performance Level: auto
GPU[0]\t\t: Max Graphics Package Power (W): 280.0
GPU[0]\t\t: throttle_status: 1
GPU[0]\t\t: indep_throttle_status: {bits}
GPU[0]\t\t: vcn_activity (%): [0, 'N/A', 'N/A', 'N/A']
============================= End of ROCm SMI Log =============================="""


def metrics_json(bits: int | str, junction: float = 105.0, level: str = "auto") -> str:
    card = {"Temperature (Sensor edge) (C)": "67.0", "Temperature (Sensor junction) (C)": f"{junction}",
            "Performance Level": level, "Average Graphics Package Power (W)": "214.0",
            "Max Graphics Package Power (W)": "280.0", "indep_throttle_status": f"{bits}"}
    return "WARNING: AMD GPU device(s) is/are in a low-power state.\n" + json.dumps({"card0": card})


def found(**sections):
    return [one for one in host_findings(patient(claims=[claim()], **sections)) if one.rule == "throttling"]


def sysfs(level: str = "auto", clock: int = 1200, junction: int = 70) -> str:
    return SYSFS.format(level=level, clock=clock, junction=junction)


@pytest.mark.parametrize("rocm", [metrics_json(HOT), METRICS_TEXT.format(junction=105.0, bits=HOT)])
def test_an_amd_card_that_its_firmware_slows_for_heat_is_found_in_json_and_in_text(rocm):
    (one,) = found(rocm_clocks=rocm)
    assert (one.severity, one.what) == ("warning", "GPU 0 is held back: thermal (hardware)")
    assert one.seen.startswith("105 °C")
    assert one.mend.startswith("ssh worlock rocm-smi -d 0 --showtemp --showpower --showclocks")


def test_a_heat_bit_of_a_cool_card_is_the_firmwares_own_mistake():
    """ROCm/rocm-systems#11781: an R9700 reports it at 37 °C, for ever."""
    assert found(rocm_clocks=metrics_json(HOT, junction=37.0)) == []
    assert found(rocm_clocks=metrics_json(HOT, junction=37.0), amd_clocks=sysfs(junction=37)) == []


def test_an_amd_card_at_its_power_cap_is_a_note():
    (one,) = found(rocm_clocks=metrics_json(CAP | HOT, junction=60.0), amd_clocks=sysfs())
    assert (one.severity, one.what) == ("info", "GPU 0 is held back: power cap")
    assert one.seen == "70 °C, 214 of 280 W, 1200 of 2575 MHz"


def test_without_rocm_smi_the_kernels_own_limit_decides():
    (one,) = found(amd_clocks=sysfs(junction=110))
    assert one.what == "GPU 0 is held back: thermal (hardware)"
    assert found(amd_clocks=sysfs(junction=109)) == []


@pytest.mark.parametrize("sections", [{"amd_clocks": sysfs(level="low")},
                                      {"rocm_clocks": metrics_json("N/A", 40.0, "low")}])
def test_a_card_that_somebody_left_at_its_lowest_clocks_is_found_with_the_way_back(sections):
    (one,) = found(**sections)
    assert one.what == "GPU 0 is held back: performance level low"
    assert one.mend == "ssh worlock sudo rocm-smi -d 0 --setperflevel auto"


@pytest.mark.parametrize("text", ["", "{", '{"card0": 7}', '{"cardX": {}}', "GPU[0]\t\t: ",
                                  "rocm-smi: error: x", metrics_json("N/A", 40.0)])
def test_what_rocm_smi_does_not_know_is_no_finding(text):
    assert found(rocm_clocks=text) == []


THERM = """Note: No thermal warning level has been recorded
Note: No performance warning level has been recorded
"""
PRESSURE = "com.apple.system.thermalpressurelevel"
LIMITED = THERM + """2026-11-23 05:08:37 -0700 CPU Power notify
\tCPU_Scheduler_Limit \t= 100
\tCPU_Available_CPUs \t= 12
\tCPU_Speed_Limit \t= {speed}"""


@pytest.mark.parametrize(("text", "seen", "severity"), [
    (LIMITED.format(speed=62), "`pmset -g therm`: CPU_Speed_Limit = 62", "warning"),
    ("2026-11-23 14:05:31 -0700 Thermal Warning Level = 5", "`pmset -g therm`: Thermal Warning Level = 5",
     "warning"),
    (f"{THERM}{PRESSURE} 2", "its thermal pressure is 2 (heavy)", "warning"),
    (f"{THERM}{PRESSURE} 1", "its thermal pressure is 1 (moderate)", "info")])
def test_a_mac_under_thermal_pressure_says_so(text, seen, severity):
    (one,) = found(throttled=text)
    assert (one.seen, one.severity) == (seen, severity)


@pytest.mark.parametrize("text", [THERM, LIMITED.format(speed=100), f"{PRESSURE} 0", ""])
def test_a_mac_at_full_speed_is_well(text):
    assert found(throttled=text) == []


@pytest.mark.parametrize(("bits", "what", "severity"), [
    ("0x50005", "this Raspberry Pi is held back: under-voltage, throttled", "warning"),
    ("0x80008", "this Raspberry Pi is held back: soft temperature limit", "warning"),
    ("0x50000", "this Raspberry Pi was held back since it started: under-voltage, throttled", "info")])
def test_a_raspberry_pi_tells_by_its_bits(bits, what, severity):
    (one,) = found(throttled=f"throttled={bits}")
    assert (one.what, one.severity) == (what, severity)
    assert ("power supply" in one.mend) == ("under-voltage" in what)
    assert found(throttled="throttled=0x0") == []


TABLE = """+-----------------------------------------------------------------------------------------+
| NVIDIA-SMI 550.54.14              Driver Version: 550.54.14      CUDA Version: 12.4     |
|-----------------------------------------+------------------------+----------------------+
|   0  NVIDIA GeForce RTX 3080        Off |   00000000:0B:00.0  On |                  N/A |
+-----------------------------------------------------------------------------------------+
| Processes:                                                                              |
|  GPU   GI   CI        PID   Type   Process name                              GPU Memory |
|        ID   ID                                                               Usage      |
|=========================================================================================|
|    0   N/A  N/A      {pid}      C   .../bin/llama-server                         5800MiB |
|    0   N/A  N/A      1822      G   /usr/lib/xorg/Xorg                            120MiB |
+-----------------------------------------------------------------------------------------+"""
NOBODY = TABLE.split("|    0   N/A")[0] + "|  No running processes found                     |\n+---+"


def test_processes_come_from_nvidia_smis_table_where_it_cannot_be_asked_for_them():
    said = {"nvidia_apps": "Field \"used_memory\" is not a valid field to query.\nstatus 1"}
    text = examination(**said, nvidia_table=TABLE.format(pid=4250))
    assert parse_examination(text).gpu_pids == {4250, 1822}
    old = TABLE.format(pid=4250).replace("   N/A  N/A", "")  # before driver 450 there are no instances
    assert parse_examination(examination(**said, nvidia_table=old)).gpu_pids == {4250, 1822}
    assert parse_examination(examination(**said, nvidia_table=NOBODY)).gpu_pids == set()
    assert parse_examination(examination(**said, nvidia_table="Failed to initialize NVML")).gpu_pids is None


def test_a_fallback_is_found_by_the_table_too():
    ill = patient(claims=[claim()], servers=SERVER, nvidia_clocks=clocks(used=310), nvidia_apps="status 1",
                  nvidia_table=NOBODY)
    assert rules(ill) == [("cpu_fallback", "error")]


@pytest.mark.skipif(os.geteuid() != 0, reason="a sysfs of our own needs root")
def test_the_script_reads_a_cards_files(tmp_path):
    """amdgpu's files as the kernel documents them, laid over /sys/class in a mount namespace."""
    card = tmp_path / "drm" / "card1" / "device"
    monitor = card / "hwmon" / "hwmon3"
    monitor.mkdir(parents=True)
    (tmp_path / "drm" / "card1-DP-1").mkdir()
    for name, text in {"vendor": "0x1002", "power_dpm_force_performance_level": "low",
                       "pp_dpm_sclk": "0: 500Mhz *\n1: 2575Mhz"}.items():
        (card / name).write_text(text + "\n")
    for name, text in {"temp1_input": "41000", "temp1_crit": "100000", "temp2_input": "47000",
                       "temp2_crit": "110000", "power1_average": "21000000",
                       "power1_cap": "280000000"}.items():
        (monitor / name).write_text(text + "\n")
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare here")
    script = f'mount --bind "$1" /sys/class && exec sh -s -- "$2" < {EXAMINE}'
    done = subprocess.run(("unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), str(tmp_path)),
                          capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    (gpu,) = parse_examination(done.stdout).gpu_clocks
    assert (gpu.maker, gpu.level, gpu.temperature, gpu.critical) == ("amd", "low", 41.0, 100.0)
    assert (gpu.power, gpu.power_limit, gpu.clock, gpu.clock_most) == (21.0, 280.0, 500.0, 2575.0)


def test_a_mac_or_a_pi_is_asked_by_its_own_tools(tmp_path):
    """Stand-ins that print what the real ones print, found in PATH as they would be."""
    for name, text in (("pmset", THERM), ("notifyutil", f"{PRESSURE} 2\n"),
                       ("vcgencmd", "throttled=0x50005\n")):
        (tmp_path / name).write_text(f"#!/bin/sh\ncat <<'EOF'\n{text}EOF\n")
        (tmp_path / name).chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(("sh", "-s", "--", str(tmp_path)), input=EXAMINE.read_bytes(), capture_output=True,
                          timeout=60, check=True, env=environ)
    board = parse_examination(done.stdout.decode()).board
    assert (board.speed_limit, board.warning, board.pressure, board.throttled) == (None, None, 2, 0x50005)


def test_nothing_is_said_of_a_machine_that_says_nothing():
    assert host_findings(patient(healthy(), Host("worlock", "worlock"), claims=[claim()])) == ()
