"""Hosts of an Ansible inventory, INI or YAML: names, ranges, groups, children and connection variables.

What a plain file says is read; host_vars and group_vars folders, templates, scripts and plugins are not,
because that would take Ansible itself. See its guide "How to build your inventory".
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from itertools import islice, product
from typing import TYPE_CHECKING

from swarmctl.errors import UsageError
from swarmctl.fleet.candidates import Candidates, fit
from swarmctl.inventory import nodes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MOST_HOSTS = 5000
LONGEST_FILE = 4_000_000
DEEPEST_GROUP = 20
KEY_FILE = "ansible_ssh_private_key_file"
#: ansible_ssh_* are the names of Ansible 1, still understood.
NAMES = {"ansible_ssh_host": "ansible_host", "ansible_ssh_port": "ansible_port",
         "ansible_ssh_user": "ansible_user", "ansible_private_key_file": KEY_FILE}
WANTED = ("ansible_host", "ansible_port", "ansible_user", "ansible_connection", KEY_FILE)

Variables = dict[str, str]


@dataclass(slots=True)
class Group:
    """One group while it is read."""

    hosts: dict[str, Variables] = field(default_factory=dict)
    children: list[str] = field(default_factory=list)
    variables: Variables = field(default_factory=dict)


Groups = dict[str, Group]


def ansible_candidates(path: Path) -> Candidates:
    """The hosts of an Ansible inventory file. Raises UsageError where it is not one."""
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST_FILE).decode("utf-8", errors="replace")
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror}") from exc
    return parse_ansible(text, str(path))


def parse_ansible(text: str, source: str) -> Candidates:
    """The hosts in the text of an Ansible inventory; `source` names it in errors."""
    groups = _yaml_groups(text, source) if _looks_like_yaml(text) else _ini_groups(text)
    hosts = _variables(groups)
    if not hosts:
        raise UsageError(f"{source} holds no hosts", hint="--from takes `ssh`, or an Ansible inventory")
    named = {name: group for name, group in groups.items() if name not in ("all", "ungrouped")}
    found = fit((host, _target(host, known), ", ".join(name for name in named if host in named[name].hosts))
                for host, known in hosts.items())
    keys = [f"{host}: set IdentityFile {known[KEY_FILE]} for it in ~/.ssh/config"
            for host, known in hosts.items() if KEY_FILE in known]
    return Candidates(found.hosts, (*found.notes, *keys))


def _looks_like_yaml(text: str) -> bool:
    for line in text.splitlines():
        plain = line.strip()
        if plain and not plain.startswith(("#", ";")):
            return re.match(r"---|\{|[\"']?[\w.-]+[\"']?:(\s|$)", plain) is not None
    return False


def _target(host: str, known: Variables) -> str:
    """What `ssh` is told: the alias itself, unless the inventory says more."""
    if known.get("ansible_connection") == "local":
        return "local"
    address = known.get("ansible_host", host)
    port, user = known.get("ansible_port", ""), known.get("ansible_user", "")
    if ":" in address and port:
        address = f"[{address}]"
    return (f"{user}@" if user else "") + address + (f":{port}" if port else "")


def _variables(groups: Groups) -> dict[str, Variables]:
    """Host → its connection variables: its own win over its groups', a child group's over its parent's."""
    merged: dict[str, tuple[Variables, Variables]] = {}
    order = sorted(groups, key=lambda name: _depth(groups, name))
    for name in order:
        for member in _members(groups, name, DEEPEST_GROUP):
            for host, own in groups[member].hosts.items():
                inherited, known = merged.setdefault(host, ({}, {}))
                inherited.update(groups[name].variables)
                known.update(own)
    return {host: _plain({**inherited, **own}) for host, (inherited, own) in merged.items()}


def _members(groups: Groups, name: str, depth: int) -> set[str]:
    """A group and all groups below it."""
    found: set[str] = {name} if name in groups else set()
    todo = [name]
    while todo and depth:
        below = [child for parent in todo if parent in groups for child in groups[parent].children]
        todo = [child for child in dict.fromkeys(below) if child in groups and child not in found]
        found |= set(todo)
        depth -= 1
    return set(groups) if name == "all" else found


def _depth(groups: Groups, name: str) -> int:
    """How far below `all` a group lies; circles end at a bound."""
    if name == "all":
        return 0
    depth, level = 1, {name}
    while depth < DEEPEST_GROUP:
        level = {parent for parent in groups if level & set(groups[parent].children)} - {"all"}
        if not level:
            break
        depth += 1
    return depth


