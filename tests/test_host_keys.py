"""Host keys are checked strictly, in every way that OpenSSH knows them; and `trust` accepts them."""

from __future__ import annotations

import re
import shutil
import subprocess
from base64 import b64decode
from dataclasses import replace

import pytest

from swarmctl.errors import HostKeyChanged, HostKeyUnknown, HostUnreachable
from swarmctl.fleet import tunnels
from swarmctl.fleet.certificates import parse_certificate
from swarmctl.fleet.hostkeys import (
    fingerprint,
    judge,
    known_algorithms,
    known_kinds,
    parse_known_hosts,
    without,
)
from swarmctl.fleet.remote import FabricRemote
from swarmctl.fleet.ssh_stderr import error_from_stderr
from swarmctl.inventory import Host
from swarmctl.paths import Paths
from swarmctl.verbs.trust import offered_key, trust

ED25519 = "AAAAC3NzaC1lZDI1NTE5AAAAIP2mQDUB7JX2XFhVLLh6f9Y0C4KTd2zjUB3AhXIIjaK0"
OTHER = "AAAAC3NzaC1lZDI1NTE5AAAAIKq8S9Yyr4ZCU6h5qHxVbJGaeuBZj4bYmfyQyR4hPrT9"
BLOB, OTHER_BLOB = b64decode(ED25519), b64decode(OTHER)


def command(lab, name="worlock", *, ssh=None, config=None) -> str:
    remote = FabricRemote(Host(name, ssh or name), lab.paths, str(config or lab.ssh_config))
    try:
        return remote.run(("echo", "in"), timeout=10).stdout
    finally:
        remote.close()


def tunnel(lab, name="worlock", *, ssh=None, config=None) -> str:
    tunnels.open_tunnel(lab.paths, host_name=name, ssh=ssh or name, ports=(lab.host(0).llamacpp_port,),
                        ssh_config=str(config or lab.ssh_config))
    tunnels.close_tunnel(lab.paths, name)
    return "in\n"


both_roads = pytest.mark.parametrize("reach", [command, tunnel])


# -- for real --

@both_roads
def test_a_known_key_is_let_through(lab, reach):
    assert reach(lab) == "in\n"


@both_roads
def test_an_unknown_key_is_refused_with_the_command_that_would_accept_it(lab, reach):
    lab.paths.known_hosts.write_text("")
    with pytest.raises(HostKeyUnknown) as caught:
        reach(lab)
    assert caught.value.host == "worlock"
    assert "swarmctl trust worlock" in (caught.value.hint or "")


def test_an_unknown_key_is_shown_with_its_fingerprint(lab):
    lab.paths.known_hosts.write_text("")
    with pytest.raises(HostKeyUnknown) as caught:
        command(lab)
    assert _fingerprint(lab.host("worlock")) in str(caught.value)
    assert lab.paths.known_hosts.read_text() == ""


@both_roads
def test_a_changed_key_is_refused_with_its_fingerprint(lab, reach):
    before = _fingerprint(lab.host("worlock"))
    lab.host("worlock").change_host_key()
    with pytest.raises(HostKeyChanged) as caught:
        reach(lab)
    assert _fingerprint(lab.host("worlock")) in str(caught.value)
    if reach is command:
        assert before in str(caught.value)
    assert "swarmctl trust worlock --replace" in (caught.value.hint or "")


@both_roads
def test_hashed_names_in_the_users_own_file_count(lab, reach, tmp_path):
    shutil.copy(lab.paths.known_hosts, tmp_path / "known hosts")
    subprocess.run(("ssh-keygen", "-q", "-H", "-f", str(tmp_path / "known hosts")), check=True,
                   capture_output=True)
    lab.paths.known_hosts.write_text("")
    config = tmp_path / "config"
    config.write_text(f'UserKnownHostsFile "{tmp_path}/known hosts"\n' + lab.ssh_config.read_text())
    assert "|1|" in (tmp_path / "known hosts").read_text()
    assert reach(lab, config=config) == "in\n"


