"""`swarmctl init`: hosts from an SSH config or an Ansible inventory, what they are, and what is written."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarmctl.errors import InventoryError, SwarmError, UsageError
from swarmctl.facts import Facts, parse_facts
from swarmctl.fleet.ansible_inventory import expand, parse_ansible
from swarmctl.fleet.candidates import Candidate, fit, named_candidates, ssh_candidates
from swarmctl.fleet.suggest import Found, data_dir, free_port, inventory_text, roles, watts
from swarmctl.inventory import Inventory, parse_inventory
from swarmctl.verbs.init import Wishes, draft_inventory, write_inventory

FOLDER = Path(__file__).parent / "facts"
FUZZ = settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.too_slow])


def facts(name: str) -> Facts:
    return parse_facts((FOLDER / f"{name}.txt").read_text(encoding="utf-8"))


def names(found) -> list[str]:
    return [host.name for host in found.hosts]


def targets(text: str) -> dict[str, str]:
    return {host.name: host.ssh for host in parse_ansible(text, "hosts").hosts}


# --- SSH config

def test_aliases_are_hosts_and_patterns_matches_and_forges_are_not(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.conf").write_text("Host spinoza\n  Port 2222\n", encoding="utf-8")
    (tmp_path / "more" / "b.conf").write_text("Host calisota spinoza\n", encoding="utf-8")
    config = tmp_path / "config"
    config.write_text(f"""\
