"""A home that is read-only, or on a disk that is full: what is said, and that no answer is lost in silence.

Each command runs in a mount namespace of its own, so the machine's mounts stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import pytest
from gateways import host, llama_server, served, swarm_of

from swarmctl.diagnosis.home import LOW, Folder, home_findings
from swarmctl.fleet.snapshot import Fleet, write_fleet
from swarmctl.shipped import shipped_quality

#: $1 is the home.
READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"'
#: $2 is where it is kept meanwhile.
FULL = ('cp -a "$1" "$2" && mount -t tmpfs -o size=1m tmpfs "$1" && cp -a "$2"/. "$1" && '
        '{ cat /dev/zero > "$1/filler" 2>/dev/null; true; }')
ASK = ("ask", "--temperature", "0", "What is the capital of France?")


@pytest.fixture(scope="module")
def port(llamacpp_bin, tmp_path_factory):
    with llama_server(tmp_path_factory.mktemp("server"), llamacpp_bin, "small", "-c", 1024) as found:
        yield found


@pytest.fixture
def home(port, tmp_path):
    can = subprocess.run(("unshare", "--mount", "sh", "-c", "mount -t tmpfs tmpfs /mnt"), capture_output=True,
                         text=True)
    if can.returncode:
        pytest.skip(f"nothing can be mounted here: {can.stderr.strip()}")
    (tmp_path / "home").mkdir()
    entry = host("spinoza", served("llamacpp", "tiny-small", port, quality=shipped_quality("small")))
    with swarm_of(tmp_path / "home", entry) as cli:
        text = f"version: 1\nhosts:\n  spinoza: {{ssh: local, data_dir: {tmp_path / 'host'}}}\n"
        cli.paths.inventory.write_text(text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        write_fleet(cli.paths.fleet, Fleet(str(cli.paths.inventory), digest, "2026-01-01T00:00:00Z", None,
                                           30.0, 60.0, (entry,)))
        yield cli


def within(cli, trouble, *args):
    """A command in a namespace where the home is in trouble."""
    folder = cli.environ["SWARMCTL_HOME"]
    script = f'{trouble} && home=$1 && shift 2 && cd / && exec "$@"'
    return subprocess.run(("unshare", "--mount", "sh", "-c", script, "sh", folder, f"{folder}-kept",
                           sys.executable, "-m", "swarmctl", *args), env=cli.environ, capture_output=True,
                          text=True, timeout=240, stdin=subprocess.DEVNULL)


@pytest.mark.runtime
@pytest.mark.parametrize(("trouble", "what", "mend"), [
    (READ_ONLY, "swarmctl's folders are read-only", "remount,rw"),
    (FULL, "swarmctl's disk is full", "df -h")])
def test_doctor_finds_that_nothing_can_be_kept_and_says_what_to_do(home, trouble, what, mend):
    done = within(home, trouble, "doctor", "--json")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (found,) = (one for one in json.loads(done.stdout)["findings"] if one["rule"] == "home")
    assert (found["host"], found["severity"], found["what"]) == ("this machine", "error", what)
    assert "cannot be recorded" in found["why"]
    assert mend in found["mend"]
    assert str(home.paths.data.parent) in found["seen"]


@pytest.mark.runtime
@pytest.mark.parametrize("trouble", [READ_ONLY, FULL])
def test_an_answer_that_cannot_be_recorded_is_shown_and_the_failure_said(home, trouble):
    done = within(home, trouble, *ASK)
    assert "Paris" in done.stdout, done.stderr
    assert done.returncode == 1
    assert "record" in done.stderr
    assert "swarmctl doctor" in done.stderr
    assert "Traceback" not in done.stderr
    whole = within(home, trouble, *ASK, "--json")
    assert whole.returncode == 1
    assert "record" in whole.stderr
    said = json.loads(whole.stdout)
    assert (said["answer"], said["recorded"]) == ("Paris", False)


@pytest.mark.runtime
def test_a_home_that_is_well_is_not_spoken_of(home):
    done = json.loads(home.run("doctor", "--json", status=None).stdout)
    free = os.statvfs(home.paths.data.parent)
    if free.f_bavail * free.f_frsize < LOW:
        pytest.skip("this machine's own disk is nearly full")
    assert not [one for one in done["findings"] if one["rule"] == "home"]
    assert not list(home.paths.data.parent.rglob(".swarmctl-*"))


def test_folders_that_fail_alike_on_one_disk_are_one_finding():
    def folder(name, disk, **more):
        return Folder(name, f"/{name}", disk, **{"free": 1 << 30, **more})

    gone = {"error": 28, "said": "No space left on device"}
    found = list(home_findings((folder("data", 1, **gone), folder("state", 1, **gone), folder("cache", 2),
                                folder("runtime", 3, free=1))))
    assert [one.seen for one in found] == ["writing to /data, /state: No space left on device"]
    bare = [Folder(name, "/home", 1, free=0, **gone) for name in ("data", "runtime")]  # neither is there yet
    assert [one.seen for one in home_findings(bare)] == ["writing to /home: No space left on device"]
    (low,) = home_findings((folder("data", 1, free=1 << 20),))
    assert (low.severity, low.what) == ("warning", "its disk has only 1 MiB left for swarmctl")
