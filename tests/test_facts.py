"""Facts as data: each recording in tests/facts has beside it the facts that must come out.

docs/facts.md says which recordings are of real machines.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmctl.errors import SwarmError
from swarmctl.facts import Facts, Speed, parse_facts, platform_key

FOLDER = Path(__file__).parent / "facts"
RECORDINGS = sorted(path.stem for path in FOLDER.glob("*.txt"))
GIB = 2**30


def recording(name: str) -> str:
    return (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def facts(name: str) -> Facts:
    return parse_facts(recording(name))


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_gives_its_facts(name):
    found = json.loads(json.dumps(asdict(facts(name))))
    expected = FOLDER / f"{name}.json"
    if os.environ.get("SWARMCTL_RECORD"):
        expected.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    assert found == json.loads(expected.read_text(encoding="utf-8"))


def test_two_nvidia_gpus_have_memory_driver_and_architecture():
    first, second = facts("nvidia-two-gpus").gpus
    assert (first.name, first.memory, first.driver, first.arch) == (
        "NVIDIA GeForce RTX 3080", 10 * GIB, "550.144.03", "8.6")
    assert (second.memory, second.memory_free) == (12 * GIB, 12031 * 2**20)
    assert facts("nvidia-two-gpus").problems == ()


def test_a_driver_mismatch_is_named_on_every_card_the_bus_shows():
    found = facts("nvidia-driver-mismatch")
    said = "Failed to initialize NVML: Driver/library version mismatch; NVML library version: 550.144"
    assert [gpu.problem for gpu in found.gpus] == [said, said]
    assert found.problems == (f"nvidia-smi: {said}",)


def test_one_lost_card_leaves_the_other_usable():
    good, lost = facts("nvidia-one-lost").gpus
    assert (good.problem, good.memory) == (None, 10 * GIB)
    assert lost.name == "NVIDIA 2504"
    assert "Unknown Error" in (lost.problem or "")


def test_a_card_without_a_driver_is_not_passed_over():
    problems = [gpu.problem for gpu in facts("nvidia-no-driver").gpus]
    assert problems == ["no NVIDIA driver (there is no nvidia-smi)"] * 2


def test_an_old_driver_gives_no_architecture_and_may_hide_memory():
    assert [(gpu.arch, gpu.memory) for gpu in facts("nvidia-old-driver").gpus] == [
        (None, 11441 * 2**20), (None, None)]


def test_amd_cards_have_their_gfx_name_and_integrated_graphics_are_no_accelerator():
    card, integrated = facts("amd-rocm").gpus
    assert (card.name, card.memory, card.arch, card.driver) == (
        "Radeon RX 7900 XT", 21458059264, "gfx1100", "6.7.0")
    assert card.problem is None
    assert (integrated.arch, integrated.problem) == ("gfx1036", "integrated graphics, 64 MiB")
    assert facts("amd-rocm").problems == ()
    assert facts("amd-sysfs-only").gpus[0].arch == "gfx90a"


def test_a_mac_shares_its_memory_with_its_gpu():
    found = facts("mac-m2")
    assert (found.system, found.os_name, found.libc) == ("Darwin", "macOS 14.6.1", "")
    assert [(gpu.vendor, gpu.name, gpu.memory) for gpu in found.gpus] == [("apple", "Apple M2", 24 * GIB)]
    assert found.cpu.features == ("bf16", "dotprod", "fp16", "i8mm", "neon")
    assert found.uptime == 86400


def test_cgroup_limits_bound_threads_and_memory():
    found = facts("raspberry-pi-5")
    assert (found.cpu.threads, found.cpu.cores) == (2, 2)
    assert (found.memory, found.memory_available) == (2 * GIB, 2 * GIB - 512 * 2**20 + 128 * 2**20)


def test_cgroup_v1_limits_count_as_well():
    text = recording("raspberry-pi-5").replace("cpu.max /user.slice/ max 100000", "\n".join((
        "cpu.cfs_quota_us /a/ 150000", "cpu.cfs_period_us /a/ 100000",
        "memory.limit_in_bytes /a/ 1073741824", "memory.usage_in_bytes /a/ 1000", "memory.limit_in_bytes / "
        "9223372036854771712")))
    found = parse_facts(text)
    assert (found.cpu.threads, found.memory, found.memory_available) == (1, GIB, GIB - 1000)


def test_an_exposed_ollama_is_seen():
    exposed = {listener.port: listener.exposed for listener in facts("nvidia-two-gpus").listeners}
    assert exposed == {22: True, 53: False, 631: False, 8091: False, 11434: True}


def test_the_holder_of_our_port_has_a_name_and_a_whole_command():
    ours = next(listener for listener in facts("nvidia-two-gpus").listeners if listener.port == 8091)
    assert (ours.pid, ours.user) == (4250, "ann")
    assert ours.command == "/mnt/nvme/swarmctl/runtimes/llamacpp/k/bin/llama-server --port 8091"


def test_servers_count_only_while_their_pids_are_ours():
    large, recycled, small = facts("nvidia-two-gpus").servers
    assert (large.supervisor, large.pid, large.restarts, large.spec) == (4242, 4250, 2, "9b1c2d3e4f")
    assert large.speed == Speed(2100.5, 61.25, 0.021, 3.5)
    assert (recycled.supervisor, recycled.pid, recycled.restarts) == (None, None, 0)
    assert (small.mode, small.supervisor, small.speed) == ("systemd", None, None)


def test_a_part_of_a_transfer_is_no_blob():
    assert [blob.size for blob in facts("nvidia-two-gpus").blobs] == [5027783488, 1380288]


def test_disks_are_named_with_their_kind_and_a_folder_to_write_to():
    found = {disk.path: disk for disk in facts("nvidia-two-gpus").disks}
    assert found["/mnt/nvme"].writable == "/mnt/nvme"
    assert found["/"].writable == "/home/ann"
    assert (found["/mnt/old disk"].rotational, found["/mnt/old disk"].filesystem) == (True, "ext4")
    assert facts("nvidia-two-gpus").disk == found["/mnt/nvme"]


def test_a_data_dir_that_cannot_be_made_is_a_problem():
    text = recording("raspberry-pi-5").replace("39% /\n", "39% /\nunwritable /\n", 1)
    assert parse_facts(text).problems == (
        "/home/pi/.local/share/swarmctl cannot be written: / belongs to somebody else",)


def test_systemd_counts_where_it_runs_and_lingers():
    assert facts("nvidia-two-gpus").systemd_user
    assert not facts("raspberry-pi-5").systemd_user


@pytest.mark.parametrize(("said", "libc"), [
    ("glibc 2.39", "glibc 2.39"), ("musl libc (x86_64)\nVersion 1.2.5", "musl 1.2.5"),
    ("ldd (Ubuntu GLIBC 2.35-0ubuntu3.8) 2.35", "glibc 2.35"), ("ldd (GNU libc) 2.34", "glibc 2.34"),
    ("sh: ldd: not found", "")])
def test_the_libc_is_read_in_every_wording(said, libc):
    text = recording("raspberry-pi-5").replace("glibc 2.36", said)
    assert parse_facts(text).libc == libc


def test_a_banner_before_and_noise_after_do_not_matter():
    text = recording("mac-m2")
    assert parse_facts(f"Welcome!\n@@1 host\n{text}\nbye\n@@2 end\n") == facts("mac-m2")
    assert parse_facts(text.replace("\n", "\r\n")) == facts("mac-m2")


def test_a_hosts_words_cannot_open_a_section():
    text = recording("raspberry-pi-5").replace("Raspberry Pi 5 Model B", "x\n@@0-0 gpus\n@@ end")
    assert parse_facts(text).gpus == ()


@pytest.mark.parametrize(("text", "message"), [
    ("", "its answer to the survey is none"),
    ("This account is currently not available.\n", "its answer to the survey is none"),
    (recording("mac-m2").rpartition("@@")[0], "its answer to the survey was cut off"),
    ("swarmctl-probe 1 5\n@@5 end\n", "its answer to the survey lacks system"),
])
def test_what_is_no_answer_is_an_error(text, message):
    with pytest.raises(SwarmError, match=message):
        parse_facts(text)


def test_hosts_with_one_key_can_run_each_others_builds():
    found = facts("nvidia-two-gpus")
    assert platform_key(found) == platform_key(replace(found, hostname="other", release="1"))
    names = ("mac-m2", "raspberry-pi-5", "debian-x86-dash", "busybox-x86")
    others = {platform_key(facts(name)) for name in names}
    assert len(others | {platform_key(found)}) == 5
    assert all(set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-") for key in others)


def only_swarm_errors(text: str) -> None:
    try:
        found = parse_facts(text)
    except SwarmError:
        return
    json.dumps(asdict(found))
    platform_key(found)


FUZZ = settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.too_slow])


@FUZZ
@given(st.text(max_size=300))
def test_any_text_gives_facts_or_a_swarm_error(text):
    only_swarm_errors(text)
    only_swarm_errors(f"swarmctl-probe 1 7\n{text}\n@@7 end\n")


LINES = sorted({line for name in RECORDINGS for line in recording(name).splitlines()
                if line and not line.startswith(("@@", "swarmctl-probe"))})
SECTIONS = sorted({line.split(" ", 1)[1] for name in RECORDINGS for line in recording(name).splitlines()
                   if line.startswith("@@")})
HOST = "system Linux\nmachine m\nuser u\nuid 1\nhome /h\ndata_dir /d"


@st.composite
def mangled(draw) -> str:
    """A line of a recording with a piece of it replaced."""
    line = draw(st.sampled_from(LINES))
    start = draw(st.integers(0, len(line)))
    end = draw(st.integers(start, len(line)))
    odd = ["", "0", "-1", "9" * 30, "1e999", "nan", "/", " ", '{"a"', "\u0663"]
    wild = st.one_of(st.text(max_size=8), st.sampled_from(odd))
    return line[:start] + draw(wild) + line[end:]


@FUZZ
@given(st.lists(st.tuples(st.sampled_from(SECTIONS), st.lists(mangled(), max_size=6)), max_size=8))
def test_mangled_sections_give_facts_or_a_swarm_error(sections):
    body = "".join(f"\n@@7 {name}\n" + "\n".join(lines) + "\n" for name, lines in sections if name != "end")
    only_swarm_errors(f"swarmctl-probe 1 7\n@@7 host\n{HOST}\n{body}\n@@7 end\n")


@FUZZ
@given(st.sampled_from(RECORDINGS), st.data())
def test_a_recording_with_holes_gives_facts_or_a_swarm_error(name, data):
    text = recording(name)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 400)))
    only_swarm_errors(text[:start] + data.draw(st.text(max_size=10)) + text[end:])
