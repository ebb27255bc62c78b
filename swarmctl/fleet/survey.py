"""Everything about a host in one round trip: the probe goes over standard input, nothing is installed."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from swarmctl.errors import SwarmError
from swarmctl.facts import parse_facts
from swarmctl.facts.pulse import parse_pulse
from swarmctl.inventory import OLLAMA_PORT, OllamaWish, placement_ports

if TYPE_CHECKING:
    from swarmctl.facts import Facts
    from swarmctl.facts.pulse import Pulse
    from swarmctl.fleet.remote import Remote
    from swarmctl.inventory import Host

SURVEY_TIMEOUT = 30.0
PULSE_TIMEOUT = 10.0


def survey(remote: Remote, host: Host, *, timeout: float = SURVEY_TIMEOUT, glance: bool = False) -> Facts:
    """Ask a host what it is and has. One `remote.run`; raises RemoteErrors, and SwarmError on an answer that
    is none.

    A glance leaves out what only plans need: the system's name, libc, tools, listeners, systemd, Ollama.
    """
    ollama = (host.ollama or OllamaWish()).port
    ports = sorted({str(port) for port in placement_ports(host)} - {str(ollama)})
    if ollama != OLLAMA_PORT:  # that one is always asked
        ports.append(f"ollama={ollama}")
    script = b"SWARMCTL_GLANCE=%s\n" % (b"yes" if glance else b"") + _probe()
    done = remote.run(("sh", "-s", "--", host.data_dir, *ports), timeout=timeout, stdin=script)
    try:
        return parse_facts(done.stdout)
    except SwarmError as exc:
        raise SwarmError(exc.message, host=host.name, hint=exc.hint) from exc


def pulse(remote: Remote, data_dir: str, *, timeout: float = PULSE_TIMEOUT) -> Pulse:
    """What a host does at this moment, for a sixth of a survey's cost. Raises RemoteErrors, and SwarmError on
    an answer that is none."""
    done = remote.run(("sh", "-s", "--", data_dir), timeout=timeout,
                      stdin=b"SWARMCTL_GLANCE=pulse\n" + _probe())
    try:
        return parse_pulse(done.stdout, data_dir)
    except SwarmError as exc:
        raise SwarmError(exc.message, host=remote.host, hint=exc.hint) from exc


@cache
def _probe() -> bytes:
    return (files("swarmctl.fleet") / "probe.sh").read_bytes()
