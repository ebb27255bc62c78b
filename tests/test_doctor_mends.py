"""Faults made for real on hosts of a lab, found by doctor over SSH, and mended by the very commands that it
prints.

Each host of the lab is a network namespace with an sshd of its own. Nothing is sent beyond them.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from running import Cli
from test_ollama import FOLDER as OLLAMA

from swarmctl.fleet.host_shell import script
from swarmctl.fleet.local import LocalRemote
from swarmctl.fleet.survey import survey
from swarmctl.inventory import Host
from swarmctl.paths import Paths
from swarmctl.runtimes.llamacpp_build import LLAMACPP, choose_build

pytestmark = [pytest.mark.runtime, pytest.mark.netns, pytest.mark.timeout(280)]

#: What the machine under the lab may have of itself.
OTHERS = ("disk", "swap")


#: what is said besides: nobody is there to say yes, and how busy this machine is is not what is tested
ADDED = {"prune": ("--yes",), "upgrade": ("--tolerance", "0.05")}


class Clinic(Cli):
    """A lab of three hosts in namespaces, brought up, and the means to make it ill and well."""

    def __init__(self, lab) -> None:
        super().__init__(lab.paths, lab.home)
        self.environ.update(lab.environ)
        self.lab = lab
        self.text = lab.paths.inventory.read_text()

    def findings(self, *args: str, less: tuple[str, ...] = OTHERS) -> dict[tuple[str, str], dict]:
        done = self.run("doctor", "--json", *args, status=None)
        self.status = done.returncode
        found = json.loads(done.stdout)["findings"]
        return {(one["host"], one["rule"]): one for one in found if one["rule"] not in less}

    def mend(self, finding: dict) -> None:
        """Run the command that was printed, as a person would paste it. The lab's host keys are in no
        known_hosts of ours, so `ssh` is told where they are."""
        known = f"UserKnownHostsFile={self.paths.known_hosts}"
        for command in finding["mend"].partition("    #")[0].split(" && "):
            words = shlex.split(command)
            if words[0] == "swarmctl":
                self.run(*words[1:], *(more for word in words for more in ADDED.get(word, ())), limit=250)
            else:
                assert words[0] == "ssh", command
                subprocess.run(("ssh", "-o", known, *words[1:]), check=True, timeout=60, capture_output=True)

    def there(self, host: str, *words: str) -> None:
        """Run a command on a host, in its own namespaces."""
        known = f"UserKnownHostsFile={self.paths.known_hosts}"
        subprocess.run(("ssh", "-F", str(self.lab.ssh_config), "-o", known, host, *words), check=True,
                       timeout=60)

    def inside(self, host: str, *argv: str, **environ: str) -> subprocess.Popen:
        """A process of somebody else on a host."""
        space = self.lab.host(host).space.name
        return subprocess.Popen(("ip", "netns", "exec", space, *argv), stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL, start_new_session=True,
                                env={**os.environ, **environ})

    def until(self, host: str, rule: str, *args: str) -> dict:
        """The finding, once it is there."""
        deadline = time.monotonic() + 60
        while (host, rule) not in (found := self.findings(host, *args)):
            assert time.monotonic() < deadline, found
            time.sleep(0.5)
        return found[host, rule]


@pytest.fixture(scope="module")
def clinic(make_lab, llamacpp_bin):
    made = Clinic(make_lab("netns", cache=Paths.from_environ(os.environ).cache))
    made.run("up", limit=250)
    yield made
    made.run("down", status=None)
    made.lab.stop()


@pytest.fixture(autouse=True)
def unchanged(clinic):
    """Every test leaves the inventory as it was."""
    yield
    clinic.lab.paths.inventory.write_text(clinic.text)


def test_a_llama_server_that_is_open_to_the_network(clinic, llamacpp_bin):
    """Somebody's own one, bound to every address of the host."""
    model = next((clinic.lab.host("calisota").data_dir / "blobs").glob("sha256-*"))
    server = clinic.inside("calisota", str(llamacpp_bin / "llama-server"), "--model", str(model),
                           "--host", "0.0.0.0", "--port", "8123", "--ctx-size", "64", "--threads", "1")
    try:
        found = clinic.until("calisota", "exposed")
        address = clinic.lab.host("calisota").address
        assert f"curl http://{address}:8123/health" in found["seen"]
        assert "from here" not in found["seen"], "nothing is sent unasked"
        assert "from here: HTTP" in clinic.until("calisota", "exposed", "--prove")["seen"]
        assert clinic.status == 1
        clinic.mend(found)
        server.wait(20)
    finally:
        server.kill()
        server.wait(60)
    assert clinic.findings() == {}