@both_roads
def test_a_host_key_alias_is_looked_up_by_that_name(lab, reach, tmp_path):
    lab.paths.known_hosts.write_text(f"the-box {lab.host('worlock').public_key()}\n")
    config = tmp_path / "config"
    config.write_text(lab.ssh_config.read_text() + "  HostKeyAlias the-box\n")
    assert reach(lab, config=config) == "in\n"


@both_roads
def test_the_known_key_type_is_asked_for_where_the_host_has_several(lab, reach):
    """OpenSSH's and paramiko's first choice is ed25519; the recorded one is ECDSA, or RSA."""
    host = lab.host("worlock")
    for kind in ("ecdsa", "rsa"):
        subprocess.run(("ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(host.folder / kind)), check=True)
        _more_config(lab, host, f'HostKey "{host.folder}/{kind}"')
        key = " ".join((host.folder / f"{kind}.pub").read_text().split()[:2])
        lab.paths.known_hosts.write_text(f"{host.known_as} {key}\n")
        assert reach(lab) == "in\n"


@both_roads
def test_a_revoked_key_is_refused(lab, reach):
    host = lab.host("worlock")
    with lab.paths.known_hosts.open("a") as file:
        file.write(f"@revoked * {host.public_key()}\n")
    with pytest.raises(HostKeyChanged):
        reach(lab)


@pytest.fixture
def certified(lab, tmp_path):
    """worlock with a host certificate, and the line that makes its authority known."""
    def make(principal: str, validity: str = "+1d", role: str = "-h") -> str:
        host = lab.host("worlock")
        ca = tmp_path / "ca"
        if not ca.exists():
            subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(ca)), check=True)
        subprocess.run(("ssh-keygen", "-q", "-s", str(ca), "-I", "worlock", *((role,) if role else ()), "-n",
                        principal,
                        "-V", validity, str(host.folder / "host_key.pub")), check=True)
        _more_config(lab, host, f'HostCertificate "{host.folder}/host_key-cert.pub"')
        return " ".join((tmp_path / "ca.pub").read_text().split()[:2])

    return make


@both_roads
def test_a_certificate_of_a_known_authority_is_enough(lab, reach, certified):
    authority = certified(lab.host("worlock").address)
    lab.paths.known_hosts.write_text(f"@cert-authority * {authority}\n")
    assert reach(lab) == "in\n"


@both_roads
@pytest.mark.parametrize("wrong", ["name", "time", "authority", "scope"])
def test_a_certificate_that_does_not_fit_is_not(lab, reach, certified, wrong):
    address = lab.host("worlock").address
    authority = certified("another-host" if wrong == "name" else address,
                          "20200101:20200102" if wrong == "time" else "+1d")
    if wrong == "authority":
        authority = f"ssh-ed25519 {OTHER}"
    scope = "elsewhere" if wrong == "scope" else "*"
    lab.paths.known_hosts.write_text(f"@cert-authority {scope} {authority}\n")
    with pytest.raises(HostKeyUnknown):
        reach(lab)


def test_a_jump_host_with_an_unknown_key_is_named(lab, tmp_path):
    far = lab.host("calisota")
    config = tmp_path / "config"
    config.write_text(f"Host far\n  HostName {far.address}\n  Port {far.port}\n  ProxyJump worlock\n"
                      + lab.ssh_config.read_text())
    lab.paths.known_hosts.write_text(f"{far.known_as} {far.public_key()}\n")
    for reach in (command, tunnel):
        with pytest.raises(HostKeyUnknown, match="its jump host worlock's host key") as caught:
            reach(lab, "far", config=config)
        assert caught.value.host == "far"
        assert "swarmctl trust worlock" in (caught.value.hint or "")


# -- trust --

