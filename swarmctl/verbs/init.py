"""`swarmctl init`: a first inventory from an SSH config or an Ansible inventory, and from what the hosts are.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.errors import SwarmError, UsageError
from swarmctl.fleet.ansible_inventory import ansible_candidates
from swarmctl.fleet.candidates import Candidates, named_candidates, ssh_candidates
from swarmctl.fleet.pool import over_hosts
from swarmctl.fleet.suggest import Found, inventory_text, summary
from swarmctl.fleet.survey import survey
from swarmctl.inventory import Host, parse_inventory

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.facts import Facts
    from swarmctl.fleet.remote import Remote

DISCOVERY_TIMEOUT = 60.0


@dataclass(frozen=True, slots=True)
class Wishes:
    """What `init` was asked for. `source` is `ssh` or the path of an Ansible inventory; `hosts` narrows or
    names."""

    source: str = "ssh"
    hosts: tuple[str, ...] = ()
    ssh_config: str | None = None
    discover: bool = True


@dataclass(frozen=True, slots=True)
class Draft:
    """The inventory's text, and what it was made from."""

    text: str
    found: tuple[Found, ...]
    notes: tuple[str, ...]

    @property
    def unreached(self) -> tuple[Found, ...]:
        """Hosts that were looked for and not reached."""
        return tuple(one for one in self.found if one.problem)


def draft_inventory(wishes: Wishes, connect: Callable[[Host], Remote],
                    report: Callable[[Found], None] = lambda _found: None) -> Draft:
    """Find hosts, look at each unless told not to, and write the text. `report` gets each host as it answers.

    `connect` makes the remote of an inventory host. Raises UsageError where the source cannot be used.
    """
    candidates = find_candidates(wishes)
    hosts = candidates.hosts
    found = {host.name: Found(host) for host in hosts}
    if wishes.discover:
        targets = [Host(name=host.name, ssh=host.ssh) for host in hosts]
        looked = over_hosts(targets, lambda host: _look(connect, host), timeout=DISCOVERY_TIMEOUT)
        for target, result in looked:
            found[target.name] = _found(found[target.name], result)
            report(found[target.name])
    config = str(Path(wishes.ssh_config).expanduser().absolute()) if wishes.ssh_config else None
    text = inventory_text(found.values(), schema=schema_path(), ssh_config=config, notes=candidates.notes)
    parse_inventory(text, "the draft")
    return Draft(text, tuple(found.values()), candidates.notes)


def find_candidates(wishes: Wishes) -> Candidates:
    """Who might join."""
    if wishes.source == "ssh":
        if wishes.hosts:
            return named_candidates(wishes.hosts)
        return ssh_candidates(Path(wishes.ssh_config or "~/.ssh/config").expanduser())
    candidates = ansible_candidates(Path(wishes.source).expanduser())
    if not wishes.hosts:
        return candidates
    known = {host.name for host in candidates.hosts}
    missing = [name for name in wishes.hosts if name not in known]
    if missing:
        raise UsageError(f"{wishes.source} holds no {', '.join(missing)}")
    return Candidates(tuple(host for host in candidates.hosts if host.name in wishes.hosts), candidates.notes)


def write_inventory(path: Path, text: str, *, force: bool) -> Path | None:
    """Write the inventory whole or not at all. With `force`, an old one is set aside; returns where it went.

    Raises UsageError where there is one and `force` is not given.
    """
    if path.exists() and not force:
        raise UsageError(f"{path} exists", hint="--force sets it aside; --out FILE writes elsewhere")
    aside = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        part.write_text(text, encoding="utf-8")
        if path.exists():
            aside = _aside(path)
            path.rename(aside)
        part.rename(path)
    except OSError as exc:
        raise SwarmError(f"{path} cannot be written: {exc.strerror}") from exc
    return aside


def describe(found: Found) -> str:
    """One line on a host for a person."""
    if found.facts is not None:
        return f"{found.candidate.name}: {summary(found.facts)}"
    return f"{found.candidate.name}: {'not reached: ' + found.problem if found.problem else 'not looked at'}"


def schema_path() -> str:
    """The installed JSON Schema, for the line that editors read."""
    return str(files("swarmctl") / "inventory.schema.json")


def _look(connect: Callable[[Host], Remote], host: Host) -> Facts:
    remote = connect(host)
    try:
        return survey(remote, host)
    finally:
        remote.close()


def _found(found: Found, result: Facts | SwarmError) -> Found:
    if isinstance(result, SwarmError):
        hint = f" ({result.hint.splitlines()[0]})" if result.hint else ""
        return Found(found.candidate, problem=result.message + hint)
    return Found(found.candidate, facts=result)


def _aside(path: Path) -> Path:
    """A free name beside the file: inventory.yaml.old, .old2, .old3 …"""
    number = 1
    while True:
        aside = path.with_name(f"{path.name}.old{number if number > 1 else ''}")
        if not aside.exists():
            return aside
        number += 1

