"""From the Ollama that was seen on a host to what is wanted of it, as steps. Pure.

An Ollama that somebody runs is adopted: nothing of it is changed but the models that are added. Laws, each
with a test: the same inputs give the same plan; `plan(want, seen-after-apply) == ()`; no step ever stops,
starts or installs where one is adopted. Models are never removed here: `swarmctl models prune` does that.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from swarmctl.errors import DiskFull, SwarmError
from swarmctl.facts.ollama import OWN
from swarmctl.inventory import OllamaWish, placed_on
from swarmctl.runtimes.ollama_names import full_name, release_tag, tag_name
from swarmctl.runtimes.ollama_serve import (
    RUNTIME_FOLDER,
    parameters,
    served_context,
    server_spec,
    shape_of,
)
from swarmctl.runtimes.versions import archive_hash, version_to_run
from swarmctl.steps import CreateModel, InstallRuntime, MeasureSpeed, PullModel, StartServer, Step

if TYPE_CHECKING:
    from collections.abc import Iterator

    from swarmctl.facts import Facts, OllamaSeen, ServerSeen
    from swarmctl.inventory import Placement
    from swarmctl.runtimes.base import Want
    from swarmctl.runtimes.llamacpp_fit import Room
    from swarmctl.runtimes.ollama_serve import Shape
    from swarmctl.steps import ServerSpec

MODES = {"systemd": "the system service ollama.service", "docker": "a container", "app": "the desktop app",
         "process": "a process"}


def plan_ollama(want: Want, seen: Facts, left: Room | None = None) -> tuple[Step, ...]:
    """The steps that make Ollama on a host what is wanted; empty when it is. `left` is the memory that other
    runtimes leave.

    Raises SwarmError where no steps could: a model that does not fit, a port that somebody else holds,
    nothing there to adopt.
    """
    if not placed_on(want.host, "ollama"):
        return ()
    shape = shape_of(want, seen, left)
    there = adopted(want, seen)
    if there is not None:
        models = tuple(_models(want, seen, there, shape, adopts=True))
        _check_disk(want, seen, models)
        return (*models, *_measures(want, seen, shape, adopts=True, anew=False))
    spec = wanted_server(want, seen, left)
    assert spec is not None
    _check_port(want, seen)
    own = _own(want, seen)
    models = tuple(_models(want, seen, own, shape, adopts=False))
    _check_disk(want, seen, models)
    server = next((server for server in seen.servers if server.name == OWN), None)
    start = tuple(_start(spec, server, shape))
    return (*_install(want, seen), *start, *models,
            *_measures(want, seen, shape, adopts=False, anew=bool(start)))


def adopted(want: Want, seen: Facts) -> OllamaSeen | None:
    """The Ollama on this host that is used as it is, or None where swarmctl runs its own."""
    wish = want.host.ollama or OllamaWish()
    if wish.manage == "own" or not placed_on(want.host, "ollama"):
        return None
    found = next((one for one in seen.ollamas if one.port == wish.port and one.mode != "own"), None)
    if found is None and wish.manage == "adopt":
        raise SwarmError(f"ollama.manage is adopt, and nobody's Ollama answers on 127.0.0.1:{wish.port}",
                         host=want.host.name,
                         hint="start it there, correct ollama.port, or write manage: auto")
    return found


def wanted_server(want: Want, seen: Facts, left: Room | None = None) -> ServerSpec | None:
    """Swarmctl's own Ollama as it is wanted; None where none is."""
    if not placed_on(want.host, "ollama") or adopted(want, seen) is not None:
        return None
    return server_spec(want, seen, version_to_run("ollama", want, seen), shape_of(want, seen, left))


def notes(want: Want, seen: Facts) -> tuple[str, ...]:
    """What a person should know of a plan that has no step for it: what is adopted, and what that means."""
    there = adopted(want, seen)
    if there is None:
        return ()
    by = f" of user {there.user}" if there.user else ""
    said = [f"adopts Ollama {there.version} on 127.0.0.1:{there.port}, which runs as {MODES[there.mode]}{by}:"
            " it is left as it is"]
    if there.exposed:
        said.append(f"port {there.port} is open beyond loopback: whoever reaches the host may use and delete "
                    "its models; set OLLAMA_HOST=127.0.0.1 for it")
    return tuple(said)


def tag_of(want: Want, placement: Placement) -> str:
    """The name in Ollama of what a placement wants."""
    wish = want.wishes[placement.model]
    if wish.pulled:
        return full_name(wish.pulled)
    if wish.release:
        return release_tag(wish.served_as, wish.release)
    return tag_name(placement.model, want.models[placement.model].sha256)


