"""What doctor finds: as recorded facts where this machine has no such hardware, for real where it can be made
ill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from recorded import paths_under
from running import Cli
from stocked import free_ports
from waiting import until

from swarmctl.cli.doctor import _print
from swarmctl.diagnosis import Claim, Finding, Patient, host_findings, parse_examination, swarm_findings
from swarmctl.errors import SwarmError
from swarmctl.facts import Facts, Listener, OllamaLoaded, OllamaSeen, ServerSeen, parse_facts
from swarmctl.facts.seen import BlobSeen, RuntimeSeen
from swarmctl.fleet.examine import examine
from swarmctl.fleet.host_shell import script
from swarmctl.fleet.local import LocalRemote
from swarmctl.fleet.snapshot import read_fleet
from swarmctl.inventory import Host, LlamaCppWish, Placement
from swarmctl.paths import Paths
from swarmctl.verbs.doctor import Report

pytestmark = pytest.mark.timeout(280)

FOLDER = Path(__file__).parent
EXAMINE = FOLDER.parent / "swarmctl" / "fleet" / "examine.sh"
SHELLS = (("dash",), ("bash", "--posix"), ("busybox", "sh"), ("sh",))
GIB = 2**30
NOW = 1795428235.5
BUILD = "/d/runtimes/llamacpp/0.3.36-linux-x86_64-glibc2.39-1f3a90c2-cuda-77aa01bc/bin/llama-server"
CPU_BUILD = BUILD.replace("cuda", "cpu")
DIGEST = "ab" * 32


def recorded_facts(name: str) -> Facts:
    return parse_facts((FOLDER / "facts" / f"{name}.txt").read_text(encoding="utf-8"))


def healthy() -> Facts:
    """worlock of the recordings, with nothing exposed and nothing in swap."""
    seen = recorded_facts("nvidia-two-gpus")
    return replace(seen, swap_used=0, listeners=(), data_dir="/d", servers=(
        ServerSeen("large", "spec", supervisor=4242, pid=4250),), blobs=(BlobSeen(DIGEST, 5 * GIB),))


def test_findings_of_many_hosts_are_told_once_and_no_fingerprint_as_that_of_all(capsys):
    said = [Finding(f"h{number}", "host_key", "error", "its key is not recorded",
                    f"its key (ssh-ed25519 SHA256:{number}ab/c) is in no file", "nobody can tell",
                    f"swarmctl trust h{number}")
            for number in (1, 2)]
    _print(Report(findings=tuple(said), examined=(), unreachable=()))
    assert capsys.readouterr().out == """\
error h1, h2: its key is not recorded
  seen  its key (ssh-ed25519 SHA256:…) is in no file
  why   nobody can tell
  mend  swarmctl trust h1