@pytest.mark.skipif(not OLLAMA, reason="SWARMCTL_TEST_OLLAMA names no Ollama")
def test_an_ollama_on_0_0_0_0_is_found_proven_and_comes_back_on_loopback(clinic, tmp_path):
    port = "11434"
    environ = {"OLLAMA_MODELS": str(tmp_path), "OLLAMA_NO_CLOUD": "1", "HOME": str(tmp_path)}
    ollama = (str(Path(OLLAMA, "bin", "ollama")), "serve")
    server = clinic.inside("spinoza", *ollama, OLLAMA_HOST=f"0.0.0.0:{port}", **environ)
    again = None
    try:
        found = clinic.until("spinoza", "exposed", "--prove")
        deadline = time.monotonic() + 30
        while "from here: HTTP 200" not in found["seen"]:
            assert time.monotonic() < deadline, found
            found = clinic.until("spinoza", "exposed", "--prove")
        assert '"version"' in found["seen"]
        assert f"OLLAMA_HOST=127.0.0.1:{port}" in found["mend"]
        clinic.mend(found)
        server.wait(20)
        again = clinic.inside("spinoza", *ollama, OLLAMA_HOST=f"127.0.0.1:{port}", **environ)
        time.sleep(2)
        assert clinic.findings("spinoza", less=(*OTHERS, "blob")) == {}
    finally:
        for one in (server, again):
            if one:
                one.kill()
                one.wait(60)


def test_weights_that_are_gone(clinic):
    (blob,) = (clinic.lab.host("worlock").data_dir / "blobs").glob("sha256-*")
    blob.unlink()
    found = clinic.findings()
    assert set(found) == {("worlock", "blob")}
    clinic.mend(found["worlock", "blob"])
    assert clinic.findings() == {}


def test_weights_that_were_cut_short(clinic):
    (blob,) = (clinic.lab.host("worlock").data_dir / "blobs").glob("sha256-*")
    whole = blob.read_bytes()
    replacement = blob.with_name("cut")
    replacement.write_bytes(whole[:1000])
    replacement.replace(blob)  # the server keeps what it has mapped
    found = clinic.findings()
    assert found["worlock", "blob"]["what"].endswith("are damaged")
    clinic.mend(found["worlock", "blob"])
    assert blob.read_bytes() == whole
    assert clinic.findings() == {}


def test_a_template_that_a_flag_replaced(clinic):
    at = "{model: tiny-small, context: 512}"
    assert at in clinic.text
    flagged = at[:-1] + ", flags: {chat-template: chatml}}"
    clinic.lab.paths.inventory.write_text(clinic.text.replace(at, flagged))
    clinic.run("up", limit=200)
    found = clinic.findings()
    assert set(found) == {("spinoza", "template")}
    clinic.lab.paths.inventory.write_text(clinic.text)
    clinic.mend(found["spinoza", "template"])
    assert clinic.findings() == {}


def test_a_second_supervisor(clinic, tmp_path):
    host = clinic.lab.host("calisota")
    folder = tmp_path / "servers" / "tiny-large"
    folder.mkdir(parents=True)
    (folder / "supervise.sh").write_text(script("supervise.sh"))
    shutil.copy(next(host.data_dir.glob("servers/*/run")), folder / "run")
    second = clinic.inside("calisota", "sh", str(folder / "supervise.sh"), str(folder))
    try:
        found = clinic.until("calisota", "two_supervisors")
        assert f"kill {second.pid} " in found["mend"]
        clinic.mend(found)
        second.wait(20)
    finally:
        second.kill()
        second.wait(60)
    assert clinic.findings() == {}


def test_a_disk_that_is_full_of_what_nobody_wants(clinic, tmp_path):
    """A small file system, less than a tenth of which is free, until prune has removed what nobody wants."""
    small = tmp_path / "small"
    small.mkdir()
    waste = tmp_path / "waste"
    waste.write_bytes(os.urandom(1 << 20) * 60)
    blob = f"sha256-{hashlib.sha256(waste.read_bytes()).hexdigest()}"
    data = small / "data"
    clinic.there("worlock", "mount", "-t", "tmpfs", "-o", "size=130m", "tmpfs", str(small))  # its own mounts
    try:
        clinic.there("worlock", "mkdir", "-p", f"{data}/blobs")
        for name in (blob, f"sha256-{'ab' * 32}"):
            clinic.there("worlock", "cp", str(waste), f"{data}/blobs/{name}")
        home = str(clinic.lab.host("worlock").data_dir)
        text = clinic.text.replace(json.dumps(home), json.dumps(str(data)))
        assert text != clinic.text
        wanted = "    models:\n      - {model: tiny-large, context: 1024}\n"
        assert wanted in text
        clinic.lab.paths.inventory.write_text(text.replace(wanted, ""))
        found = clinic.findings("worlock", less=("swap",))
        assert found["worlock", "disk"]["severity"] == "error"
        clinic.mend(found["worlock", "disk"])
        assert ("worlock", "disk") not in clinic.findings("worlock", less=("swap",))
    finally:
        clinic.there("worlock", "umount", str(small))


