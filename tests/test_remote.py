"""Commands and files over both remotes, and everything that can go wrong on the way to a host."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import shlex
import socket
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import until

from swarmctl.errors import (
    AuthenticationFailed,
    CommandFailed,
    CommandTimeout,
    ConnectionLost,
    DiskFull,
    HostUnreachable,
    RemoteError,
    SwarmError,
    TransferFailed,
)
from swarmctl.fleet import remote as remote_module
from swarmctl.fleet import shell, transfer, wire
from swarmctl.fleet.remote import FabricRemote, LocalRemote, connect, foreign_errors, translate
from swarmctl.fleet.ssh_config import (
    Destination,
    client_argv,
    jump_argv,
    parse_resolved,
    resolve,
    resolve_argv,
    split_paths,
)
from swarmctl.inventory import Host
from swarmctl.lab.processes import alive

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")


def over_ssh(lab, name="worlock", *, ssh=None, config=None, timeout=5.0) -> FabricRemote:
    host = Host(name=name, ssh=ssh or name, connect_timeout=timeout)
    return FabricRemote(host, lab.paths, str(config or lab.ssh_config))


@pytest.fixture(params=["local", "ssh"])
def remote(request, lab_loopback):
    made = LocalRemote("here") if request.param == "local" else over_ssh(lab_loopback)
    yield made
    made.close()


@pytest.fixture
def ssh(lab_loopback):
    made = over_ssh(lab_loopback)
    yield made
    made.close()


def a_file(folder: Path, size: int, seed: bytes = b"a") -> tuple[Path, str]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"source-{size}-{seed.decode()}"
    path.write_bytes((hashlib.sha256(seed).digest() * (size // 32 + 1))[:size])
    return path, transfer.sha256_of(path)


# -- commands, over both remotes --

def test_a_command_gives_its_status_and_both_streams(remote):
    done = remote.run(("sh", "-c", "echo out; echo err >&2; exit 7"), timeout=10, check=False)
    assert (done.exit_status, done.stdout, done.stderr) == (7, "out\n", "err\n")


def test_arguments_arrive_as_they_are(remote):
    awkward = ["a b", "it's", '"', "$HOME", "*", "", "back\\slash", "ünï", "-n"]
    done = remote.run(("printf", "<%s>", *awkward), timeout=10)
    assert done.stdout == "".join(f"<{word}>" for word in awkward)


def test_a_failing_command_raises_with_its_status_and_words(remote):
    with pytest.raises(CommandFailed) as caught:
        remote.run(("sh", "-c", "echo no room >&2; exit 3"), timeout=10)
    assert caught.value.exit_status == 3
    assert "no room" in str(caught.value)
    assert caught.value.host == remote.host


def test_a_command_that_is_not_there_ends_with_127(remote):
    assert remote.run(("no-such-command-here",), timeout=10, check=False).exit_status == 127


def test_a_command_ended_by_a_signal_is_a_failure(remote):
    done = remote.run(("sh", "-c", "kill -9 $$"), timeout=10, check=False)
    assert done.exit_status != 0


def test_bytes_go_in_and_come_out(remote):
    done = remote.run(("od", "-An", "-tx1"), timeout=10, stdin=b"\x00\xff\n")
    assert done.stdout.split() == ["00", "ff", "0a"]


def test_without_stdin_a_reader_sees_its_end(remote):
    assert remote.run(("cat",), timeout=10).stdout == ""


def test_stdin_that_nobody_reads_is_no_failure(remote):
    assert remote.run(("true",), timeout=20, stdin=b"x" * 5_000_000).exit_status == 0


def test_much_output_on_both_streams_at_once_blocks_nothing(remote):
    script = ("i=0; while [ $i -lt 300 ]; do head -c 4096 /dev/zero; head -c 4096 /dev/zero >&2; "
              "i=$((i+1)); done")
    done = remote.run(("sh", "-c", script), timeout=60)
    assert (len(done.stdout), len(done.stderr)) == (300 * 4096, 300 * 4096)


def test_output_that_nobody_was_woken_for_is_read_all_the_same(lab):
    remote = over_ssh(lab)
    channel = remote._channel()
    window = channel.in_window_size

    class Losing(shell.Output):
        """Leaves the reader's pipe as paramiko does now and then: empty, though more has come."""

        def add(self, data: bytes) -> None:
            super().add(data)
            if b"lost" in data:
                until(lambda: len(channel.in_buffer) >= window - 16)  # sshd sends no more until that is read
                channel._pipe.clear()

    output, error = shell.Output(None), Losing(None)
    channel.exec_command(f"echo lost >&2; sleep 0.5; head -c {2 * window} /dev/zero")
    assert wire.drain(channel, output, error, time.monotonic() + 60)
    assert len(output.text) == 2 * window
    remote.close()