# Host commented
Include {tmp_path}/more/*.conf {tmp_path}/none
Host worlock "with quotes"   # the big one
    HostName=10.0.0.5
host * !secret lab-? %h
Match host foo
    User bar
Host=equals
Host github
    HostName github.com
Host forge
    User git
Host gitlab.com
""", encoding="utf-8")
    found = ssh_candidates(config)
    assert names(found) == ["spinoza", "calisota", "worlock", "equals"]
    assert found.hosts[0].origin.endswith("a.conf")
    left_out = [note.partition(":")[0] for note in found.notes]
    assert left_out == ["'with quotes'", "github", "forge", "gitlab.com"]


def test_an_include_that_includes_itself_ends(tmp_path):
    config = tmp_path / "config"
    config.write_text(f"Include {config}\nHost a\n", encoding="utf-8")
    assert names(ssh_candidates(config)) == ["a"]


def test_no_ssh_config_is_no_host_and_one_that_cannot_be_read_is_an_error(tmp_path):
    assert ssh_candidates(tmp_path / "none").hosts == ()
    with pytest.raises(UsageError, match="cannot be read"):
        ssh_candidates(tmp_path)


def test_named_hosts_get_names_that_an_inventory_takes():
    found = named_candidates(["worlock", "me@10.0.0.7:2222", "[fe80::1]:22", "me@[::1]:22", "fe80::2",
                              "-oProxy=x", "a b"])
    assert [(host.name, host.ssh) for host in found.hosts] == [
        ("worlock", "worlock"), ("10.0.0.7", "me@10.0.0.7:2222"), ("fe80-1", "[fe80::1]:22"),
        ("1", "me@[::1]:22"), ("fe80-2", "fe80::2")]
    assert len(found.notes) == 2


def test_names_that_meet_are_told_apart():
    found = named_candidates(["a@x", "b@x", "c@x"])
    assert names(found) == ["x", "x-2", "x-3"]


# --- Ansible

INI = """\
; comment
lonely
[gpu]
worlock ansible_host=10.0.0.5 ansible_user=me ansible_port=2222
calisota
node[01:03].lan ansible_ssh_port=2200   # a range
[cpu]
spinoza:2223
here ansible_connection=local
vault ansible_host="{{ secret }}" ansible_ssh_private_key_file=~/.ssh/vault
[gpu:vars]
ansible_user=gpu-user
[lan:children]
gpu
cpu
[lan:vars]
ansible_user = lan-user
"""


def test_an_ini_inventory_gives_targets_with_what_it_says_of_them():
    assert targets(INI) == {
        "lonely": "lonely",
        "worlock": "me@10.0.0.5:2222",
        "calisota": "gpu-user@calisota",
        "node01.lan": "gpu-user@node01.lan:2200",
        "node02.lan": "gpu-user@node02.lan:2200",
        "node03.lan": "gpu-user@node03.lan:2200",
        "spinoza": "lan-user@spinoza:2223",
        "here": "local",
        "vault": "lan-user@vault",
    }
    found = parse_ansible(INI, "hosts")
    assert found.notes == ("vault: set IdentityFile ~/.ssh/vault for it in ~/.ssh/config",)
    assert {host.name: host.origin for host in found.hosts}["calisota"] == "gpu"


YAML = """\
all:
  vars: {ansible_user: ann}
  hosts:
    lonely:
  children:
    gpu:
      hosts:
        worlock: {ansible_host: 10.0.0.5, ansible_port: 2222}
        box[a:c]:
      vars: {ansible_user: bob}
    lan:
      children:
        gpu:
        cpu:
          hosts: {spinoza: {ansible_user: carl}}
"""


def test_a_yaml_inventory_gives_the_same_kind_of_targets():
    assert targets(YAML) == {"lonely": "ann@lonely", "worlock": "bob@10.0.0.5:2222", "boxa": "bob@boxa",
                             "boxb": "bob@boxb", "boxc": "bob@boxc", "spinoza": "carl@spinoza"}


@pytest.mark.parametrize(("pattern", "expected"), [
    ("a", ["a"]), ("n[1:3]", ["n1", "n2", "n3"]), ("n[08:10]", ["n08", "n09", "n10"]),
    ("n[1:9:4]", ["n1", "n5", "n9"]),
    ("[a:b]-[1:2]", ["a-1", "a-2", "b-1", "b-2"]), ("n[3:1]", []), ("n[1:2", ["n[1:2"])])
def test_ranges_expand_as_ansibles_do(pattern, expected):
    assert list(expand(pattern)) == expected


def test_ansible_itself_reads_the_same_hosts(tmp_path):
    pytest.importorskip("ansible")
    for name, text in (("hosts.ini", INI), ("hosts.yaml", YAML)):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        argv = (sys.executable, "-m", "ansible.cli.inventory", "-i", str(path), "--list")
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            pytest.skip(done.stderr[-200:])
        theirs = json.loads(done.stdout)["_meta"]["hostvars"]
        ours = targets(text)
        for host, variables in theirs.items():
            user = variables.get("ansible_user")
            if user:
                assert ours[host].startswith(f"{user}@") or ours[host] == "local"
            port = variables.get("ansible_port") or variables.get("ansible_ssh_port")
            assert not port or ours[host].endswith(f":{port}")


@pytest.mark.parametrize("text", ["", "# nothing\n", "all:\n  children:\n", "[group]\n"])
def test_a_file_without_hosts_is_not_an_inventory(text):
    with pytest.raises(UsageError, match="holds no hosts"):
        parse_ansible(text, "hosts")


BOMB = "a: &a {hosts: {h: }}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{children: {{x{i}: *{chr(97 + i)}, y{i}: *{chr(97 + i)}}}}}\n"
    for i in range(20))


@pytest.mark.parametrize("text", [
    "[g]\n" + "n[1:999999999]\n" * 3, "[g]\nn[1:99999][1:99999][1:99999]\n",
    "[a:children]\nb\n[b:children]\na\n[a]\nh\n",
    BOMB, "[" * 5000, "all: {" * 5000])
def test_a_wild_inventory_ends_soon(text):
    with contextlib.suppress(UsageError):
        assert len(parse_ansible(text, "hosts").hosts) <= 15_000


@FUZZ
@given(st.one_of(st.text(max_size=300), st.text(alphabet="abc[]:{}=#; \n\t-1\"'", max_size=200)))
def test_any_text_is_an_ansible_inventory_or_a_usage_error(text):
    try:
        found = parse_ansible(text, "hosts")
    except UsageError:
        return
    parse_inventory(inventory_text([Found(host) for host in found.hosts], schema="s", ssh_config=None,
                                   notes=found.notes), "draft")


# --- suggestions

def test_roles_follow_the_hardware():
    assert roles(facts("nvidia-two-gpus")) == ("train", "inference")
    assert roles(facts("nvidia-driver-mismatch")) == ("preprocess", "inference")
    assert roles(facts("mac-m2")) == ("train", "inference")
    assert roles(facts("raspberry-pi-5")) == ("preprocess", "inference")
    small = facts("nvidia-two-gpus")
    gpu = replace(small.gpus[0], memory=4 * 2**30)
    assert roles(replace(small, gpus=(gpu,))) == ("inference", "embed")


def test_the_data_folder_goes_to_the_fastest_disk_with_room():
    two = facts("nvidia-two-gpus")
    assert data_dir(two) == "/mnt/nvme/swarmctl"
    assert data_dir(facts("raspberry-pi-5")) == "~/.local/share/swarmctl"
    assert data_dir(facts("mac-m2")) == "~/.local/share/swarmctl"
    little = tuple(replace(disk, free=2**30) if disk.path == "/mnt/nvme" else disk for disk in two.disks)
    assert data_dir(replace(two, disks=little)) == "~/.local/share/swarmctl"


def test_ports_that_are_taken_are_left_alone():
    assert free_port(facts("raspberry-pi-5")) == 8090
    assert free_port(facts("nvidia-two-gpus")) == 8100


def test_watts_are_a_guess_from_the_parts():
    idle, load = watts(facts("nvidia-two-gpus"))
    assert 30 <= idle < 100
    assert 500 < load < 800


RECORDED = [facts(path.stem) for path in sorted(FOLDER.glob("*.txt"))]
ODD = ["no", "on", "12:30", "null", "~", "0755", "a: b", "#", "\u2028", "\ud800"]
WORDS = st.one_of(st.text(max_size=20), st.sampled_from(ODD))
SEEN = st.sampled_from([None, *RECORDED])
HOSTS = st.lists(st.tuples(WORDS, WORDS, WORDS, SEEN, st.one_of(st.none(), WORDS)), max_size=5)
CONFIGS = st.sampled_from([None, "/x y", "~/c", "/\u2028"])


@FUZZ
@given(HOSTS, st.lists(WORDS, max_size=2), WORDS, CONFIGS)
def test_whatever_hosts_say_the_draft_parses(hosts, notes, schema, config):
    candidates = fit((name, target, origin) for name, target, origin, _, _ in hosts).hosts
    found = [Found(candidate, facts=replace(seen, os_name=origin) if seen else None, problem=problem)
             for candidate, (_, _, origin, seen, problem) in zip(candidates, hosts, strict=False)]
    inventory = parse_inventory(inventory_text(found, schema=schema, ssh_config=config, notes=notes), "draft")
    assert [(host.name, host.ssh) for host in inventory.hosts] == (
        [(one.candidate.name, one.candidate.ssh) for one in found] or [("local", "local")])
    assert inventory.ssh_config == config


def test_without_hosts_this_machine_is_the_swarm():
    inventory = parse_inventory(inventory_text([], schema="s", ssh_config=None), "draft")
    host, = inventory.hosts
    assert host.local
    assert [placement.model for placement in host.models] == ["small"]


def test_the_strongest_host_orchestrates():
    found = [Found(Candidate("pi", "pi"), facts("raspberry-pi-5")),
             Found(Candidate("big", "big"), facts("nvidia-two-gpus")),
             Found(Candidate("off", "off"), problem="no answer")]
    inventory = parse_inventory(inventory_text(found, schema="s", ssh_config=None), "draft")
    assert [host.roles for host in inventory.hosts] == [
        ("preprocess", "inference"), ("orchestrate", "train", "inference"), ("inference",)]


# --- the verb and the command

class Recorded:
    """A remote that answers the survey with a recording, or fails."""

    def __init__(self, host: str) -> None:
        self.host = host

    def run(self, argv, **_options):
        from swarmctl.errors import HostUnreachable
        from swarmctl.fleet.shell import Completed

        if self.host == "off":
            raise HostUnreachable("no route to host", host="off", hint="is it on?")
        text = (FOLDER / "nvidia-two-gpus.txt").read_text(encoding="utf-8")
        return Completed(tuple(argv), 0, text, "", 0.0)

    def close(self) -> None:
        """Nothing is held."""


def test_a_host_that_is_off_is_in_the_draft_with_the_reason():
    told = []
    draft = draft_inventory(Wishes(hosts=("on", "off")), lambda host: Recorded(host.name), told.append)
    assert sorted(one.candidate.name for one in told) == ["off", "on"]
    assert [one.candidate.name for one in draft.unreached] == ["off"]
    assert "# not reached: no route to host (is it on?)" in draft.text
    assert [host.name for host in parse_inventory(draft.text, "draft").hosts] == ["on", "off"]


def test_hosts_narrow_an_ansible_inventory(tmp_path):
    path = tmp_path / "hosts.ini"
    path.write_text(INI, encoding="utf-8")
    wishes = Wishes(source=str(path), hosts=("worlock",), discover=False)
    draft = draft_inventory(wishes, lambda host: Recorded(host.name))
    assert [one.candidate.ssh for one in draft.found] == ["me@10.0.0.5:2222"]
    with pytest.raises(UsageError, match="holds no nobody"):
        draft_inventory(replace(wishes, hosts=("nobody",)), lambda host: Recorded(host.name))


def test_an_inventory_is_never_overwritten(tmp_path):
    path = tmp_path / "deep" / "inventory.yaml"
    assert write_inventory(path, "one", force=False) is None
    with pytest.raises(UsageError, match="exists"):
        write_inventory(path, "two", force=False)
    assert write_inventory(path, "two", force=True) == path.with_name("inventory.yaml.old")
    assert write_inventory(path, "three", force=True) == path.with_name("inventory.yaml.old2")
    texts = {file.name: file.read_text(encoding="utf-8") for file in path.parent.iterdir()}
    assert texts == {"inventory.yaml": "three", "inventory.yaml.old": "one", "inventory.yaml.old2": "two"}


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SwarmError, match="cannot be written"):
        write_inventory(tmp_path / "file" / "inventory.yaml", "x", force=False)


def swarmctl(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "SWARMCTL_HOME": str(home / "swarm"), "HOME": str(home)}
    return subprocess.run((sys.executable, "-m", "swarmctl", *words), capture_output=True, text=True,
                          check=False, timeout=120, env=environ)


def written(home: Path) -> Inventory:
    path = home / "swarm" / "config" / "inventory.yaml"
    return parse_inventory(path.read_text(encoding="utf-8"), str(path))


def test_init_on_a_bare_machine_makes_this_machine_the_swarm(tmp_path):
    done = swarmctl(tmp_path, "init")
    assert (done.returncode, done.stdout) == (0, "")
    assert "found no hosts; the inventory holds this machine" in done.stderr
    assert written(tmp_path).hosts[0].local
    again = swarmctl(tmp_path, "init")
    assert again.returncode == 2
    assert "--force sets it aside" in again.stderr


def test_init_looks_at_this_machine_and_names_hosts_that_were_not_reached(tmp_path):
    done = swarmctl(tmp_path, "init", "--hosts", "local,127.0.0.1:1", "--out", str(tmp_path / "x.yaml"))
    assert done.returncode == 3
    assert "1 of 2 hosts were not reached: 127.0.0.1" in done.stderr
    inventory = parse_inventory((tmp_path / "x.yaml").read_text(encoding="utf-8"), "x")
    assert [host.name for host in inventory.hosts] == ["local", "127.0.0.1"]
    assert "orchestrate" in inventory.hosts[0].roles


def test_init_prints_with_out_dash(tmp_path):
    done = swarmctl(tmp_path, "init", "--no-discover", "--hosts", "a,b", "--out", "-")
    assert [host.name for host in parse_inventory(done.stdout, "x").hosts] == ["a", "b"]


def test_init_from_a_folder_is_a_usage_error(tmp_path):
    done = swarmctl(tmp_path, "init", "--from", str(tmp_path))
    assert (done.returncode, "cannot be read" in done.stderr) == (2, True)


def test_init_reads_a_real_ssh_config_and_surveys_real_hosts(make_lab, tmp_path):
    lab = make_lab(mode="loopback", hosts=2)
    environ = {**os.environ, **lab.environ, "HOME": str(tmp_path)}
    out = tmp_path / "inventory.yaml"
    argv = (sys.executable, "-m", "swarmctl", "init", "--ssh-config", str(lab.ssh_config), "--out", str(out))
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, env=environ)
    assert done.returncode == 0, done.stderr
    inventory = parse_inventory(out.read_text(encoding="utf-8"), str(out))
    assert {host.name for host in inventory.hosts} == {host.name for host in lab.hosts}
    assert inventory.ssh_config == str(lab.ssh_config)
    assert sum("orchestrate" in host.roles for host in inventory.hosts) == 1
    with pytest.raises(InventoryError):
        parse_inventory(out.read_text(encoding="utf-8") + "\nsecond: 1\n", str(out))
