"""One-time keys between real SSH hosts that do not trust each other: they allow one file, for a short time,
and nothing of them stays."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from test_models import LARGE, SMALL, Swarm, digest, mixed, needs_ollama, ollamas, teller  # noqa: F401  fixtures
from waiting import until

from swarmctl.fleet.blobs import Blob, Place, blob_path
from swarmctl.fleet.converge import Supply, converge
from swarmctl.fleet.inventory_file import read_inventory
from swarmctl.fleet.one_time_key import NoWay, OneTimeKeys
from swarmctl.fleet.pool import over_hosts
from swarmctl.fleet.remote import LocalRemote
from swarmctl.fleet.sharing import Sharing
from swarmctl.fleet.store import Store
from swarmctl.lab import sshd
from swarmctl.runtimes import ollama_models
from swarmctl.runtimes.base import Endpoint
from swarmctl.runtimes.plans import plan_host
from swarmctl.steps import CreateModel, PutBlob

THEIRS = b'# mine \xff\nssh-ed25519 AAAA me@home\nfrom="10.0.0.1" ssh-ed25519 BBBB'


@pytest.fixture
def swarm(lab_loopback):
    made = Swarm(lab_loopback)
    for host in lab_loopback.hosts:
        shutil.rmtree(host.folder / "home" / ".ssh", ignore_errors=True)
    return made


def keys_of(swarm, name):
    return swarm.lab.host(name).folder / "home" / ".ssh" / "authorized_keys"


def write_keys(swarm, name, content):
    path = keys_of(swarm, name)
    path.parent.mkdir(mode=0o700)
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def assert_nothing_left(swarm):
    for host in swarm.lab.hosts:
        assert "swarmctl" not in (keys_of(swarm, host.name).read_text(errors="replace")
                                  if keys_of(swarm, host.name).exists() else "")
        assert not list(host.data_dir.glob("incoming/*"))
        assert not [path for path in keys_of(swarm, host.name).parent.glob("*") if "swarmctl" in path.name
                    or path.suffix in (".was", ".new")]
    assert not list((swarm.paths.state / "one-time").glob("*"))


def blob_at(swarm, host, file=SMALL):
    return swarm.place(host, blob_path(str(swarm.lab.host(host).data_dir), digest(file)))


def padded(tmp_path, size=150 << 20):
    """A GGUF may be longer than its tensors."""
    path = tmp_path / "big.gguf"
    path.write_bytes(LARGE.read_bytes())
    os.truncate(path, size)
    return path


@contextmanager
def key(swarm, giver="worlock", receiver="calisota", size=1):
    with OneTimeKeys(swarm.paths) as keys:
        yield keys.make(blob_at(swarm, giver), blob_at(swarm, receiver), size)


# --- what it is for

def test_of_hosts_that_do_not_trust_each_other_one_gets_the_bytes_from_here_and_the_rest_from_it(swarm):
    moved = swarm.push(SMALL, "worlock", "spinoza", "calisota")
    (first,) = [one for one in moved if not one.straight]
    assert first.way == "from this machine"
    assert {one.way for one in moved if one.straight} == {f"straight from {first.host}, by a one-time key"}
    for one in moved:
        assert digest(swarm.blob(one.host)) == digest(SMALL)
    assert_nothing_left(swarm)
    assert not keys_of(swarm, "spinoza").parent.exists()


def test_a_model_for_three_hosts_leaves_this_machine_once(lab_netns, tmp_path):
    """Counted on the bridge: what this machine sends into the lab; what hosts send each other does not
    count."""
    swarm, big = Swarm(lab_netns), padded(tmp_path, 40 << 20)
    counter = Path(f"/sys/class/net/{lab_netns.hosts[0].space.bridge}/statistics/tx_bytes")
    before = int(counter.read_text())
    moved = swarm.push(big, "worlock", "spinoza", "calisota")
    sent = int(counter.read_text()) - before
    assert sum(one.straight for one in moved) == 2
    assert {digest(swarm.blob(one.host, big)) for one in moved} == {digest(big)}
    assert big.stat().st_size < sent < 1.1 * big.stat().st_size
    assert_nothing_left(swarm)


def test_a_copy_to_two_hosts_needs_nothing_of_this_machine(swarm):
    swarm.push(SMALL, "worlock")
    moved = swarm.copy("small", "worlock", "spinoza", "calisota")
    assert {one.way for one in moved} <= {f"straight from {name}, by a one-time key"
                                          for name in ("worlock", "spinoza", "calisota")}
    assert_nothing_left(swarm)


def test_a_host_that_is_this_machine_is_nobodys_giver(swarm, tmp_path):
    blob = Blob("small", digest(SMALL), SMALL.stat().st_size)
    here = Place(LocalRemote("here"), str(tmp_path / "blob"), str(tmp_path), "local")
    with Sharing(swarm.paths) as sharing:
        ways = [sharing.bring(blob, to, teller([]), here=SMALL).way
                for to in (here, blob_at(swarm, "worlock"), blob_at(swarm, "calisota"))]
    assert ways == ["from this machine", "from this machine", "straight from worlock, by a one-time key"]


@pytest.mark.parametrize("between", ["trusted", "never"])
def test_where_the_inventory_forbids_them_none_is_made(swarm, between):
    swarm.between(between)
    moved = swarm.push(SMALL, "worlock", "spinoza")
    assert {one.way for one in moved} == {"from this machine"}
    said = {one.why for one in moved} - {""}
    assert bool(said) == (between == "trusted")
    assert not any("trusted" not in why for why in said)
    assert not keys_of(swarm, "worlock").parent.exists()
    assert not keys_of(swarm, "spinoza").parent.exists()


@needs_ollama
def test_what_up_brings_to_three_hosts_leaves_this_machine_once(mixed, ollamas):  # noqa: F811
    """One gets it for llama.cpp, two for their Ollamas."""
    text = mixed.paths.inventory.read_text()
    for name in ollamas:
        line = f"    ollama: {{port: {ollamas[name].port}, manage: adopt}}\n"
        text = text.replace(line, f"{line}    models: [small]\n")
    mixed.paths.inventory.write_text(text)
    yard = replace(mixed.yard, inventory=read_inventory(mixed.paths.inventory))
    stocks = [yard.stock(host) for host in yard.chosen(())]
    with Sharing(yard.paths) as sharing:
        supply = Supply(yard.paths, Store.of(yard.paths), yard.inventory.ssh_config, sharing=sharing)
        failed = [found for _, found in over_hosts(stocks, lambda one: weights_of(one, yard, supply, mixed))
                  if found]
    assert failed == []
    ways = [event.detail for event in mixed.events if " from " in f" {event.detail}"]
    assert sum(way == "from this machine" for way in ways) == 1
    assert sum(way.endswith(", by a one-time key") for way in ways) == 2
    assert {tag.name for server in ollamas.values()
            for tag in ollama_models.tags(Endpoint(port=server.port))} == {f"small:{digest(SMALL)[:12]}"}
    assert_nothing_left(mixed)


def weights_of(stock, yard, supply, mixed):  # noqa: F811
    want = yard.want(stock.host)
    steps = [step for step in plan_host(want, stock.seen) if isinstance(step, PutBlob | CreateModel)]
    assert len(steps) == 1
    converge(stock.remote, want, stock.seen, steps, supply, mixed.events.append)


# --- what it allows

def test_the_line_allows_one_file_for_a_while_and_other_lines_stay_as_they_were(swarm):
    path = write_keys(swarm, "calisota", THEIRS)
    with key(swarm) as (made, ssh):
        found = path.read_bytes()
        assert found.startswith(THEIRS + b"\n")
        line = found.removeprefix(THEIRS + b"\n").decode()
        assert line.startswith('restrict,command="sh -c ')
        assert digest(SMALL) in line
        assert line.endswith(f" swarmctl-one-time-{made.id}\n")
        assert ',expiry-time="20' in line
        private = Path(made.file)
        assert private.is_relative_to(swarm.lab.host("worlock").data_dir)
        assert private.stat().st_mode & 0o777 == 0o600
        assert "StrictHostKeyChecking=yes" in ssh
        assert run(ssh, "id").returncode == 64
        assert run(ssh, "cat /etc/passwd; word").returncode == 64
        assert run((*ssh[:5], "ssh", "-W", "127.0.0.1:1", *ssh[6:])).returncode == 255
        stolen = {file: file.read_bytes() for file in private.parent.glob(f"{private.name}*")}
    assert path.read_bytes() == THEIRS + b"\n"
    assert path.stat().st_mode & 0o777 == 0o600
    assert_nothing_left(swarm)
    for file, content in stolen.items():
        file.write_bytes(content)
        file.chmod(0o600)
    assert b"Permission denied" in run(ssh, "word").stderr
    for file in stolen:
        file.unlink()


def test_a_key_that_has_expired_lets_nobody_in(swarm, monkeypatch):
    monkeypatch.setattr("swarmctl.fleet.one_time_key.LIFETIME", -100)
    with pytest.raises(NoWay, match=r"does not get to calisota over SSH .*Permission denied"), key(swarm):
        pass
    assert_nothing_left(swarm)


def test_two_keys_at_once_do_not_disturb_each_other(swarm):
    with key(swarm) as (_, first), key(swarm, "spinoza") as (_, second):
        assert [run(ssh, "word").returncode for ssh in (first, second)] == [0, 0]
    assert_nothing_left(swarm)


# --- hosts that will not have it

def test_an_authorized_keys_that_is_a_link_is_left_alone_and_the_bytes_come_from_here(swarm, tmp_path):
    (tmp_path / "shared").write_bytes(THEIRS)
    for name in ("worlock", "calisota"):
        keys_of(swarm, name).parent.mkdir(mode=0o700)
        keys_of(swarm, name).symlink_to(tmp_path / "shared")
    moved = swarm.push(SMALL, "worlock", "calisota")
    assert {one.way for one in moved} == {"from this machine"}
    (why,) = [one.why for one in moved if one.why]
    assert why.endswith(": its ~/.ssh/authorized_keys is a link or not that user's own")
    assert (tmp_path / "shared").read_bytes() == THEIRS
    assert_nothing_left(swarm)


def test_an_sshd_that_reads_other_files_is_found_out_and_the_bytes_come_from_here(lab, monkeypatch):
    swarm, plain = Swarm(lab), sshd.sshd_config
    monkeypatch.setattr(sshd, "sshd_config", lambda *given, **more: plain(*given, **more).replace(
        "/home/.ssh/authorized_keys", "/elsewhere"))
    for host in lab.hosts:
        host.restart_sshd()
    moved = swarm.push(SMALL, "worlock", "calisota")
    assert {one.way for one in moved} == {"from this machine"}
    (why,) = [one.why for one in moved if one.why]
    assert "over SSH" in why
    assert "Permission denied" in why
    assert_nothing_left(swarm)


def test_a_host_key_that_this_machine_does_not_know_is_not_taken(swarm):
    where = blob_at(swarm, "calisota")
    where.remote.run(("true",), timeout=20)
    known = swarm.paths.known_hosts
    text = known.read_text()
    other = swarm.lab.host("spinoza").public_key()
    known.write_text(text.replace(swarm.lab.host("calisota").public_key(), other))
    try:
        with OneTimeKeys(swarm.paths) as keys, pytest.raises(NoWay, match="Host key verification failed"):
            keys.make(blob_at(swarm, "worlock"), where, 1)
    finally:
        known.write_text(text)
    assert_nothing_left(swarm)


def test_a_giver_whose_bytes_are_wrong_is_not_believed(swarm, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_bytes(bytes(SMALL.stat().st_size))
    blob = Blob("small", digest(SMALL), SMALL.stat().st_size)
    with Sharing(swarm.paths) as sharing:
        sharing.holds(blob.sha256, swarm.place("worlock", wrong))
        came = sharing.bring(blob, blob_at(swarm, "calisota"), teller([]), here=SMALL)
    assert came.way == "from this machine"
    assert came.why.startswith("worlock broke off: ")
    assert digest(swarm.blob("calisota")) == digest(SMALL)
    assert_nothing_left(swarm)


def test_when_the_first_host_fails_the_next_one_takes_its_turn(swarm, tmp_path):
    data = swarm.lab.host("worlock").data_dir
    (data / "blobs").parent.mkdir(parents=True, exist_ok=True)
    (data / "blobs").write_bytes(b"a file where the folder belongs")
    moved = {one.host: one for one in swarm.push(SMALL, "worlock", "spinoza", "calisota")}
    assert moved["worlock"].error
    assert sorted(moved[name].straight for name in ("spinoza", "calisota")) == [False, True]
    (data / "blobs").unlink()


# --- interrupted

@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_push_leaves_no_key_or_the_next_one_removes_it(swarm, tmp_path, how):
    big = padded(tmp_path)
    swarm.push(big, "worlock")
    path = write_keys(swarm, "calisota", THEIRS + b"\n")
    running = swarm.start("models", "push", str(big), "--to", "worlock", "--to", "calisota")
    part = blob_path(str(swarm.lab.host("calisota").data_dir), digest(big)) + ".part"
    until(lambda: Path(part).exists(), every=0.005)
    assert b"swarmctl-one-time" in path.read_bytes()
    running.send_signal(how)
    running.communicate(timeout=60)
    if how == signal.SIGKILL:
        assert b"swarmctl-one-time" in path.read_bytes()
        assert list((swarm.paths.state / "one-time").glob("*.json"))
        until(lambda: not growing(part), every=0.005)
    else:
        assert path.read_bytes() == THEIRS + b"\n"
        assert not growing(part)
    swarm.push(SMALL, "calisota")
    assert path.read_bytes() == THEIRS + b"\n"
    swarm.push(big, "calisota")
    assert digest(swarm.blob("calisota", big)) == digest(big)
    assert_nothing_left(swarm)


def test_a_host_that_is_off_keeps_its_note_until_it_is_back(swarm):
    with key(swarm) as (made, _):
        note = swarm.paths.state / "one-time" / f"{made.id}.json"
        text = note.read_text()
    note.write_text(text)
    host = swarm.lab.host("calisota")
    host.cut()
    try:
        swarm.push(SMALL, "spinoza")
        assert note.exists()
    finally:
        host.mend()
    swarm.push(LARGE, "spinoza")
    assert not note.exists()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="no shellcheck here")
def test_shellcheck_finds_nothing_in_what_it_does_on_hosts():
    script = Path(__file__).parent.parent / "swarmctl" / "fleet" / "one_time_key.sh"
    done = subprocess.run(("shellcheck", str(script)), capture_output=True, text=True, timeout=60,
                          check=False)
    assert done.returncode == 0, done.stdout


def run(ssh, *command):
    return subprocess.run((*ssh, *command), stdin=subprocess.DEVNULL, capture_output=True, timeout=20,
                          check=False)


def growing(path):
    def size():
        return Path(path).stat().st_size if Path(path).exists() else -1

    first = size()
    threading.Event().wait(0.4)
    return size() != first
