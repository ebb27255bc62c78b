"""Rules about what is served: weights that are gone, templates that differ, servers that end, ports that two
want. Pure."""

from __future__ import annotations

import re
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING

from swarmctl.diagnosis.finding import Finding, there

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmctl.diagnosis.examined import Claim, LayerGone, Patient, ServerExam
    from swarmctl.facts import Listener

#: supervise.sh doubles its pause with every quick end; the third makes it 4 s.
QUICK_ENDS = 4
RECENTLY = 600.0
ENDED = re.compile(r"(\S+) supervisor: the server ended with status (\d+); restart (\d+) in (\d+) s")


def serving_findings(patient: Patient) -> Iterator[Finding]:
    """Weights, templates, supervisors, and servers that do not generate."""
    for claim in patient.claims:
        yield from _weights(patient, claim)
        yield from _template(patient, claim)
    for _, layers in groupby(patient.examined.layers_gone, key=lambda layer: (layer.folder, layer.model)):
        yield _layers(patient, list(layers))
    fights = tuple(_fights(patient))
    yield from fights
    for exam in patient.examined.servers:
        yield from _loop(patient, exam, fought=any(f"{exam.name} " in one.what for one in fights))
    yield from _silent(patient)
    yield from _hidden(patient)


def _weights(patient: Patient, claim: Claim) -> Iterator[Finding]:
    if claim.runtime != "llamacpp":
        return
    host = patient.host.name
    blobs = {blob.sha256: blob.size for blob in patient.facts.blobs}
    for digest, size in claim.files or ((claim.digest, claim.size),):
        found = blobs.get(digest)
        if found == size or not size:
            continue
        blob = f"{patient.facts.data_dir}/blobs/sha256-{digest}"
        yield Finding(
            host, "blob", "error",
            f"the weights of {claim.model} are {'gone' if found is None else 'damaged'}",
            f"{blob} is not there" if found is None else f"{blob} has {found} bytes instead of {size}",
            "the server answers from memory until it ends, and will not start again",
            f"swarmctl up --host {host}" if found is None else
            there(patient.host, f"rm {blob}") + f" && swarmctl up --host {host}")


def _layers(patient: Patient, layers: list[LayerGone]) -> Finding:
    first = layers[0]
    host = patient.host
    wanted = next((claim for claim in patient.claims if claim.runtime == "ollama"
                   and first.model in (claim.called, f"{claim.called}:latest")), None)
    what = ", ".join(f"sha256-{layer.digest[:12]}… " + ("is not there" if layer.found is None else
                     f"has {layer.found} bytes instead of {layer.size}") for layer in dict.fromkeys(layers))
    mend = (f"{there(host, f'ollama pull {first.model}')}    # or: swarmctl models remove {first.model} "
            f"--host {host.name}")
    if wanted:
        body = f"'{{\"model\":\"{first.model}\"}}'"
        forget = f"curl -X DELETE http://127.0.0.1:{wanted.port}/api/delete -d {body}"
        mend = f"{there(host, forget)} && swarmctl up --host {host.name}"
    return Finding(host.name, "blob", "error", f"Ollama lists {first.model} and lacks its weights",
                   f"{first.folder}/blobs: {what}", "it stays listed and fails when asked",
                   mend)


def _template(patient: Patient, claim: Claim) -> Iterator[Finding]:
    if not claim.template or claim.template_said is None or claim.template_said == claim.template:
        return
    yield Finding(
        patient.host.name, "template", "error", f"{claim.model} is served with another chat template",
        f"its weights bring {claim.template[:12]}…, the server on port {claim.port} uses "
        f"{claim.template_said[:12]}… (sha256)",
        "a model that is asked in words it was not trained on answers badly, without any error",
        f"swarmctl down --host {patient.host.name} && swarmctl up --host {patient.host.name}    # without a "
        "chat-template flag")