"""


def examination(**sections: str) -> str:
    named = {key.replace("_", "-"): text for key, text in sections.items()}
    body = {"clock": f"clock {int(NOW)}.500000000", **named, "end": ""}
    return "swarmctl-probe 1 7\n" + "".join(f"@@7 {name}\n{text}\n" for name, text in body.items())


def patient(facts: Facts | None = None, host: Host | None = None, claims=(), gpus=None, skew=0.0, **sections):
    return Patient(host or Host("worlock", "worlock"), facts or healthy(),
                   parse_examination(examination(**sections)), tuple(claims), skew, 0.5, gpus)


def rules(one: Patient) -> list[tuple[str, str]]:
    return [(finding.rule, finding.severity) for finding in host_findings(one)]


def claim(**changes) -> Claim:
    made = Claim(model="large", runtime="llamacpp", server="large", port=8091, digest=DIGEST, size=5 * GIB,
                 template="aa" * 32, template_said="aa" * 32, state="ready")
    return replace(made, **changes)


SERVER = f"server large\nrun exec {BUILD} --model /d/blobs/sha256-{DIGEST} --port 8091 --n-gpu-layers all"
CLOCKS = "0, 61, 180.21, 320.00, 1905, 2100, {used}, {mask}\n1, 44, 21.10, 170.00, 210, 2100, 12, {mask2}"


def clocks(used: int = 6000, mask: str = "0x0000000000000000", mask2: str = "0x0000000000000001") -> str:
    return CLOCKS.format(used=used, mask=mask, mask2=mask2)


def test_a_healthy_host_has_no_findings():
    one = patient(claims=[claim()], servers=SERVER, nvidia_clocks=clocks(), gpus=2,
                  nvidia_apps="4250, 5800\nstatus 0")
    assert host_findings(one) == ()


def test_a_server_without_its_gpu_is_found_by_its_own_log():
    said = "said cpu 1 warning: no usable GPU found, --gpu-layers option will be ignored"
    (found,) = host_findings(patient(claims=[claim()], servers=f"{SERVER}\n{said}"))
    assert (found.rule, found.severity) == ("cpu_fallback", "error")
    assert "NVIDIA GeForce RTX 3080" in found.what
    assert "no usable GPU found" in found.seen
    assert found.mend == "swarmctl down --host worlock && swarmctl up --host worlock"


def test_a_server_that_the_driver_does_not_list_and_whose_weights_are_nowhere_on_a_gpu():
    ill = patient(claims=[claim()], servers=SERVER, nvidia_clocks=clocks(used=310), nvidia_apps="status 0")
    (found,) = host_findings(ill)
    assert found.rule == "cpu_fallback"
    assert "--n-gpu-layers all" in found.seen
    assert "0.3 GiB" in found.seen


def test_a_driver_that_lists_no_processes_at_all_proves_nothing():
    """In a container, and under WSL, nvidia-smi lists none; the memory that is taken shows where the weights
    are."""
    unlisted = patient(claims=[claim()], servers=SERVER, nvidia_clocks=clocks(), nvidia_apps="status 0")
    assert rules(unlisted) == []
    unknown = patient(claims=[claim()], servers=SERVER, nvidia_clocks=clocks(used=310),
                      nvidia_apps="[Not Supported]\nstatus 3")
    assert rules(unknown) == []


def test_a_build_for_the_cpu_beside_a_gpu_is_found_unless_it_is_wanted():
    text = SERVER.replace(BUILD, CPU_BUILD)
    assert rules(patient(claims=[claim()], servers=text)) == [("cpu_fallback", "error")]
    wanted = Host("worlock", "worlock", llamacpp=LlamaCppWish(backend="cpu"))
    assert rules(patient(host=wanted, claims=[claim()], servers=text)) == []
    none = replace(healthy(), gpus=())
    assert rules(patient(none, claims=[claim()], servers=text)) == []
    no_layers = text.replace("--n-gpu-layers all", "--n-gpu-layers 0")
    assert rules(patient(claims=[claim()], servers=no_layers)) == [("cpu_fallback", "error")]
    layers = Host("worlock", "worlock", models=(Placement("large", flags={"n-gpu-layers": 0}),))
    assert rules(patient(host=layers, claims=[claim()], servers=no_layers)) == []


def test_layers_that_were_never_meant_for_a_gpu_are_no_fallback():
    text = SERVER.replace("--n-gpu-layers all", "--n-gpu-layers 0") + "\nsaid cpu 1 no usable GPU found"
    assert rules(patient(claims=[claim()], servers=text)) == []


@pytest.mark.parametrize(("vram", "expected", "processor"), [
    (5 * GIB, [], ""), (0, [("cpu_fallback", "error")], "100% CPU"),
    (int(2.6 * GIB), [("cpu_fallback", "warning")], "48%/52% CPU/GPU")])
def test_ollama_tells_itself_how_much_lies_on_the_gpu(vram, expected, processor):
    loaded = OllamaLoaded("qwen3:8b", 5 * GIB, vram)
    seen = replace(healthy(), ollamas=(OllamaSeen(11434, "0.33.0", "systemd", loaded=(loaded,)),))
    assert rules(patient(seen, claims=[claim()])) == expected
    for found in host_findings(patient(seen, claims=[claim()])):
        assert processor in found.seen
    if vram == 0:
        assert found.mend == "ssh worlock sudo systemctl restart ollama"


def test_an_amd_cards_processes_come_from_the_kernel_or_rocm_smi():
    assert parse_examination(examination(amd_apps="pid 4711\npid 4712")).gpu_pids == {4711, 4712}
    said = ("WARNING: AMD GPU device(s) is/are in a low-power state.\n"
            '{"system": {"PID4250": "llama-server, 1, 5368709120, 0, unknown"}}')
    assert parse_examination(examination(amd_apps=said)).gpu_pids == {4250}
    assert parse_examination(examination()).gpu_pids is None


def test_a_driver_lost_after_an_upgrade_is_explained_with_the_way_out():
    seen = recorded_facts("nvidia-driver-mismatch")
    (found,) = [one for one in host_findings(patient(seen)) if one.rule == "driver"]
    assert "Driver/library version mismatch" in found.seen
    assert found.mend == "ssh worlock sudo reboot"


@pytest.mark.parametrize(("said", "mend"), [
    ("nvidia-smi: NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure "
     "that the latest NVIDIA driver is installed and running.", "modprobe nvidia"),
    ("nvidia-smi: Unable to determine the device handle for GPU0000:0B:00.0: GPU is lost.  Reboot the "
     "system to recover this GPU", "poweroff"),
    ("nvidia-smi: No devices were found", "dmesg"),
])
def test_every_way_to_lose_a_driver_has_its_own_mend(said, mend):
    seen = replace(healthy(), problems=(said,))
    (found,) = [one for one in host_findings(patient(seen)) if one.rule == "driver"]
    assert mend in found.mend


def test_a_gpu_that_up_saw_and_that_is_gone_is_missed():
    seen = replace(healthy(), gpus=healthy().gpus[:1])
    (found,) = host_findings(patient(seen, gpus=2))
    assert (found.rule, found.what) == ("driver", "a GPU is gone")
    assert "1 of the 2 GPUs" in found.seen


@pytest.mark.parametrize(("mask", "words", "severity"), [
    ("0x0000000000000004", "power cap", "info"),
    ("0x0000000000000048", "hardware slowdown, thermal (hardware)", "warning"),
    ("0x0000000000000020", "thermal (software)", "warning"),
    ("0x0000000000000080", "power brake", "warning")])
def test_a_gpu_that_is_held_back_says_why(mask, words, severity):
    (found,) = host_findings(patient(claims=[claim()], nvidia_clocks=clocks(mask=mask)))
    assert (found.rule, found.severity) == ("throttling", severity)
    assert found.what == f"GPU 0 is held back: {words}"
    assert found.seen == "61 °C, 180 of 320 W, 1905 of 2100 MHz"


def test_an_idle_gpu_and_one_that_says_nothing_are_not_held_back():
    idle, _ = parse_examination(examination(nvidia_clocks=clocks(mask="0x0000000000000001"))).gpu_clocks
    assert idle.reasons == ()
    odd = "0, [N/A], [N/A], [N/A], [N/A], [N/A], [N/A], 0x0000000000000000\nNVIDIA-SMI has failed"
    (clock,) = parse_examination(examination(nvidia_clocks=odd)).gpu_clocks
    assert (clock.temperature, clock.memory_used) == (None, None)


def test_an_exposed_ollama_is_found_with_the_request_that_proves_it():
    seen = replace(healthy(), listeners=recorded_facts("nvidia-two-gpus").listeners,
                   ollamas=(OllamaSeen(11434, "0.33.0", "systemd", exposed=True),))
    (found,) = host_findings(patient(seen, claims=[claim()], addresses="192.168.1.7\nfd00::7"))
    assert (found.rule, found.severity) == ("exposed", "error")
    assert "try `curl http://192.168.1.7:11434/api/version` from another machine" in found.seen
    assert "systemctl edit ollama" in found.mend


def test_an_ssh_server_is_no_model_server():
    seen = replace(healthy(), listeners=(Listener("0.0.0.0", 22, True, 1, "root", "/usr/sbin/sshd"),))
    assert rules(patient(seen, claims=[claim()])) == []


def test_weights_that_are_gone_or_of_another_size_are_found():
    gone = replace(healthy(), blobs=())
    (found,) = host_findings(patient(gone, claims=[claim()]))
    assert (found.rule, found.what, found.mend) == ("blob", "the weights of large are gone",
                                                    "swarmctl up --host worlock")
    cut = replace(healthy(), blobs=(BlobSeen(DIGEST, 17),))
    (found,) = host_findings(patient(cut, claims=[claim()]))
    assert "has 17 bytes instead of" in found.seen


def test_another_template_than_the_weights_bring_is_found():
    (found,) = host_findings(patient(claims=[claim(template_said="bb" * 32)]))
    assert (found.rule, found.severity) == ("template", "error")
    assert rules(patient(claims=[claim(template_said=None)])) == []
    assert rules(patient(claims=[claim(template="")])) == []


def test_a_clock_that_differs_by_more_than_the_way_explains_is_found():
    assert rules(patient(claims=[claim()], skew=5.4)) == []
    (found,) = host_findings(patient(claims=[claim()], skew=-33.0))
    assert (found.rule, found.severity, found.what) == ("clock", "warning",
                                                        "its clock is 33 s behind this machine's")
    assert rules(patient(claims=[claim()], skew=3600.0)) == [("clock", "error")]


def test_swap_in_use_is_found_with_whose_it_is():
    seen = replace(healthy(), swap_used=9 * GIB)
    (found,) = host_findings(patient(seen, claims=[claim()], servers=f"{SERVER}\nswapped 3145728"))
    assert found.rule == "swap"
    assert found.seen == "9.0 GiB are in swap, 63 GiB is its memory; 3.0 GiB of it are large's"


def test_a_nearly_full_disk_warns_and_a_full_one_is_an_error():
    disk = healthy().disk
    tight = replace(healthy(), disk=replace(disk, free=disk.size // 100))
    assert rules(patient(tight, claims=[claim()])) == [("disk", "warning")]
    full = replace(healthy(), disk=replace(disk, free=0))
    assert rules(patient(full, claims=[claim()])) == [("disk", "error")]


def test_a_server_that_ends_again_and_again_is_found():
    at = "2026-11-23T09:03:00+0000"
    line = f"said ended 5 {at} supervisor: the server ended with status 137; restart 5 in 16 s"
    down = replace(healthy(), servers=(ServerSeen("large", "s", 4242, None, restarts=5),))
    (found,) = host_findings(patient(down, claims=[claim()], servers=f"{SERVER}\n{line}"))
    assert (found.rule, found.seen) == ("restarts", "restarted 5 times, last with status 137")
    calm = patient(claims=[claim()], servers=f"{SERVER}\n{line}")
    assert rules(calm) == [], "it has run for long since then"


def test_an_old_crash_is_forgiven():
    line = ("said ended 1 2026-11-23T10:03:00+0000 supervisor: the server ended with status 1; "
            "restart 1 in 1 s")
    assert rules(patient(claims=[claim()], servers=f"{SERVER}\n{line}")) == []


def test_two_supervisors_of_one_port_are_named_with_the_stranger_to_end():
    text = ("supervisor 4242 ann 8091 0 /d/servers/large\n"
            "supervisor 5000 bob 8091 7 /home/bob/.local/share/swarmctl/servers/large")
    (found,) = host_findings(patient(claims=[claim()], supervisors=text))
    assert found.rule == "two_supervisors"
    assert found.mend.startswith("ssh worlock kill 5000")


def test_a_port_taken_by_the_systems_ollama_is_named():
    server = (f"server ollama\nrun exec {BUILD} --port 11434\n"
              "said bind 4 Error: listen tcp 127.0.0.1:11434: bind: address already in use")
    seen = replace(healthy(), listeners=(Listener("127.0.0.1", 11434, False, 77, "ollama", "ollama serve"),))
    (found,) = host_findings(patient(seen, servers=server, supervisors="service ollama active"))
    assert found.rule == "two_supervisors"
    assert found.mend == "ssh worlock sudo systemctl disable --now ollama"


def test_versions_that_drifted_apart_are_found_on_the_odd_one_out():
    keys = {"worlock": "0.3.36-linux-a-cuda-1", "spinoza": "0.3.30-linux-b-cpu-2",
            "calisota": "0.3.36-linux-c"}
    hosts = [patient(replace(healthy(), ollama=None, runtimes=(RuntimeSeen("llamacpp", key, f"/d/{key}"),)),
                     Host(name, name)) for name, key in keys.items()]
    (found,) = swarm_findings(hosts)
    assert (found.host, found.rule) == ("spinoza", "drift")
    assert found.seen == "0.3.30 here, 0.3.36 on calisota, worlock"
    with_ollama = [replace(one, facts=replace(one.facts, runtimes=(), ollamas=(OllamaSeen(11434, version),)))
                   for one, version in zip(hosts, ("0.33.0", "0.12.3", "0.33.0"), strict=True)]
    assert [one.host for one in swarm_findings(with_ollama)] == ["spinoza"]
    assert swarm_findings(hosts[:1]) == ()


def test_a_long_idle_host_may_sleep_and_only_then():
    host = Host("worlock", "worlock", idle_minutes=30)
    assert rules(replace(patient(host=host, claims=[claim()]), idle_minutes=31.0)) == [("idle", "info")]
    assert rules(replace(patient(host=host, claims=[claim()]), idle_minutes=29.0)) == []


def test_what_mends_a_local_host_needs_no_ssh():
    seen = replace(healthy(), problems=("nvidia-smi: Driver/library version mismatch",))
    found = host_findings(patient(seen, Host("here", "local"), claims=[claim()]))
    assert found[0].mend == "sudo reboot"


@pytest.mark.parametrize("text", ["", "hello", "swarmctl-probe 1 7\n@@7 clock\nclock 1\n"])
def test_a_cut_off_examination_is_an_error(text):
    with pytest.raises(SwarmError, match="cut off"):
        parse_examination(text)


@pytest.mark.parametrize("shell", SHELLS, ids=" ".join)
def test_every_shell_runs_the_examination(shell, tmp_path):
    if shutil.which(shell[0]) is None:
        pytest.skip(f"there is no {shell[0]} here")
    folder = tmp_path / "servers" / "small"
    folder.mkdir(parents=True)
    (folder / "run").write_text("#!/bin/sh\nexec '/x y/llama-server' --port 8090\n")
    (folder / "log").write_text(
        "no usable GPU found\n2026-11-23T09:03:00+0000 supervisor: the server ended with status 1; restart 1 "
        "in 1 s\nbind: Address already in use\nx: out of memory\n")
    done = subprocess.run((*shell, "-s", "--", str(tmp_path)), input=EXAMINE.read_bytes(),
                          capture_output=True, timeout=60, check=False,
                          env={**os.environ, "HOME": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, b"")
    found = parse_examination(done.stdout.decode())
    assert abs(found.clock - time.time()) < 30
    (server,) = found.servers
    assert server.argv == ("/x y/llama-server", "--port", "8090")
    assert server.option("port") == "8090"
    assert sorted(server.said) == ["bind", "ended", "memory"], "what an earlier start said is forgotten"


def test_shellcheck_finds_nothing_in_the_examination():
    if shutil.which("shellcheck") is None:
        pytest.skip("there is no shellcheck here")
    done = subprocess.run(("shellcheck", str(EXAMINE)), capture_output=True, text=True, timeout=60,
                          check=False)
    assert done.stdout == ""


def test_the_clock_of_this_machine_agrees_with_itself(tmp_path):
    _, skew, error = examine(LocalRemote("here"), str(tmp_path))
    assert abs(skew) <= error + 0.1
    _, skew, _ = examine(LocalRemote("here"), str(tmp_path), clock=lambda: time.time() - 100)
    assert 95 < skew < 105


# --- for real: this machine as a host, made ill

INVENTORY = """
version: 1
models: {{tiny: {{source: "shipped:small", context: 256, parallel: 1}}}}
hosts:
  here: {{ssh: local, data_dir: "{data}", llamacpp: {{port: {port}}}, models: [tiny]}}