def test_lines_are_handed_on_as_they_come(remote):
    seen: list[tuple[str, float]] = []
    remote.run(("sh", "-c", "echo one; sleep 0.4; printf two"), timeout=10,
               on_line=lambda line: seen.append((line, time.monotonic())))
    assert [line for line, _ in seen] == ["one", "two"]
    assert seen[1][1] - seen[0][1] > 0.3


def test_output_that_is_not_utf8_is_shown_with_replacement(remote):
    assert remote.run(("printf", r"\377ok"), timeout=10).stdout == "\ufffdok"


def test_a_command_past_its_limit_is_ended_with_all_its_children(remote, tmp_path):
    mark = tmp_path / "pid"
    started = time.monotonic()
    with pytest.raises(CommandTimeout) as caught:
        remote.run(("sh", "-c", 'sleep 600 & echo $! > "$1"; wait', "sh", str(mark)), timeout=0.7)
    assert time.monotonic() - started < 60
    assert caught.value.host == remote.host
    assert _gone(int(mark.read_text()))


def test_a_silent_command_is_ended_too(remote, tmp_path):
    mark = tmp_path / "pid"
    with pytest.raises(CommandTimeout):
        remote.run(("sh", "-c", 'echo $$ > "$1"; exec sleep 600', "sh", str(mark)), timeout=0.7)
    assert _gone(int(mark.read_text()))


def test_many_commands_share_one_remote(remote):
    results: list[str] = []
    threads = [threading.Thread(target=lambda n=n: results.append(
        remote.run(("sh", "-c", f"sleep 0.1; echo {n}"), timeout=10).stdout.strip()),
        daemon=True) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [str(n) for n in range(6)]


def _gone(pid: int) -> bool:
    for _ in range(100):
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


# -- files, over both remotes --

def test_a_file_goes_there_and_comes_back(remote, tmp_path):
    source, digest = a_file(tmp_path, 3_000_000)
    target = tmp_path / "there it's" / 'a "b" $c' / "file"
    told: list[int] = []
    remote.put(source, str(target), sha256=digest, timeout=60, progress=told.append)
    assert target.read_bytes() == source.read_bytes()
    assert (told[0], told[-1]) == (0, 3_000_000)
    assert sorted(path.name for path in target.parent.iterdir()) == ["file"]
    back = tmp_path / "back" / "file"
    remote.get(str(target), back, timeout=60)
    assert back.read_bytes() == source.read_bytes()
    assert [path.name for path in back.parent.iterdir()] == ["file"]


def test_an_empty_file_goes_there_too(remote, tmp_path):
    source, digest = a_file(tmp_path, 0)
    remote.put(source, str(tmp_path / "t" / "empty"), sha256=digest, timeout=20)
    assert (tmp_path / "t" / "empty").read_bytes() == b""


def test_a_file_that_is_there_is_not_sent_again(remote, tmp_path):
    source, digest = a_file(tmp_path, 500_000)
    target = tmp_path / "t" / "file"
    remote.put(source, str(target), sha256=digest, timeout=60)
    before = target.stat()
    told: list[int] = []
    remote.put(source, str(target), sha256=digest, timeout=60, progress=told.append)
    after = target.stat()
    assert told == [500_000]
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_broken_copy_is_resumed_where_it_broke(remote, tmp_path):
    source, digest = a_file(tmp_path, 2_000_000)
    target = tmp_path / "t" / "file"
    target.parent.mkdir()
    Path(f"{target}.part").write_bytes(source.read_bytes()[:700_001])
    told: list[int] = []
    remote.put(source, str(target), sha256=digest, timeout=60, progress=told.append)
    assert told[0] == 700_001
    assert target.read_bytes() == source.read_bytes()


def test_the_part_of_another_file_is_dropped_and_the_copy_starts_again(remote, tmp_path):
    source, digest = a_file(tmp_path, 400_000)
    target = tmp_path / "t" / "file"
    target.parent.mkdir()
    Path(f"{target}.part").write_bytes(b"something else altogether")
    told: list[int] = []
    remote.put(source, str(target), sha256=digest, timeout=60, progress=told.append)
    assert told[0] == 25
    assert 0 in told
    assert target.read_bytes() == source.read_bytes()


def test_a_part_longer_than_the_file_is_overwritten(remote, tmp_path):
    source, digest = a_file(tmp_path, 1000)
    target = tmp_path / "t" / "file"
    target.parent.mkdir()
    Path(f"{target}.part").write_bytes(b"x" * 5000)
    remote.put(source, str(target), sha256=digest, timeout=60)
    assert target.read_bytes() == source.read_bytes()


def test_a_wrong_hash_leaves_nothing_behind(remote, tmp_path):
    source, _ = a_file(tmp_path, 10_000)
    target = tmp_path / "t" / "file"
    with pytest.raises(TransferFailed, match="SHA-256"):
        remote.put(source, str(target), sha256="0" * 64, timeout=60)
    assert list(target.parent.iterdir()) == []


def test_a_file_that_is_not_here_is_named(remote, tmp_path):
    with pytest.raises(SwarmError, match="nowhere"):
        remote.put(tmp_path / "nowhere", str(tmp_path / "t"), sha256="0" * 64, timeout=20)


def test_a_place_that_cannot_be_made_is_named(remote, tmp_path):
    source, digest = a_file(tmp_path, 10)
    (tmp_path / "blocked").write_text("a file")
    with pytest.raises(CommandFailed, match="blocked"):
        remote.put(source, str(tmp_path / "blocked" / "file"), sha256=digest, timeout=20)


def test_getting_what_is_not_there_leaves_nothing(remote, tmp_path):
    with pytest.raises(TransferFailed, match="missing"):
        remote.get(str(tmp_path / "missing"), tmp_path / "d" / "x", timeout=20)
    assert list((tmp_path / "d").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)), check=True)
    yield place
    subprocess.run(("umount", "-l", str(place)), check=True)


