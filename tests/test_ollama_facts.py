"""The Ollama servers of a host, from what the probe quotes. Process, exposure and models were seen for real;
systemd, Docker and macOS are written records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swarmctl.facts import OllamaLoaded, OllamaModel, Speed, parse_facts

PLAIN = (Path(__file__).parent / "facts" / "debian-x86-dash.txt").read_text(encoding="utf-8")
TAGS = {"models": [{"name": "qwen3:8b", "size": 5_200_000_000, "digest": "500a1f067a9f",
                    "details": {"quantization_level": "Q4_K_M"}}, {"name": "b:1", "size": None}, "odd"]}
PS = {"models": [{"name": "qwen3:8b", "size": 6_000_000_000, "size_vram": 3_000_000_000}]}


def ollamas(*lines: str, listeners: tuple[str, ...] = ()):
    """The facts of the Debian recording with an Ollama section."""
    nonce = PLAIN.split("swarmctl-probe 1 ")[1].split()[0]
    section = "\n".join((f"@@{nonce} ollama", *lines, ""))
    text = PLAIN.replace(f"@@{nonce} end", f"{section}\n@@{nonce} end")
    if listeners:
        text = text.replace("by ss\n", "by ss\n" + "\n".join((*listeners, "")))
    return parse_facts(text).ollamas


def one(*lines: str, **more):
    (found,) = ollamas("ollama 11434", 'version {"version":"0.33.0"} ', *lines, **more)
    return found


def test_version_models_and_what_is_loaded_are_read():
    found = one(f"tags {json.dumps(TAGS)}", f"ps {json.dumps(PS)}", "pid 4242", "user ada")
    assert (found.version, found.mode, found.pid, found.user) == ("0.33.0", "process", 4242, "ada")
    assert found.models == (OllamaModel("b:1", "", 0, ""),
                            OllamaModel("qwen3:8b", "500a1f067a9f", 5_200_000_000, "Q4_K_M"))
    assert found.loaded == (OllamaLoaded("qwen3:8b", 6_000_000_000, 3_000_000_000),)


@pytest.mark.parametrize(("lines", "mode"), [
    (("pid 900", "cgroup 0::/system.slice/ollama.service"), "systemd"),
    (("pid 900", "unit MainPID=900 ActiveState=active"), "systemd"),
    (("unit MainPID=900 ActiveState=active",), "systemd"),
    (("docker ollama/ollama 0.0.0.0:11434->11434/tcp",), "docker"),
    (("pid 900", "arguments /usr/bin/docker-proxy -proto tcp -host-port 11434"), "docker"),
    (("pid 900", "cgroup 0::/docker/5f3a"), "docker"),
    (("pid 900", "arguments /Applications/Ollama.app/Contents/Resources/ollama serve"), "app"),
    (("pid 900", "unit MainPID=0 ActiveState=inactive", "arguments /usr/local/bin/ollama serve"), "process"),
])
def test_how_it_runs_follows_from_process_unit_and_container(lines, mode):
    assert one(*lines).mode == mode


def test_one_that_listens_beyond_loopback_is_exposed():
    line = 'LISTEN 0 4096 *:11434 *:* users:(("ollama",pid=900,fd=3)) uid:1000'
    assert one("pid 900", listeners=(line,)).exposed
    line = line.replace("*:11434", "127.0.0.1:11434")
    assert not one("pid 900", listeners=(line,)).exposed


@pytest.mark.parametrize("lines", [
    ("ollama 11434",), ("ollama 11434", "version <html>"), ("ollama 11434", 'version {"version":7}'),
    ("ollama x", 'version {"version":"1"}'), ("version {}",), ("ollama 11434", "version [[[["),
])
def test_what_does_not_answer_as_ollama_does_is_none(lines):
    assert ollamas(*lines) == ()


def test_manifests_and_speeds_of_our_own_are_read_while_it_is_down():
    nonce = PLAIN.split("swarmctl-probe 1 ")[1].split()[0]
    sections = f"""@@{nonce} manifests
./registry.ollama.ai/library/small/0a1b2c3d4e5f
./registry.ollama.ai/ada/tuned/latest
./hf.co/ada/model/Q4_K_M
./odd
@@{nonce} speeds
small_0a1b2c3d4e5f.json {{"prefill": 100.0, "decode": 10.0, "overhead": 0.1, "load": 2.0}}
bad.json nonsense
"""
    found = parse_facts(PLAIN.replace(f"@@{nonce} end", f"{sections}@@{nonce} end"))
    assert found.ollama_kept == ("ada/tuned:latest", "hf.co/ada/model:Q4_K_M", "small:0a1b2c3d4e5f")
    assert found.ollama_speeds == {"small_0a1b2c3d4e5f": Speed(100.0, 10.0, 0.1, 2.0)}


LIST = """NAME             ID              SIZE      MODIFIED
qwen3:8b         500a1f067a9f    5.2 GB    2 days ago
nomic-embed-text:latest    0a109f422b47    274 MB    8 hours ago
"""
RUNNING = """NAME            ID              SIZE      PROCESSOR          CONTEXT    UNTIL
qwen3:8b        500a1f067a9f    6.0 GB    {processor}    4096       4 minutes from now
"""


def in_words(processor: str = "100% GPU", version: str = "ollama version is 0.33.0"):
    tables = [text.replace("\n", "\t") for text in (LIST, RUNNING.format(processor=processor))]
    found = ollamas("ollama 11434", f"version-words {version}", f"list-words {tables[0]}",
                    f"ps-words {tables[1]}")
    return found[0] if found else None


@pytest.mark.parametrize(("processor", "share"), [
    ("100% CPU", 0.0), ("100% GPU", 1.0), ("48%/52% CPU/GPU", 0.52), ("1%/99% CPU/GPU", 0.99)])
def test_where_nothing_speaks_http_the_clients_tables_tell_the_same(processor, share):
    found = in_words(processor)
    assert found.version == "0.33.0"
    assert found.models == (OllamaModel("nomic-embed-text:latest", "0a109f422b47", 274_000_000),
                            OllamaModel("qwen3:8b", "500a1f067a9f", 5_200_000_000))
    assert found.loaded == (OllamaLoaded("qwen3:8b", 6_000_000_000, int(6_000_000_000 * share)),)


def test_what_the_clients_tables_do_not_say_is_not_guessed():
    assert in_words("Unknown").loaded == ()
    assert in_words(version="Warning: client version is 0.33.0") is None
    assert one("ps-words NAME    ID\tx    y\t", "list-words nonsense").models == ()