def test_trust_fetches_shows_and_records_a_key(lab):
    lab.paths.known_hosts.unlink()
    offer = offered_key(lab.paths, host="worlock", ssh="worlock", ssh_config=str(lab.ssh_config))
    assert (offer.verdict, offer.fingerprint) == ("unknown", _fingerprint(lab.host("worlock")))
    trust(lab.paths, offer)
    assert command(lab) == tunnel(lab) == "in\n"
    again = offered_key(lab.paths, host="worlock", ssh="worlock", ssh_config=str(lab.ssh_config))
    assert again.verdict == "known"
    trust(lab.paths, again)
    assert len(lab.paths.known_hosts.read_text().splitlines()) == 1


def test_trust_replaces_a_changed_key_only_when_told_to(lab):
    lab.host("worlock").change_host_key()
    offer = offered_key(lab.paths, host="worlock", ssh="worlock", ssh_config=str(lab.ssh_config))
    with pytest.raises(HostKeyChanged) as caught:
        trust(lab.paths, offer)
    assert "--replace" in (caught.value.hint or "")
    trust(lab.paths, offer, replace=True)
    assert command(lab) == "in\n"
    assert command(lab, "spinoza") == "in\n"
    assert len(lab.paths.known_hosts.read_text().splitlines()) == 3


def test_trust_passes_a_jump_host(lab, tmp_path):
    far = lab.host("calisota")
    config = tmp_path / "config"
    config.write_text(f"Host far\n  HostName {far.address}\n  Port {far.port}\n  ProxyJump worlock\n"
                      + lab.ssh_config.read_text())
    jump = lab.host("worlock")
    lab.paths.known_hosts.write_text(f"{jump.known_as} {jump.public_key()}\n")
    offer = offered_key(lab.paths, host="far", ssh="far", ssh_config=str(config))
    assert offer.fingerprint == _fingerprint(far)
    trust(lab.paths, offer)
    assert command(lab, "far", config=config) == "in\n"


def test_trust_of_a_host_that_is_off_says_so(lab):
    lab.host("worlock").stop()
    with pytest.raises(HostUnreachable):
        offered_key(lab.paths, host="worlock", ssh="worlock", ssh_config=str(lab.ssh_config))


# -- as data --

def test_names_patterns_negations_and_ports_match_as_in_openssh():
    lines = parse_known_hosts(f"*.lan,!bad.lan ssh-ed25519 {ED25519}\n[h]:2222 ssh-ed25519 {ED25519} me@x\n"
                              f"a?c ssh-ed25519 {ED25519}\n")
    matching = {name: [key.line for key in lines if key.matches(name)]
                for name in ("good.lan", "bad.lan", "[h]:2222", "h", "abc", "ABC", "ac")}
    assert matching == {"good.lan": [1], "bad.lan": [], "[h]:2222": [2], "h": [], "abc": [3], "ABC": [3],
                        "ac": []}


def test_lines_that_make_no_sense_are_passed_over():
    text = (f"# comment\n\nh\nh ssh-ed25519\nh ssh-ed25519 !!!\n@odd h ssh-ed25519 {ED25519}\n"
            f"|1|x|y ssh-ed25519 {ED25519}\n")
    lines = parse_known_hosts(text)
    assert not any(key.matches("h") for key in lines)


def test_verdicts():
    known = parse_known_hosts(f"h ssh-ed25519 {ED25519}\n@revoked * ssh-ed25519 {OTHER}\n")
    assert judge(known, "h", BLOB) == "known"
    assert judge(known, "x", BLOB) == "unknown"
    assert judge(known, "h", b"another") == "changed"
    assert judge(known, "h", OTHER_BLOB) == "revoked"
    assert judge(parse_known_hosts(f"@cert-authority h ssh-ed25519 {ED25519}\n"), "h", BLOB) == "unknown"


def test_any_of_several_recorded_keys_will_do():
    known = parse_known_hosts(f"h ssh-ed25519 {OTHER}\nh ssh-ed25519 {ED25519}\n")
    assert judge(known, "h", BLOB) == "known"


def test_recorded_key_types_come_first():
    known = parse_known_hosts(f"h ssh-rsa {ED25519}\nx ssh-dss {ED25519}\nh ssh-ed25519 {ED25519}\n")
    assert known_kinds(known, "h") == ("ssh-rsa", "ssh-ed25519")
    assert known_algorithms(("ssh-rsa", "ssh-ed25519")) == ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa",
                                                            "ssh-ed25519")