@needs_root
def test_a_file_too_big_for_the_disk_is_refused_before_a_byte_is_sent(remote, tmp_path, small_disk):
    source, digest = a_file(tmp_path, 9_000_000)
    told: list[int] = []
    with pytest.raises(DiskFull, match="MB too little"):
        remote.put(source, str(small_disk / "file"), sha256=digest, timeout=60, progress=told.append)
    assert told == []
    assert list(small_disk.iterdir()) == []


@needs_root
def test_a_disk_that_fills_meanwhile_is_told_and_left_clean(remote, tmp_path, small_disk):
    source, digest = a_file(tmp_path, 2_500_000)

    def fill(sent: int) -> None:
        if 0 < sent < 600_000:
            with contextlib.suppress(OSError), (small_disk / "other").open("ab", buffering=0) as other:
                other.write(b"x" * 2_000_000)

    with pytest.raises(DiskFull) as caught:
        remote.put(source, str(small_disk / "file"), sha256=digest, timeout=60, progress=fill)
    assert caught.value.host == remote.host
    assert [path.name for path in small_disk.iterdir()] == ["other"]


def test_scripts_pass_through_any_login_shell_as_one_word():
    scripts = (transfer.LOOK, transfer.APPEND, transfer.START, transfer.DROP, transfer.HASH, transfer.PLACE,
               shell.ANNOUNCE, shell.END)
    for script in scripts:
        assert not set("\n\\!'") & set(script)


# -- a connection that breaks --

def test_a_push_resumes_after_sshd_was_killed(lab, tmp_path):
    remote = over_ssh(lab)
    source, digest = a_file(tmp_path, 40_000_000)
    target = tmp_path / "t" / "file"
    killed, gone = threading.Event(), threading.Event()

    def kill(sent: int) -> None:
        if sent > 8_000_000 and not killed.is_set():
            killed.set()
            lab.host("worlock").kill_sshd()
            gone.set()

    with pytest.raises((ConnectionLost, TransferFailed)) as caught:
        remote.put(source, str(target), sha256=digest, timeout=60, progress=kill)
    assert caught.value.host == "worlock"
    part = Path(f"{target}.part")
    kept = part.stat().st_size
    assert 0 < kept < 40_000_000
    assert gone.wait(60)  # a dying sshd still counts as one that runs
    lab.host("worlock").start()
    told: list[int] = []
    remote.put(source, str(target), sha256=digest, timeout=60, progress=told.append)
    assert told[0] >= kept > 0
    assert target.read_bytes() == source.read_bytes()
    remote.close()


