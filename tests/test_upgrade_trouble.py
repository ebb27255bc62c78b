"""Upgrades that meet trouble: a host that goes away, a full disk, a machine that is busy, two at once."""

from __future__ import annotations

import json
import os
import subprocess
import threading

import pytest
from running import Cli
from test_upgrade import GOOD, SLOW, Swarm, airgap, ask, cache, make, wait_for  # noqa: F401  fixtures

from swarmctl.runtimes.llamacpp_build import LLAMACPP

pytestmark = pytest.mark.runtime


@pytest.mark.netns
@pytest.mark.timeout(280)
def test_a_host_that_goes_away_in_the_middle_is_put_right_when_it_is_back(make_lab, cache, airgap):  # noqa: F811
    lab = make_lab("netns", cache=cache)
    cli = Cli(lab.paths, lab.home)
    cli.environ.update(lab.environ)
    text = lab.paths.inventory.read_text()
    lab.paths.inventory.write_text(text.replace("version: 1\n", f"version: 1\nairgap: {airgap}\n", 1))
    cli.run("up", limit=60)
    host = lab.host("spinoza")
    history = host.data_dir / "runtimes" / "versions.jsonl"
    process = cli.start("upgrade", "spinoza", "--to", GOOD)
    run = host.data_dir / "servers" / "tiny-small" / "run"
    wait_for(lambda: GOOD in run.read_text())
    host.cut()
    _, err = process.communicate(timeout=200)
    assert process.returncode == 1
    assert f"llama.cpp {LLAMACPP} stays the one in force, and was not put back".encode() in err, err.decode()
    assert json.loads(cli.run("ask", "--json", "hello").stdout)["host"] != "spinoza"
    host.mend()
    assert [json.loads(line)["event"] for line in history.read_text().splitlines()] == ["begun"]
    report = json.loads(cli.run("up", "--json").stdout)["hosts"]
    assert {one["host"]: one["state"] for one in report}["spinoza"] == "changed"
    assert LLAMACPP in run.read_text()
    done = json.loads(cli.run("upgrade", "spinoza", "--to", GOOD, "--tolerance", "0.05",
                              "--json").stdout)["hosts"]
    assert [one["state"] for one in done] == ["kept"]
    cli.run("down")
    lab.stop()


def test_a_machine_that_becomes_slow_meanwhile_is_no_regression(make):  # noqa: F811
    swarm = make("a")
    swarm.want(SLOW)
    (old,) = (swarm.folder / "a" / "runtimes" / "llamacpp").glob("*/bin/llama-server")
    slow = old.with_name("slow")
    old.rename(old.with_name("llama-server.real"))
    old.write_text(f'#!/bin/sh\n[ -e "{slow}" ] && set -- "$@" --ubatch-size 1\nexec "$0.real" "$@"\n')
    old.chmod(0o755)

    def hamper() -> None:
        """The old version, started again, is as slow as the new one."""
        wait_for(lambda: swarm.runs("a") == SLOW)
        slow.touch()

    thread = threading.Thread(target=hamper, daemon=True)
    thread.start()
    found = swarm.upgrade(status=None)["a"]
    thread.join(30)
    assert found["state"] == "undecided", found
    assert swarm.runs("a") == LLAMACPP
    slow.unlink()
    assert swarm.upgrade(status=None)["a"]["state"] in ("kept", "returned"), "nothing is held"


def test_a_person_who_accepts_it_gets_the_slower_one(make):  # noqa: F811
    swarm = make("a")
    assert swarm.upgrade("--to", SLOW, "--tolerance", "0")["a"]["state"] == "kept"
    assert swarm.runs("a") == SLOW


def test_a_disk_too_small_for_the_new_one_changes_nothing(make, airgap, tmp_path):  # noqa: F811
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    disk = tmp_path / "a"
    disk.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", disk), check=True)
    try:
        swarm = make("a")
        with (disk / "filler").open("wb") as file:
            file.write(bytes(90 << 20))
        done = swarm.run("upgrade", "--to", GOOD, status=1)
        assert "a: llama.cpp" in done.stderr
        assert "MB are free" in done.stderr
        assert swarm.runs("a") == LLAMACPP
        assert swarm.history("a")[-1] == ("undecided", LLAMACPP, GOOD)
        assert ask(swarm) == "a"
        (disk / "filler").unlink()
        assert swarm.upgrade("--to", GOOD)["a"]["state"] == "kept"
        swarm.run("down")
    finally:
        subprocess.run(("umount", "-l", disk), check=True)


def test_it_says_what_cannot_be_done(make):  # noqa: F811
    swarm = make("a")
    assert "no llama.cpp came before" in swarm.run("rollback", "a", status=1).stderr
    assert "no host b" in swarm.run("rollback", "b", status=2).stderr
    assert "--canary b is not among the hosts" in swarm.run("upgrade", "--canary", "b", status=2).stderr
    assert "is no version" in swarm.run("upgrade", "--to", "../../tmp", status=2).stderr
    nowhere = swarm.run("upgrade", "--to", "0.3.99", status=1).stderr
    assert "the hash of llama.cpp 0.3.99's source is not known" in nowhere
    swarm.want(GOOD, models="small, large")
    todo = swarm.run("upgrade", status=1).stderr
    assert "it is not yet as the inventory says" in todo
    assert "`swarmctl up --host a` first" in todo
    assert swarm.runs("a") == LLAMACPP
    shown = swarm.run("upgrade", "--dry-run").stdout
    assert shown == f"a: goes first: llama.cpp {LLAMACPP} → {GOOD}\n"