"""


class Ward(Cli):
    """This machine as a host with one llama-server, and what doctor says of it."""

    def __init__(self, home: Path, port: int) -> None:
        super().__init__(paths_under(home), home)
        self.data = home / "hostdata"
        self.port = port
        self.environ["XDG_CACHE_HOME"] = str(Paths.from_environ(os.environ).cache.parent)
        self.write(INVENTORY.format(data=self.data, port=port))

    def write(self, text: str) -> None:
        self.paths.inventory.parent.mkdir(parents=True, exist_ok=True)
        self.paths.inventory.write_text(text)

    def findings(self, *args: str) -> dict[tuple[str, str], dict]:
        done = self.run("doctor", "--json", *args, status=None)
        self.status = done.returncode
        return {(one["host"], one["rule"]): one for one in json.loads(done.stdout)["findings"]}


@pytest.fixture(scope="module")
def ward(tmp_path_factory, llamacpp_bin):
    from stocked import stock

    home = tmp_path_factory.mktemp("ward")
    made = Ward(home, free_ports(1)[0])
    stock(made.paths.cache, llamacpp_bin)
    made.run("up", limit=200)
    yield made
    made.run("down", status=None)


def quiet(findings: dict) -> dict:
    """Less what this machine itself may have: a full disk, swap, other people's exposed servers."""
    return {key: one for key, one in findings.items() if key[1] not in ("disk", "swap", "exposed")}