def test_a_remote_reconnects_after_sshd_came_back(lab):
    remote = over_ssh(lab)
    remote.run(("true",), timeout=10)
    lab.host("worlock").restart_sshd()
    assert remote.run(("echo", "again"), timeout=10).stdout == "again\n"
    remote.close()


def test_a_connection_that_breaks_in_a_command_is_told(lab):
    remote = over_ssh(lab)
    remote.run(("true",), timeout=10)
    threading.Timer(0.4, lab.host("worlock").kill_sshd).start()
    with pytest.raises(ConnectionLost) as caught:
        remote.run(("sleep", "30"), timeout=20)
    assert caught.value.host == "worlock"
    remote.close()


@pytest.mark.netns
def test_a_cable_pulled_in_mid_command_is_noticed(cable_lab, monkeypatch):
    monkeypatch.setattr(wire, "DEAD_AFTER", 1500)
    monkeypatch.setattr(remote_module, "KEEPALIVE", 1)
    remote = over_ssh(cable_lab)
    remote.run(("true",), timeout=10)
    threading.Timer(0.3, cable_lab.host("worlock").cut).start()
    started = time.monotonic()
    with pytest.raises(ConnectionLost):
        remote.run(("sleep", "120"), timeout=100)
    assert time.monotonic() - started < 60
    remote.close()


# -- a host that cannot be reached --

@pytest.mark.netns
def test_a_host_that_is_off_costs_its_connect_timeout(cable_lab):
    cable_lab.host("worlock").cut()
    started = time.monotonic()
    with pytest.raises(HostUnreachable) as caught:
        over_ssh(cable_lab, timeout=1.0).run(("true",), timeout=10)
    assert time.monotonic() - started < 30, "a minute and more if it were left to TCP"
    assert caught.value.host == "worlock"
    assert caught.value.hint


def test_a_port_that_accepts_and_says_nothing_costs_its_connect_timeout(lab_loopback, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        config = tmp_path / "config"
        config.write_text(f"Host mute\n HostName 127.0.0.1\n Port {server.getsockname()[1]}\n")
        started = time.monotonic()
        with pytest.raises(HostUnreachable, match="opens no SSH session"):
            over_ssh(lab_loopback, "mute", config=config, timeout=1.0).run(("true",), timeout=10)
        assert time.monotonic() - started < 30


def test_a_frozen_host_costs_its_connect_timeout(lab):
    lab.host("worlock").cut()
    started = time.monotonic()
    with pytest.raises(HostUnreachable):
        over_ssh(lab, timeout=1.0).run(("true",), timeout=10)
    assert time.monotonic() - started < 30
    lab.host("worlock").mend()
    remote = over_ssh(lab)
    assert remote.run(("echo", "back"), timeout=10).stdout == "back\n"
    remote.close()


@pytest.mark.parametrize("where", ["no-such-host.invalid", "127.0.0.1:1"])
def test_a_name_without_address_and_a_closed_port_are_unreachable(lab_loopback, where):
    with pytest.raises(HostUnreachable) as caught:
        over_ssh(lab_loopback, "gone", ssh=where).run(("true",), timeout=10)
    assert str(caught.value).startswith("gone: no SSH connection (")
    assert f"`ssh -F {lab_loopback.ssh_config} {where}`" in (caught.value.hint or "")


def test_a_key_that_is_refused_says_so(lab_loopback, tmp_path):
    subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "k")), check=True)
    config = _config(lab_loopback, tmp_path, identity=tmp_path / "k")
    with pytest.raises(AuthenticationFailed) as caught:
        over_ssh(lab_loopback, config=config).run(("true",), timeout=10)
    assert "IdentityFile" in (caught.value.hint or "")
    assert f"`ssh -o BatchMode=yes -F '{config}' worlock true`" in (caught.value.hint or "")