def test_the_fingerprint_is_the_one_ssh_keygen_prints(lab_loopback):
    host = lab_loopback.host("worlock")
    assert fingerprint(b64decode(host.public_key().split()[1])) == _fingerprint(host)


def test_dropping_a_name_keeps_every_other_line():
    text = f"# mine\nh ssh-ed25519 {ED25519}\nx ssh-ed25519 {ED25519}\n@revoked h ssh-ed25519 {OTHER}"
    assert without(text, "h") == f"# mine\nx ssh-ed25519 {ED25519}\n@revoked h ssh-ed25519 {OTHER}"


def test_a_certificate_is_read(lab, certified):
    certified("worlock,10.0.0.1")
    blob = b64decode((lab.host("worlock").folder / "host_key-cert.pub").read_text().split()[1])
    made = parse_certificate(blob)
    assert made is not None
    assert made.principals == ("worlock", "10.0.0.1")
    assert made.key == b64decode(lab.host("worlock").public_key().split()[1])
    assert made.vouches_for("worlock", made.valid_after)
    assert not made.vouches_for("worlock", made.valid_before)
    assert not replace(made, role=1).vouches_for("worlock", made.valid_after)
    assert not replace(made, critical=b"x").vouches_for("worlock", made.valid_after)


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_a_torn_certificate_is_none(lab_loopback, cut):
    blob = b64decode(lab_loopback.host("worlock").public_key().split()[1])
    name = b"ssh-ed25519-cert-v01@openssh.com"
    torn = len(name).to_bytes(4, "big") + name + blob * 8
    assert parse_certificate(torn[:cut]) is None
    assert parse_certificate(blob) is None


@pytest.mark.parametrize(("said", "kind"), [
    ("No ED25519 host key is known for h and you have requested strict checking.\r\n"
     "Host key verification failed.\r\n",
     HostKeyUnknown),
    ("@@@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @@@ key sent is\nSHA256:abc.\n"
     "Host key verification failed.",
     HostKeyChanged),
    ("ssh: connect to host h port 22: Connection timed out", HostUnreachable),
    ("", HostUnreachable),
])
def test_what_ssh_says_becomes_our_errors(said, kind):
    assert type(error_from_stderr(said, "worlock", "w")) is kind


def test_what_to_try_by_hand_names_the_config_that_is_used():
    refused = error_from_stderr("ada@h: Permission denied (publickey).", "worlock", "w",
                                ssh_config="/a b/config")
    assert "`ssh -o BatchMode=yes -F '/a b/config' w true`" in (refused.hint or "")
    away = error_from_stderr("", "worlock", "w", ssh_config="/lab/config")
    assert "does `ssh -F /lab/config w` reach it" in (away.hint or "")


def test_a_long_tale_of_ssh_is_cut_between_words():
    said = "Permissions 0644 for '/home/ada/key' are too open. " * 5 + "ada@h: Permission denied (publickey)."
    told = str(error_from_stderr(said, "worlock", "w"))
    assert re.search(r"every key offered \(… \S", told)
    assert told.partition("… ")[2].removesuffix(")") in said
    assert f" {told.partition('… ')[2].split()[0]} " in said


def _fingerprint(host) -> str:
    shown = subprocess.run(("ssh-keygen", "-lf", str(host.folder / "host_key.pub")), capture_output=True,
                           text=True,
                           check=True).stdout
    return shown.split()[1]


def _more_config(lab, host, line: str) -> None:
    """Restart a host's sshd with one more line in its config."""
    from swarmctl.lab import sshd

    original = sshd.sshd_config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sshd, "sshd_config", lambda *args, **more: original(*args, **more) + line + "\n")
        host.restart_sshd()


def test_the_labs_paths_are_its_own(lab_loopback):
    assert lab_loopback.paths.known_hosts != Paths.from_environ({"HOME": "/x"}).known_hosts