@pytest.mark.runtime
def test_a_host_that_up_has_just_made_is_well(ward):
    assert quiet(ward.findings()) == {}


@pytest.mark.runtime
def test_a_blob_deleted_behind_its_back_is_found_and_up_mends_it(ward):
    (blob,) = (ward.data / "blobs").glob("sha256-*")
    blob.unlink()
    found = quiet(ward.findings())
    assert set(found) == {("here", "blob")}
    assert ward.status == 1
    assert str(blob) in found["here", "blob"]["seen"]
    command = found["here", "blob"]["mend"].split()
    assert command[:2] == ["swarmctl", "up"]
    ward.run(*command[1:])
    assert quiet(ward.findings()) == {}


@pytest.mark.runtime
def test_a_server_with_another_template_is_found(ward):
    ward.run("down")
    ward.write(INVENTORY.format(data=ward.data, port=ward.port).replace(
        "models: [tiny]", "models: [{model: tiny, flags: {chat-template: chatml}}]"))
    ward.run("up")
    found = quiet(ward.findings())
    assert set(found) == {("here", "template")}
    ward.write(INVENTORY.format(data=ward.data, port=ward.port))
    ward.run("up")
    assert quiet(ward.findings()) == {}


@pytest.mark.runtime
def test_two_supervisors_on_one_port_are_found_for_real(ward, tmp_path):
    folder = tmp_path / "servers" / "tiny"
    folder.mkdir(parents=True)
    (folder / "supervise.sh").write_text(script("supervise.sh"))
    shutil.copy(ward.data / "servers" / "tiny" / "run", folder / "run")
    second = subprocess.Popen(["sh", str(folder / "supervise.sh"), str(folder)], start_new_session=True)
    try:
        log = folder / "log"
        until(lambda: log.exists() and "bind" in log.read_text())
        found = quiet(ward.findings())
        assert set(found) == {("here", "two_supervisors")}
        assert found["here", "two_supervisors"]["mend"].startswith(f"kill {second.pid} ")
    finally:
        second.send_signal(signal.SIGTERM)
        second.wait(20)
    assert quiet(ward.findings()) == {}


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.runtime
def test_an_exposed_server_is_found_and_proven_on_request(ward, tmp_path):
    port = free_ports(1)[0]
    argv = [sys.executable, "-m", "http.server", str(port), "--bind", "0.0.0.0", "--directory", str(tmp_path)]
    (tmp_path / "health").write_text('{"status":"ok"}')
    text = INVENTORY.format(data=ward.data, port=ward.port).replace("hosts:", f"""hosts:
  bare: {{ssh: local, data_dir: "{tmp_path}/bare", llamacpp: {{port: {port}}}, models: [tiny]}}""")
    ward.write(text)
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: listens(port))
        (found,) = [one for key, one in ward.findings("bare").items() if key[1] == "exposed"
                    and str(port) in one["what"]]
        assert f":{port}/health` from another machine" in found["seen"]
        (found,) = [one for key, one in ward.findings("bare", "--prove").items() if key[1] == "exposed"
                    and str(port) in one["what"]]
        assert "from here: HTTP 200" in found["seen"]
    finally:
        server.kill()
        server.wait(60)
        ward.write(INVENTORY.format(data=ward.data, port=ward.port))