def test_a_key_with_a_passphrase_is_named(lab_loopback, tmp_path):
    subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(tmp_path / "locked")),
                   check=True)
    config = _config(lab_loopback, tmp_path, identity=tmp_path / "locked")
    with pytest.raises(AuthenticationFailed, match="locked needs a passphrase: ssh-add it"):
        over_ssh(lab_loopback, config=config).run(("true",), timeout=10)


def test_a_file_that_is_no_key_is_named(lab_loopback, tmp_path):
    (tmp_path / "spoilt").write_text("garbage\n")
    config = _config(lab_loopback, tmp_path, identity=tmp_path / "spoilt")
    with pytest.raises(AuthenticationFailed, match=r"0 keys offered; \S*/spoilt cannot be read as a key"):
        over_ssh(lab_loopback, config=config).run(("true",), timeout=10)


# -- the SSH config holds --

def _config(lab, folder: Path, *, identity: Path | None = None, more: str = "", head: str = "") -> Path:
    """An SSH config with the lab's hosts and another key or more settings."""
    text = lab.ssh_config.read_text()
    if identity:
        text = text.replace(str(lab.folder / "client_key"), str(identity))
    path = folder / "ssh config"
    path.write_text(f"{head}\n{text}\n{more}")
    return path


def test_an_alias_in_an_included_file_and_a_match_block_hold(lab_loopback, tmp_path):
    host = lab_loopback.host("spinoza")
    (tmp_path / "included").write_text(f"Host thinker\n  HostName {host.address}\n")
    head = (f"Include \"{tmp_path}/included\"\n"
            f"Match originalhost thinker exec \"true\"\n  Port {host.port}\nMatch all\n")
    remote = over_ssh(lab_loopback, "thinker", config=_config(lab_loopback, tmp_path, head=head))
    assert remote.run(("printenv", "HOME"), timeout=10).stdout.strip() == str(host.folder / "home")
    remote.close()


def test_user_address_and_port_may_stand_in_the_inventory(lab_loopback):
    host = lab_loopback.host("calisota")
    remote = over_ssh(lab_loopback, "c", ssh=f"{getpass.getuser()}@{host.address}:{host.port}")
    assert "calisota" in remote.run(("printenv", "HOME"), timeout=10).stdout
    remote.close()


def test_a_host_behind_a_jump_host_is_reached_through_it(lab_loopback, tmp_path):
    far = lab_loopback.host("calisota")
    head = (f"Host far\n  HostName {far.address}\n  Port {far.port}\n  ProxyJump worlock\n"
            f"Host farther\n  HostName {far.address}\n  Port {far.port}\n  ProxyJump worlock,spinoza\n")
    config = _config(lab_loopback, tmp_path, head=head)
    for name in ("far", "farther"):
        remote = over_ssh(lab_loopback, name, config=config)
        assert remote.run(("printenv", "HOME"), timeout=20).stdout.strip() == str(far.folder / "home")
        remote.close()


@pytest.mark.netns
def test_the_far_host_sees_the_jump_host_as_its_client(lab_netns, tmp_path):
    far, jump = lab_netns.host("calisota"), lab_netns.host("worlock")
    head = f"Host far\n  HostName {far.address}\n  ProxyJump worlock\n"
    remote = over_ssh(lab_netns, "far", config=_config(lab_netns, tmp_path, head=head))
    assert remote.run(("printenv", "SSH_CONNECTION"), timeout=20).stdout.split()[0] == jump.address
    remote.close()


def test_a_jump_host_that_is_off_is_told(lab, tmp_path):
    far = lab.host("calisota")
    head = f"Host far\n  HostName {far.address}\n  Port {far.port}\n  ProxyJump worlock\n"
    lab.host("worlock").stop()
    with pytest.raises(HostUnreachable) as caught:
        over_ssh(lab, "far", config=_config(lab, tmp_path, head=head), timeout=2).run(("true",), timeout=10)
    assert "refused" in str(caught.value)


