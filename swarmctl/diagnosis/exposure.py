"""The rule about model servers that strangers can use. Pure.

A model server has no password: whoever reaches the port uses the GPU, reads loaded models and, with Ollama,
deletes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swarmctl.diagnosis.finding import Finding, there
from swarmctl.inventory import placement_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmctl.diagnosis.examined import Patient
    from swarmctl.facts import Listener

OLLAMA_PORT = 11434
SERVERS = ("ollama", "llama-server", "llama_cpp", "vllm")
EVERYWHERE = ("*", "0.0.0.0", "::", "[::]")  # noqa: S104  we look for those who bind it


def exposed_servers(patient: Patient) -> tuple[tuple[Listener, str], ...]:
    """(listener, request path) of every model server that listens beyond loopback, once a port."""
    ours = {*placement_ports(patient.host), *(claim.port for claim in patient.claims)}
    ollamas = {OLLAMA_PORT, *(one.port for one in patient.facts.ollamas)}
    found: dict[int, tuple[Listener, str]] = {}
    for listener in patient.facts.listeners:
        command = (listener.command or "").lower()
        known = listener.port in ours | ollamas or any(name in command for name in SERVERS)
        if listener.exposed and known and listener.port not in found:
            ollama = listener.port in ollamas - ours or "ollama" in command
            found[listener.port] = (listener, "/api/version" if ollama else "/health")
    return tuple(found.values())


def proof_targets(patient: Patient, listener: Listener) -> tuple[str, ...]:
    """Addresses under which others reach a listener."""
    if listener.address not in EVERYWHERE:
        return (listener.address,)
    return patient.examined.addresses


def exposure_findings(patient: Patient) -> Iterator[Finding]:
    """One finding an exposed port, with the request that proves it."""
    host = patient.host
    for listener, path in exposed_servers(patient):
        targets = proof_targets(patient, listener)
        request = f"curl http://{bracketed(targets[0]) if targets else host.name}:{listener.port}{path}"
        proof = next((said for (_, port), said in patient.proofs.items() if port == listener.port), "")
        holder = " ".join(word for word in (listener.user, listener.command or "", _pid(listener)) if word)
        tried = f"`{request}` from here: {proof}" if proof else f"try `{request}` from another machine"
        yield Finding(
            host.name, "exposed", "error", f"port {listener.port} is open to the network",
            f"it listens on {listener.address}:{listener.port} ({holder or 'whose it is cannot be seen'}); "
            f"{tried}",
            "model servers ask no password: anybody who reaches the port may use, load and delete models",
            _mend(patient, listener, path))


def bracketed(address: str) -> str:
    """An address as a URL has it."""
    return f"[{address}]" if ":" in address else address


def _pid(listener: Listener) -> str:
    return f"pid {listener.pid}" if listener.pid else ""


def _mend(patient: Patient, listener: Listener, path: str) -> str:
    host = patient.host
    if listener.pid in {server.pid for server in patient.facts.servers if server.pid}:
        return f"swarmctl down --host {host.name} && swarmctl up --host {host.name}"
    if path != "/api/version":
        return there(host, f"kill {listener.pid or 'PID'}") + "    # and start it with --host 127.0.0.1"
    mode = next((one.mode for one in patient.facts.ollamas if one.port == listener.port), "")
    if mode == "docker":
        return there(host, "docker ps") + f"    # publish the port as -p 127.0.0.1:{listener.port}:11434"
    if mode == "systemd" or patient.examined.ollama_service == "active":
        return there(host, "sudo systemctl edit ollama") + "    # Environment=OLLAMA_HOST=127.0.0.1"
    return (there(host, f"kill {listener.pid or 'PID'}")
            + f"    # and start it with OLLAMA_HOST=127.0.0.1:{listener.port}: swarmctl comes through SSH")