@pytest.mark.runtime
def test_an_older_runtime_on_one_host_is_drift(ward, tmp_path):
    fleet = read_fleet(ward.paths.fleet)
    assert fleet is not None
    old = tmp_path / "old" / "runtimes" / "llamacpp" / "0.3.1-linux-x86_64-glibc2.36-00000000-cpu"
    old.mkdir(parents=True)
    (old / ".complete").touch()
    text = INVENTORY.format(data=ward.data, port=ward.port)
    ward.write(text + f'  old: {{ssh: local, data_dir: "{tmp_path}/old"}}\n')
    found = quiet(ward.findings())
    ward.write(text)
    assert set(found) == {("old", "drift")}
    assert found["old", "drift"]["seen"].startswith("0.3.1 here, ")
    assert ward.status == 0, "a warning is no error"


@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of its own needs root")
@pytest.mark.runtime
def test_a_full_disk_is_found(ward, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=True, timeout=10)
    text = INVENTORY.format(data=ward.data, port=ward.port)
    try:
        (small / "fill").write_bytes(b"x" * 1040000)
        ward.write(text + f'  full: {{ssh: local, data_dir: "{small}"}}\n')
        found = ward.findings("full")
    finally:
        ward.write(text)
        subprocess.run(["umount", str(small)], check=True, timeout=10)
    assert (found["full", "disk"]["severity"], ward.status) == ("error", 1)