def test_a_proxy_command_with_tokens_holds(lab_loopback, tmp_path):
    host = lab_loopback.host("worlock")
    note = tmp_path / "note"
    proxy = f"sh -c 'echo %h %p %r > {shlex.quote(str(note))}; exec ssh -F \"{lab_loopback.ssh_config}\" " \
            f"-o UserKnownHostsFile=\"{lab_loopback.paths.known_hosts}\" -W %h:%p spinoza'"
    head = f"Host by-proxy\n  HostName {host.address}\n  Port {host.port}\n  ProxyCommand {proxy}\n"
    remote = over_ssh(lab_loopback, "by-proxy", config=_config(lab_loopback, tmp_path, head=head))
    assert "worlock" in remote.run(("printenv", "HOME"), timeout=20).stdout
    assert note.read_text().split()[:2] == [host.address, str(host.port)]
    remote.close()


def test_a_user_certificate_named_in_the_config_is_presented(lab, tmp_path):
    for name in ("ca", "user"):
        subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)),
                       check=True)
    me = subprocess.run(("id", "-un"), capture_output=True, text=True, check=True).stdout.strip()
    subprocess.run(("ssh-keygen", "-q", "-s", str(tmp_path / "ca"), "-I", "test", "-n", me,
                    str(tmp_path / "user.pub")),
                   check=True)
    (tmp_path / "user-cert.pub").rename(tmp_path / "elsewhere.pub")
    door = lab.host("worlock").folder / "authorized_keys"
    door.write_text("cert-authority " + (tmp_path / "ca.pub").read_text())
    config = _config(lab, tmp_path, identity=tmp_path / "user",
                     more=f"  CertificateFile {tmp_path}/elsewhere.pub\n")
    remote = over_ssh(lab, config=config)
    assert remote.run(("echo", "in"), timeout=10).stdout == "in\n"
    remote.close()


def test_the_agent_named_in_the_config_is_asked(lab_loopback, tmp_path):
    address = tmp_path / "a"
    agent = subprocess.Popen(("ssh-agent", "-D", "-a", str(address)), stdout=subprocess.DEVNULL)
    try:
        for _ in range(100):
            if address.exists():
                break
            time.sleep(0.02)
        subprocess.run(("ssh-add", "-q", str(lab_loopback.folder / "client_key")),
                       env={**os.environ, "SSH_AUTH_SOCK": str(address)}, check=True)
        text = lab_loopback.ssh_config.read_text().replace("IdentityAgent none", f"IdentityAgent {address}")
        text = text.replace("IdentitiesOnly yes", "IdentitiesOnly no").replace("client_key", "no_such_key")
        config = tmp_path / "config"
        config.write_text(text)
        remote = over_ssh(lab_loopback, config=config)
        assert remote.run(("echo", "in"), timeout=10).stdout == "in\n"
        remote.close()
    finally:
        agent.terminate()
        agent.wait(60)


# -- as data --

def test_destinations_are_read():
    assert Destination.parse("worlock") == Destination("worlock")
    assert Destination.parse("me@10.0.0.1:2222") == Destination("10.0.0.1", "me", 2222)
    assert Destination.parse("[fe80::1]:22") == Destination("fe80::1", None, 22)
    assert Destination.parse("fe80::1") == Destination("fe80::1")
    assert Destination.parse("me@host").argv == ("-l", "me", "--", "host")


@pytest.mark.parametrize("text", ["", "-oProxyCommand=x", "me@", "me@-x"])
def test_what_is_no_destination_is_refused(text):
    with pytest.raises(SwarmError, match="not an SSH destination"):
        Destination.parse(text)


def test_the_command_that_resolves_an_alias():
    assert resolve_argv(Destination("w"), None) == ("ssh", "-G", "--", "w")
    assert resolve_argv(Destination("w", "me", 5), "/a b") == ("ssh", "-G", "-F", "/a b", "-l", "me", "-p",
                                                               "5",
                                                              "--", "w")


def resolved(text="", host="h", port=22):
    return parse_resolved(Destination("alias"), f"hostname {host}\nport {port}\nuser me\n{text}")


def test_what_ssh_resolved_is_read():
    made = resolved("identityfile ~/.ssh/a\nidentityfile /k/%r@%h\nproxyjump a,b\nhostkeyalias none\n", "H",
                    2222)
    assert made.identity_files == (str(Path("~/.ssh/a").expanduser()), "/k/me@H")
    assert made.jumps == ("a", "b")
    assert made.known_as == "[h]:2222"
    assert resolved("hostkeyalias same\n", "h", 2222).known_as == "same"