def _fights(patient: Patient) -> Iterator[Finding]:
    host = patient.host
    by_port: dict[int, list[str]] = {}
    for one in patient.examined.supervisors:
        if one.port is not None:
            by_port.setdefault(one.port, []).append(f"pid {one.pid} of {one.user} for {one.folder}")
    for port, keepers in by_port.items():
        if len(keepers) > 1:
            names = " and ".join(keeper.rpartition("/")[2] for keeper in keepers)
            yield Finding(host.name, "two_supervisors", "error",
                          f"{len(keepers)} supervisors start a server on port {port}: {names} fight",
                          "; ".join(keepers),
                          "only one can listen; the other's server is started and ends without end",
                          there(host, f"kill {_stranger(patient, port)}") + "    # the one not wanted")
    for exam in patient.examined.servers:
        holder = _holder(patient, exam)
        if holder is not None and len(by_port.get(holder.port, ())) < 2:
            yield _taken(patient, exam, holder)


def _stranger(patient: Patient, port: int) -> int:
    """The supervisor to end: one that does not live under this host's data folder, else the younger one."""
    keepers = [one for one in patient.examined.supervisors if one.port == port]
    away = [one for one in keepers if not one.folder.startswith(patient.facts.data_dir.rstrip("/") + "/")]
    return max(away or keepers, key=lambda one: one.pid).pid


def _holder(patient: Patient, exam: ServerExam) -> Listener | None:
    """Who else listens on a server's port, where its log says that it could not."""
    text = exam.option("port")
    ours = {server.pid for server in patient.facts.servers if server.name == exam.name and server.pid}
    if text is None or not text.isdigit() or "bind" not in exam.said:
        return None
    there_now = (one for one in patient.facts.listeners if one.port == int(text))
    return next((one for one in there_now if one.pid not in ours), None)


def _taken(patient: Patient, exam: ServerExam, holder: Listener) -> Finding:
    count, line = exam.said["bind"]
    who = " ".join(word for word in (holder.user, holder.command or "") if word) or "another program"
    service = patient.examined.ollama_service == "active" and "ollama" in who
    return Finding(
        patient.host.name, "two_supervisors", "error",
        f"port {holder.port} of {exam.name} is taken by another program",
        f"{who}{f', pid {holder.pid}' if holder.pid else ''} listens there; {count} times in the log: {line}",
        "the server is started and ends without end, and what answers on that port is not what was asked for",
        there(patient.host, "sudo systemctl disable --now ollama") if service else
        f"name another `port` for {exam.name}, then: swarmctl up --host {patient.host.name}")


def _loop(patient: Patient, exam: ServerExam, *, fought: bool) -> Iterator[Finding]:
    _, line = exam.said.get("ended", (0, ""))
    said = ENDED.search(line)
    if said is None or fought or int(said[4]) < QUICK_ENDS:
        return
    age = patient.examined.clock - _moment(said[1])
    running = any(server.pid for server in patient.facts.servers if server.name == exam.name)
    if running and not 0 <= age < RECENTLY:
        return
    memory = exam.said.get("memory")
    yield Finding(
        patient.host.name, "restarts", "error", f"{exam.name} ends again and again",
        f"restarted {said[3]} times, last with status {said[2]}"
        + (f"; its log says: {memory[1]}" if memory else ""),
        "each start loads the model anew and answers nobody",
        f"swarmctl logs {patient.host.name} {exam.name}    # says why"
        + ("; a smaller `context` or `parallel` needs less memory" if memory else ""))


def _moment(text: str) -> float:
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z").timestamp()
    except ValueError:
        return 0.0


def _silent(patient: Patient) -> Iterator[Finding]:
    for claim in patient.claims:
        if claim.state in ("", "ready", "idle", "loading", "starting"):
            continue
        yield Finding(
            patient.host.name, "no_token", "error", f"{claim.model} does not generate",
            f"port {claim.port}: {claim.state}" + (f", {claim.detail}" if claim.detail else ""),
            "questions go to other hosts, or nowhere",
            f"swarmctl up --host {patient.host.name}    # `swarmctl logs {patient.host.name}` says why")


def _hidden(patient: Patient) -> Iterator[Finding]:
    for folder in patient.examined.hidden:
        yield Finding(
            patient.host.name, "blob", "info", "whether Ollama's weights are all there cannot be seen",
            f"{patient.facts.user} may not read {folder}",
            "a model whose blob is gone is still listed, and fails when it is asked",
            there(patient.host, f"sudo usermod -aG ollama {patient.facts.user}"))