def test_a_host_that_is_off_ends_with_three_and_an_intermittent_one_with_nought(tmp_path):
    cli = Ward(tmp_path, 8090)
    cli.write("version: 1\nhosts: {gone: {ssh: 'nobody@127.0.0.1:1', connect_timeout: 1}}\n")
    assert set(cli.findings()) == {("gone", "unreachable")}
    assert cli.status == 3
    cli.write("version: 1\nhosts:\n"
              "  gone: {ssh: 'nobody@127.0.0.1:1', connect_timeout: 1, intermittent: true}\n")
    assert cli.findings()["gone", "off"]["severity"] == "info"
    assert cli.status == 0


def test_a_host_whose_key_is_not_recorded_is_found_with_the_command_that_records_it(lab_loopback, tmp_path):
    cli = Ward(tmp_path, 8090)
    lab = lab_loopback.host(0)
    config = lab_loopback.ssh_config.read_text()
    bare = tmp_path / "ssh_config"
    bare.write_text("\n".join(line for line in config.splitlines() if "KnownHosts" not in line))
    cli.write(f"version: 1\nssh_config: {bare}\nhosts: {{{lab.name}: {{}}}}\n")
    found = cli.findings()
    assert set(found) == {(lab.name, "host_key")}
    assert f"swarmctl trust {lab.name}" in found[lab.name, "host_key"]["mend"]
    assert cli.status == 1
