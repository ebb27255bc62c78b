"""Where a first inventory's hosts come from: the aliases of an SSH config, or an Ansible inventory.

Only names are taken from an SSH config: what they mean is OpenSSH's business (see ssh_config). Names are made
fit for an inventory here; what has to be left out is said in `notes`.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from glob import iglob
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DEEPEST_INCLUDE = 16
MOST_FILES = 1000
#: Forges that people keep in their SSH config; they run no models.
FORGES = ("github.com", "gitlab.com", "bitbucket.org", "codeberg.org", "ssh.dev.azure.com")
FORGE_LINES = {("user", ("git",)), *(("hostname", (forge,)) for forge in FORGES)}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A host that might join: its inventory name, what `ssh` calls it, and where it was found."""

    name: str
    ssh: str
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Hosts in the order they were found, and what was left out and why."""

    hosts: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()


def named_candidates(targets: Iterable[str]) -> Candidates:
    """Hosts that a person named: aliases, or [user@]address[:port]."""
    return fit((target, target, "") for target in targets)


def ssh_candidates(config: Path) -> Candidates:
    """The aliases of an SSH config, Includes followed. Wildcards, negations, `Match` and forges are no hosts.

    A config that does not exist holds none. Raises UsageError where one cannot be read.
    """
    found: dict[str, str] = {}
    forges: dict[str, str] = {}
    aliases: tuple[str, ...] = ()
    for key, words, where in _ssh_lines(config, [0], DEEPEST_INCLUDE):
        if key == "match":
            aliases = ()
        elif key == "host":
            aliases = tuple(word for word in words if not re.search(r"[*?!%]", word))
            for alias in aliases:
                found.setdefault(alias, where)
        elif (key, words[:1]) in FORGE_LINES:
            forges |= dict.fromkeys(aliases, f"{key} {words[0]}")
    forges |= {name: "by its name" for name in found if name in FORGES}
    hosts = fit((name, name, where) for name, where in found.items() if name not in forges)
    notes = [f"{name}: a forge, not a host ({why})" for name, why in forges.items()]
    return Candidates(hosts.hosts, (*hosts.notes, *notes))


def fit(found: Iterable[tuple[str, str, str]]) -> Candidates:
    """(name, target, origin) as candidates: names that an inventory takes, each once; targets that `ssh`
    takes."""
    hosts: dict[str, Candidate] = {}
    notes = []
    for wanted, target, origin in found:
        if not _is_target(target):
            notes.append(f"{target[:60]!r}: not an SSH destination")
            continue
        name = _unique(_name(wanted), hosts)
        if any(host.ssh == target for host in hosts.values()):
            continue
        hosts[name] = Candidate(name, target, origin)
    return Candidates(tuple(hosts.values()), tuple(notes))


def _is_target(text: str) -> bool:
    return 0 < len(text) <= 255 and text.isprintable() and " " not in text and not text.startswith("-")


def _name(text: str) -> str:
    """An inventory name close to `text`: an address loses its user and port."""
    plain = text.rpartition("@")[2]
    if plain.count(":") == 1 or "[" in plain:
        plain = re.sub(r"^\[?(.*?)\]?(:[0-9]+)?$", r"\1", plain)
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")
    return clean[:63] or "host"


def _unique(name: str, taken: Iterable[str]) -> str:
    used = set(taken)
    number = 2
    unique = name
    while unique in used:
        unique = f"{name[:58]}-{number}"
        number += 1
    return unique


def _ssh_lines(config: Path, read: list[int], depth: int) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """(keyword, arguments, file) of every line, Includes in place. See ssh_config(5)."""
    for line in _text(config).splitlines():
        key, words = _split(line)
        if key != "include":
            if key:
                yield key, words, str(config)
            continue
        for pattern in words if depth else ():
            path = Path(pattern).expanduser() if pattern.startswith("~") else Path.home() / ".ssh" / pattern
            for name in sorted(iglob(str(path))):  # noqa: PTH207  Path.glob takes no absolute pattern
                read[0] += 1
                if read[0] <= MOST_FILES and Path(name).is_file():
                    yield from _ssh_lines(Path(name), read, depth - 1)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}") from exc


def _split(line: str) -> tuple[str, tuple[str, ...]]:
    """`Key value` or `Key=value`, quotes and comments as ssh_config(5) has them."""
    found = re.match(r"\s*([A-Za-z]+)(?:\s*=\s*|\s+)(.*)", line)
    if not found:
        return "", ()
    try:
        words = tuple(shlex.split(found[2], comments=True))
    except ValueError:  # an open quote: OpenSSH refuses the whole file, and says so itself when it is asked
        words = tuple(found[2].split())
    return found[1].lower(), words