def speed_name(tag: str) -> str:
    """The part of a speed file's name that stands for a model."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", tag)


def _own(want: Want, seen: Facts) -> OllamaSeen | None:
    port = (want.host.ollama or OllamaWish()).port
    return next((one for one in seen.ollamas if one.port == port and one.mode == "own"), None)


def _install(want: Want, seen: Facts) -> Iterator[InstallRuntime]:
    version = version_to_run("ollama", want, seen)
    there = sorted(runtime.key for runtime in seen.runtimes if runtime.name == "ollama")
    if version in there:
        return
    if seen.system != "Linux":
        raise SwarmError(f"swarmctl installs Ollama on Linux only, and this is {seen.system}",
                         host=want.host.name, hint="install and start the Ollama app there: it is adopted")
    have = f"only {', '.join(there)}" if there else "no release"
    yield InstallRuntime(version, version, ollama_platform(seen), (),
                         f"{seen.data_dir}/{RUNTIME_FOLDER} holds {have}", "ollama",
                         archive_hash("ollama", want, version))


def ollama_platform(seen: Facts) -> str:
    """The platform as Ollama's archives are named: linux-amd64, linux-arm64."""
    machine = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
    return f"{seen.system.lower()}-{machine.get(seen.machine, seen.machine)}"


def _start(spec: ServerSpec, server: ServerSeen | None, shape: Shape) -> Iterator[StartServer]:
    if server is None:
        reason = "no Ollama runs here"
    elif server.spec != spec.digest:
        reason = "what is wanted of it has changed"
    elif server.supervisor is None:
        reason = "nothing supervises it"
    elif server.pid is None:
        reason = f"it is down, after {server.restarts} restarts"
    else:
        return
    env = " ".join(f"{key}={value}" for key, value in sorted(spec.env.items()) if key.startswith("OLLAMA_"))
    note = f"; {shape.note}" if shape.note else ""
    yield StartServer(spec, f"{reason} ({env}{note})")


def _models(want: Want, seen: Facts, there: OllamaSeen | None, shape: Shape, *,
            adopts: bool) -> Iterator[CreateModel | PullModel]:
    names = {model.name for model in there.models} if there else set(seen.ollama_kept)
    lacking = set() if adopts else set(seen.ollama_lacking)
    for placement, port in placed_on(want.host, "ollama"):
        tag = tag_of(want, placement)
        if tag in names - lacking:
            continue
        anew = tag in names
        reason = "it lists that model and lacks its weights" if anew else "it has no model of that name"
        if want.wishes[placement.model].pulled:
            yield PullModel(placement.model, tag, port, reason, anew)
            continue
        model = want.models[placement.model]
        given = parameters(want, seen, placement, shape.fits[model.name], adopted=adopts)
        if model.adapter is None:
            yield CreateModel(model.name, tag, model.sha256, model.size, port, given, reason, anew)
            continue
        there_is, base = _base(want, placement, names - lacking)
        if not there_is:
            names.add(base)
            yield CreateModel(model.name, base, model.sha256, model.size, port, given,
                              f"{tag} is an adapter over it", base in lacking)
        yield CreateModel(model.name, tag, model.adapter.sha256, model.adapter.size, port, given, reason,
                          anew, base)


def _base(want: Want, placement: Placement, names: set[str]) -> tuple[bool, str]:
    """The Ollama model that a release's adapter goes over, and whether it is there."""
    model, name = want.models[placement.model], want.wishes[placement.model].served_as
    plain = tag_name(name, model.sha256)
    over = release_tag(name, model.adapter.over) if model.adapter and model.adapter.over else plain
    found = next((tag for tag in (over, plain) if tag in names), None)
    return found is not None, found or plain


def _measures(want: Want, seen: Facts, shape: Shape, *, adopts: bool, anew: bool) -> Iterator[MeasureSpeed]:
    for placement, port in placed_on(want.host, "ollama"):
        tag = tag_of(want, placement)
        if anew or speed_name(tag) not in seen.ollama_speeds:
            yield MeasureSpeed(OWN, placement.model, port,
                               served_context(want, placement, shape, adopted=adopts),
                               "its speed here has not been measured", tag,
                               want.embeds(placement.model))


def _check_disk(want: Want, seen: Facts, models: tuple[CreateModel | PullModel, ...]) -> None:
    """Ollama keeps the bytes that came and the model it makes of them: twice the size, for a while."""
    new = sum(2 * step.size for step in models if isinstance(step, CreateModel))
    if new > seen.disk.free:
        raise DiskFull(f"making the models in Ollama takes {new / 1e6:,.0f} MB for a while, twice their size,"
                       f" and {seen.disk.free / 1e6:,.0f} MB are free at {seen.data_dir}",
                       host=want.host.name,
                       hint="free some space there, or name another data_dir in the inventory")


def _check_port(want: Want, seen: Facts) -> None:
    """Refuse a port that somebody else holds."""
    port = (want.host.ollama or OllamaWish()).port
    ours = {server.pid for server in seen.servers if server.pid is not None}
    for listener in seen.listeners:
        if listener.port != port or (listener.pid is not None and listener.pid in ours):
            continue
        answers = any(one.port == port for one in seen.ollamas)
        who = f"{listener.command or 'another program'}{f' pid {listener.pid}' if listener.pid else ''}"
        raise SwarmError(f"port {port}, wanted for Ollama, is taken by {who} on {listener.address}",
                         host=want.host.name,
                         hint="it is an Ollama: write manage: auto to use it, or say another ollama.port"
                         if answers else "stop it, or say another ollama.port")
