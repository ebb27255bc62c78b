"""Which version of a runtime a host is to run, from its history and the inventory. Pure.

A host stays with the version it runs until `upgrade` or `rollback` moves it: `up` gives the wanted one only
to a host that has none. What was left because it was worse is held: nothing goes there again unasked.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from swarmctl.inventory import LlamaCppWish, OllamaWish, placed_on
from swarmctl.runtimes.llamacpp_build import LLAMACPP, version_of
from swarmctl.runtimes.ollama_serve import OLLAMA

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from swarmctl.facts import Facts, VersionChange
    from swarmctl.runtimes.base import Want

#: the versions this swarmctl knows
KNOWN = {"llamacpp": LLAMACPP, "ollama": OLLAMA}
#: what may stand in a path and in an address
VERSION = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){1,3}([a-z0-9.-]{1,20})?")
TITLES = {"llamacpp": "llama.cpp", "ollama": "Ollama"}


def version_to_run(runtime: str, want: Want, seen: Facts) -> str:
    """What `want` says outright, else what is in force, else what is wanted."""
    return want.versions.get(runtime) or in_force(runtime, seen) or wanted_version(runtime, want, seen)


def wanted_version(runtime: str, want: Want, seen: Facts) -> str:
    """The inventory's version; without one the newer of the one in force and the one this swarmctl knows."""
    named = _wish(runtime, want).version
    return named or max(KNOWN[runtime], in_force(runtime, seen) or "0", key=version_key)


def in_force(runtime: str, seen: Facts) -> str | None:
    """The version a host stays with: the last word of its history, else what serves, else the newest of what
    is installed; None where there is none."""
    history = changes(runtime, seen)
    if history:
        return history[-1].version
    there = installed(runtime, seen)
    serving = [_version(runtime, server.build) for server in seen.servers if server.build]
    return max([one for one in serving if one in there] or there, key=version_key, default=None)


def installed(runtime: str, seen: Facts) -> tuple[str, ...]:
    """The versions of a runtime that lie on a host whole, oldest first."""
    found = {_version(runtime, one.key) for one in seen.runtimes if one.name == runtime}
    return tuple(sorted(found, key=version_key))


def changes(runtime: str, seen: Facts) -> tuple[VersionChange, ...]:
    """The history of a runtime on a host, oldest first."""
    return tuple(change for change in seen.versions if change.runtime == runtime)


def held(runtime: str, seen: Facts) -> Mapping[str, VersionChange]:
    """Versions that were left, each with when and why; one that was kept later is held no more."""
    found: dict[str, VersionChange] = {}
    for change in changes(runtime, seen):
        if change.event in ("returned", "rolled-back"):
            found[change.other] = change
            found.pop(change.version, None)
        elif change.event == "kept":
            found.pop(change.version, None)
    return found


def arrival(runtime: str, seen: Facts) -> VersionChange | None:
    """How the version in force came: its `other` is where a rollback goes. None where nothing came before."""
    version = in_force(runtime, seen)
    return next((change for change in reversed(changes(runtime, seen))
                 if change.event == "kept" and change.version == version), None)


def archive_hash(runtime: str, want: Want, version: str) -> str | None:
    """The hash that the inventory names for the archive of a version."""
    wish = _wish(runtime, want)
    return wish.sha256 if version == (wish.version or KNOWN[runtime]) else None


def version_notes(want: Want, seen: Facts, runtimes: Sequence[str]) -> Iterator[str]:
    """What `up` says where another version is wanted than the one that stays."""
    for runtime in runtimes:
        runs = in_force(runtime, seen)
        wanted = wanted_version(runtime, want, seen)
        if not placed_on(want.host, runtime) or runs in (None, wanted):
            continue
        if before := held(runtime, seen).get(wanted):
            yield (f"{TITLES[runtime]} {runs} stays: {held_words(before)}; "
                   f"`swarmctl upgrade {want.host.name} --to {wanted}` tries it again")
        else:
            yield f"{TITLES[runtime]} {runs} runs, {wanted} is wanted: `swarmctl upgrade` moves it"


def held_words(change: VersionChange) -> str:
    """Why a version is held, as a person reads it."""
    why = f" ({'; '.join(change.why)})" if change.why else ""
    return f"{change.other} was left on {change.at[:10] or 'a day unknown'}{why}"


def version_key(version: str) -> tuple[int, ...]:
    """A version as its numbers, to compare."""
    return tuple(int(part) for part in re.findall(r"[0-9]+", version)[:6])


def _version(runtime: str, key: str) -> str:
    return version_of(key) if runtime == "llamacpp" else key


def _wish(runtime: str, want: Want) -> LlamaCppWish | OllamaWish:
    if runtime == "llamacpp":
        return want.host.llamacpp or LlamaCppWish()
    return want.host.ollama or OllamaWish()