def test_a_known_hosts_path_with_blanks_is_found(tmp_path):
    (tmp_path / "a b").write_text("")
    assert split_paths(f"{tmp_path}/a b /etc/x") == (f"{tmp_path}/a b", "/etc/x")


def test_every_ssh_is_strict_and_reads_our_known_hosts_first():
    argv = client_argv(resolved("userknownhostsfile /u/k\n"), known_hosts=Path("/o u/k%h"), ssh_config=None,
                       connect_timeout=5)
    assert "StrictHostKeyChecking=yes" in argv
    assert "BatchMode=yes" in argv
    assert 'UserKnownHostsFile="/o u/k%%h" "/u/k"' in argv


def test_jump_hosts_are_nested_with_the_same_strictness():
    target = resolved("proxyjump one,two\n", "10.0.0.9", 2200)
    hops = {name: replace(resolved(host=name), destination=Destination(name)) for name in ("one", "two")}
    argv = jump_argv(target, lookup=hops.__getitem__, known_hosts=Path("/k"), ssh_config="/c",
                     connect_timeout=3)
    assert argv is not None
    assert argv[-4:] == ("-W", "10.0.0.9:2200", "--", "two")
    inner = next(part for part in argv if part.startswith("ProxyCommand="))
    assert shlex.split(inner.removeprefix("ProxyCommand="))[-4:] == ["-W", "two:22", "--", "one"]
    assert "StrictHostKeyChecking=yes" in inner


def test_jump_hosts_in_a_circle_are_told():
    target = resolved("proxyjump alias\n")
    with pytest.raises(HostUnreachable, match="circle"):
        jump_argv(target, lookup=lambda _: target, known_hosts=Path("/k"), ssh_config=None, connect_timeout=3)


def test_a_config_that_ssh_cannot_read_is_told(tmp_path):
    (tmp_path / "c").write_text("Bogus yes\n")
    with pytest.raises(SwarmError, match=r"(?i)bogus"):
        resolve("h", str(tmp_path / "c"))


def test_local_hosts_need_no_ssh(lab_loopback):
    assert isinstance(connect(Host("me", "local"), lab_loopback.paths), LocalRemote)
    assert isinstance(connect(Host("w", "w"), lab_loopback.paths), FabricRemote)


# -- the map of foreign errors is complete --

def _subclasses(root: type) -> set[type]:
    return {root}.union(*(_subclasses(child) for child in root.__subclasses__()))


def _instance(kind: type[Exception], key) -> Exception:
    arguments = {"BadHostKeyException": ("h", key, key),
                 "NoValidConnectionsError": ({("h", 22): OSError("x")},),
                 "ProxyCommandFailure": ("cmd", 1), "ChannelException": (1, "no"),
                 "BadAuthenticationType": ("x", ["publickey"]), "PartialAuthentication": (["x"],)}
    return kind(*arguments.get(kind.__name__, ("x",)))


def test_every_foreign_error_becomes_one_of_ours(lab_loopback):
    import paramiko
    import paramiko.ssh_exception as family

    key = paramiko.Ed25519Key.from_private_key_file(str(lab_loopback.folder / "client_key"))
    found = {kind for kind in _subclasses(paramiko.SSHException) if kind.__module__ == family.__name__}
    found |= {family.NoValidConnectionsError, socket.gaierror, TimeoutError, ConnectionResetError,
              BrokenPipeError,
              OSError, EOFError}
    listed = {kind for kind in vars(family).values() if isinstance(kind, type)
              and issubclass(kind, Exception)}
    assert listed <= found
    for kind in found:
        assert issubclass(kind, foreign_errors())
        for connecting in (True, False):
            ours = translate(_instance(kind, key), "worlock", "me@w", connecting=connecting)
            assert isinstance(ours, RemoteError)
            assert type(ours) is not RemoteError
            assert ours.host == "worlock"


def test_a_fabric_or_invoke_error_is_foreign_too():
    import fabric.exceptions
    import invoke.exceptions

    assert issubclass(fabric.exceptions.GroupException, foreign_errors())
    assert issubclass(invoke.exceptions.UnexpectedExit, foreign_errors())
    assert issubclass(invoke.exceptions.ThreadException, foreign_errors())