def test_a_host_with_another_version(clinic, llamacpp_bin, tmp_path):
    """The real llama-server under another version's key, as an admin pinned it for one host and forgot."""
    seen = survey(LocalRemote("here"), Host("here", "local", data_dir=str(tmp_path / "none")))
    build = f"{choose_build('auto', seen, '0.3.90').key}.tar.gz"
    with tarfile.open(tmp_path / build, "w:gz", compresslevel=1) as tar:
        tar.add(llamacpp_bin, "bin")
    pinned = clinic.text.replace("version: 1\n", f"version: 1\nairgap: {tmp_path}\n").replace(
        "  spinoza:\n", "  spinoza:\n    #pin\n")
    before, _, after = pinned.partition("    #pin\n")
    after = after.replace("llamacpp: {", "llamacpp: {version: 0.3.90, ", 1)
    clinic.lab.paths.inventory.write_text(before + after)
    clinic.run("upgrade", "spinoza", *ADDED["upgrade"], limit=250)
    clinic.lab.paths.inventory.write_text(clinic.text)
    found = clinic.findings()
    assert set(found) == {("spinoza", "drift")}
    assert found["spinoza", "drift"]["seen"] == f"0.3.90 here, {LLAMACPP} on calisota, worlock"
    clinic.mend(found["spinoza", "drift"])
    assert clinic.findings() == {}


def test_a_clock_that_is_wrong(clinic, tmp_path):
    """A `date` that runs 33 s behind stands in for a wrong clock, which all hosts of one machine share."""
    date = tmp_path / "date"
    date.write_text('#!/bin/sh\n[ "$1" = +%s.%N ] && exec echo $(($(/bin/date +%s) - 33))\n'
                    'exec /bin/date "$@"\n')
    date.chmod(0o755)
    profile = clinic.lab.host("spinoza").folder / "home" / ".bashrc"
    profile.write_text(f"PATH={tmp_path}:$PATH\n")
    try:
        found = clinic.findings("spinoza")
        if not found:
            pytest.skip("the login shell here reads no .bashrc, so no stand-in can be put in its way")
        clock = found["spinoza", "clock"]
        assert re.fullmatch(r"its clock is 3[23456] s behind this machine's", clock["what"])
        assert clock["mend"].endswith("spinoza sudo timedatectl set-ntp true")
    finally:
        profile.unlink()
    assert clinic.findings("spinoza") == {}


NVIDIA_SMI = """#!/bin/sh
# Prints what the real one prints in the states under test, for hosts that have no such card.
case "$*" in
    *query-gpu=index,name*) {listing} ;;
    *clocks_event_reasons*) echo "0, 86, 300.11, 320.00, 900, 2100, 9200, {reasons}" ;;
    *query-compute-apps*) echo "4711, 9000" ;;
esac
"""


@dataclass(frozen=True)
class Card:
    listing: str
    reasons: str
    rule: str
    words: str


@pytest.mark.parametrize("card", [
    Card('echo "0, NVIDIA GeForce RTX 3080, 10240, 1000, 550.54.14, GPU-1, 8.6"', "0x0000000000000040",
         "throttling", "GPU 0 is held back: thermal (hardware)"),
    Card('echo "Failed to initialize NVML: Driver/library version mismatch"; exit 18', "0x0000000000000000",
         "driver", "a GPU is there and its driver is lost")], ids=lambda card: card.rule)
def test_a_gpus_words_reach_doctor_over_ssh(clinic, tmp_path, card):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(NVIDIA_SMI.format(listing=card.listing, reasons=card.reasons))
    tool.chmod(0o755)
    profile = clinic.lab.host("worlock").folder / "home" / ".bashrc"
    profile.write_text(f"PATH={tmp_path}:$PATH\n")
    try:
        found = clinic.findings("worlock")
        if not found:
            pytest.skip("the login shell here reads no .bashrc, so no stand-in can be put in its way")
        assert found["worlock", card.rule]["what"] == card.words
        rules = {rule for _, rule in found}
        assert ("cpu_fallback" in rules) == (card.rule == "throttling"), "the server has no GPU build"
    finally:
        profile.unlink()
    assert clinic.findings("worlock") == {}