def _plain(variables: Variables) -> Variables:
    """The variables we use, by today's names, without templates."""
    named = {NAMES.get(key, key): value for key, value in variables.items()}
    return {key: value for key, value in named.items() if key in WANTED and value and "{{" not in value}


def _ini_groups(text: str) -> Groups:
    groups: Groups = {"all": Group(), "ungrouped": Group()}
    section, kind = "ungrouped", "hosts"
    for line in text.splitlines():
        plain = line.strip()
        head = re.fullmatch(r"\[([^\]:]+)(?::(\w+))?\]\s*(?:[#;].*)?", plain)
        if head:
            section, kind = head[1].strip(), head[2] or "hosts"
            groups.setdefault(section, Group())
        elif plain and not plain.startswith(("#", ";")):
            _ini_line(groups[section], kind, plain)
    return groups


def _ini_line(group: Group, kind: str, line: str) -> None:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        words = line.split()
    if not words:
        return
    if kind == "children":
        group.children.append(words[0])
    elif kind == "vars":
        key, equals, value = line.partition("=")
        if equals:
            group.variables[key.strip()] = value.strip().strip("\"'")
    else:
        variables = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        for host in islice(expand(words[0]), MOST_HOSTS):
            name, port = _with_port(host)
            group.hosts.setdefault(name, {}).update({**port, **variables})


def _with_port(host: str) -> tuple[str, Variables]:
    """`host:2222` of the INI form."""
    found = re.fullmatch(r"([^:]+|\[[^\]]+\]):([0-9]{1,5})", host)
    return (found[1].strip("[]"), {"ansible_port": found[2]}) if found else (host, {})


def expand(pattern: str) -> Iterator[str]:
    """`host[01:10].lan`, `db-[a:f]`, `n[1:9:2]` as every name they stand for, lazily."""
    pieces = re.split(r"\[([0-9]+:[0-9]+(?::[0-9]+)?|[A-Za-z]:[A-Za-z](?::[0-9]+)?)\]", pattern)
    if len(pieces) > 9:
        return iter((pattern,))
    choices = [_range(piece) if index % 2 else (piece,) for index, piece in enumerate(pieces)]
    return ("".join(parts) for parts in product(*choices))


def _range(text: str) -> tuple[str, ...]:
    start, end, *step = text.split(":")
    by = int(step[0][:9]) if step else 1
    if not start.isdigit():
        return tuple(chr(code) for code in range(ord(start), ord(end) + 1, by or 1))
    width = len(start) if start.startswith("0") else 0
    first, last = int(start[:9]), int(end[:9])
    return tuple(str(number).zfill(width) for number in islice(range(first, last + 1, by or 1), MOST_HOSTS))


def _yaml_groups(text: str, source: str) -> Groups:
    try:
        root = nodes.compose(text)
    except nodes.Unreadable as exc:
        raise UsageError(f"{source}:{exc.line or 1}: {exc.problem}") from exc
    groups: Groups = {"all": Group()}
    seen: set[tuple[str, int]] = set()
    for name, node in _entries(root):
        _yaml_group(groups, name, node, seen)
    return groups


def _yaml_group(groups: Groups, name: str, node: nodes.Node, seen: set[tuple[str, int]]) -> None:
    """Each (group, node) once, so that aliases cost nothing however often they are followed."""
    if (name, id(node)) in seen:
        return
    seen.add((name, id(node)))
    group = groups.setdefault(name, Group())
    parts = dict(_entries(node))
    for pattern, host in _entries(parts.get("hosts")):
        for expanded in islice(expand(pattern), MOST_HOSTS):
            if len(group.hosts) < MOST_HOSTS:
                group.hosts.setdefault(expanded, {}).update(_texts(host))
    group.variables.update(_texts(parts.get("vars")))
    for child, below in _entries(parts.get("children")):
        group.children.append(child)
        _yaml_group(groups, child, below, seen)


def _entries(node: nodes.Node | None) -> Iterator[tuple[str, nodes.Node]]:
    if isinstance(node, nodes.Mapping):
        yield from ((key.text, value) for key, value in node.pairs)


def _texts(node: nodes.Node | None) -> Variables:
    return {key: value.text for key, value in _entries(node) if isinstance(value, nodes.Scalar)}


