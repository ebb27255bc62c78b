"""Walks YAML nodes against the table of keys: values out, problems noted, nothing raised.

Scalars are read by YAML 1.2's core rules, as editors with the JSON Schema do, except that a plain `no`, `on`
or `12:30` is text wherever text is wanted.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, TypeGuard

from swarmctl.inventory.nodes import Mapping, Node, Scalar, Sequence
from swarmctl.inventory.shape import (
    OWNED_ENV,
    OWNED_FLAGS,
    Choice,
    Kind,
    Listing,
    Number,
    Record,
    Size,
    Table,
    Text,
    Truth,
    Value,
    Whole,
    places,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Path = tuple[str | int, ...]
Leaf = Text | Whole | Number | Size | Choice | Truth | Value

MOST_VISITS = 100_000
MERGE_DEPTH = 8
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
         "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
NULLS = ("", "~", "null", "Null", "NULL")
EXPONENT = r"[eE][-+]?[0-9]{1,3}"
POINTED = r"(?:[0-9]{1,18}\.[0-9]{0,18}|\.[0-9]{1,18})"
FLOAT = re.compile(rf"[-+]?(?:{POINTED}(?:{EXPONENT})?|[0-9]{{1,18}}{EXPONENT})")
TRUTHS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong, where, and what would be right."""

    line: int
    field: str
    text: str


class _Wrong:
    """The type of WRONG, which stands for a value that could not be read and has been complained about."""


WRONG: Final = _Wrong()


class Reader:
    """Reads a tree once. `problems` grows; `lines` maps the path of everything read to its line."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.lines: dict[Path, int] = {}
        self._visits = 0

    def read(self, node: Node, kind: Kind, path: Path = ()) -> Any:  # noqa: ANN401  any value of the table
        """The node's value as `kind`, or WRONG."""
        self._visits += 1
        if self._visits > MOST_VISITS:
            return WRONG if self._visits > MOST_VISITS + 1 else self._wrong(
                node, (), f"more than {MOST_VISITS:,} values once aliases are followed")
        self.lines[path] = node.line
        match kind:
            case Record():
                return self._record(node, kind, path)
            case Table():
                return self._table(node, kind, path)
            case Listing():
                return self._listing(node, kind, path)
            case _:
                return self._scalar(node, kind, path)

    def _record(self, node: Node, kind: Record, path: Path) -> Any:  # noqa: ANN401
        if kind.nothing and _is_nothing(node):
            return {}
        if kind.short and isinstance(node, Scalar) and not _is_nothing(node):
            node = Mapping(((Scalar(kind.short, True, node.line), node),), node.line)
        if not isinstance(node, Mapping):
            return self._wrong(node, path, f"expected {kind.what}, found {found(node)}")
        known = {key.name: key for key in kind.keys}
        values = {}
        seen = set()
        for name, value in self._pairs(node, path):
            seen.add(name.text)
            if name.text not in known:
                self._wrong(name, (*path, name.text), f"unknown key{_belongs(name.text, known)}")
            elif (got := self.read(value, known[name.text].kind, (*path, name.text))) is not WRONG:
                values[name.text] = got
        for key in kind.keys:
            if key.required and key.name not in seen:
                self._wrong(node, (*path, key.name), f"missing; write e.g. {key.name}: {_example(key.kind)}")
        return values

    def _table(self, node: Node, kind: Table, path: Path) -> Any:  # noqa: ANN401
        if _is_nothing(node) and not kind.least:
            return {}
        if not isinstance(node, Mapping):
            return self._wrong(node, path, f"expected {kind.what}, found {found(node)}")
        values = {}
        for name, value in self._pairs(node, path):
            here = (*path, name.text)
            if name.text in kind.refused:
                instead = {**OWNED_FLAGS, **OWNED_ENV}.get(name.text)
                then = f"use {instead}" if instead else "leave it out"
                self._wrong(name, here, f"swarmctl sets this itself; {then}")
            elif not _fits(name.text, kind.key):
                self._wrong(name, here, f"not {kind.key.what}; write e.g. {kind.key.example}")
            elif (got := self.read(value, kind.item, here)) is not WRONG:
                values[name.text] = got
        if len(node.pairs) < kind.least:
            self._wrong(node, path, f"expected {kind.what}, found none; add at least one")
        return values

    def _listing(self, node: Node, kind: Listing, path: Path) -> Any:  # noqa: ANN401
        if _is_nothing(node) and not kind.least:
            return []
        if not isinstance(node, Sequence):
            return self._wrong(node, path, _unlike(node, kind))
        read = [self.read(item, kind.item, (*path, index)) for index, item in enumerate(node.items)]
        values = [value for value in read if value is not WRONG]
        if len(read) < kind.least:
            self._wrong(node, path, f"expected {kind.what}, found an empty one; write e.g. {kind.example}")
        if kind.unique and len(values) != len({json.dumps(value) for value in values}):
            self._wrong(node, path, "lists something twice; name each once")
        return values

    def _scalar(self, node: Node, kind: Leaf, path: Path) -> Any:  # noqa: ANN401
        value = _typed(node, kind) if isinstance(node, Scalar) else WRONG
        if value is WRONG:
            return self._wrong(node, path, f"expected {kind.what}, found {found(node)}{_instead(node, kind)}")
        return value

    def _pairs(self, node: Mapping, path: Path) -> Iterator[tuple[Scalar, Node]]:
        """Each key once: duplicates are complained about, what `<<` brings comes last and never overrides."""
        seen: dict[str, int] = {}
        for name, value in node.pairs:
            if name.text == "<<" and name.plain:
                continue
            if name.text in seen:
                first = seen[name.text]
                self._wrong(name, (*path, name.text), f"written twice (first on line {first}); keep one")
                continue
            seen[name.text] = name.line
            yield name, value
        for name, value in self._merged(node, path, MERGE_DEPTH):
            if name.text not in seen:
                seen[name.text] = name.line
                yield name, value

    def _merged(self, node: Mapping, path: Path, depth: int) -> Iterator[tuple[Scalar, Node]]:
        for name, value in node.pairs:
            if name.text != "<<" or not name.plain:
                continue
            for source in value.items if isinstance(value, Sequence) else (value,):
                self._visits += 1
                if not isinstance(source, Mapping) or not depth or self._visits > MOST_VISITS:
                    self._wrong(name, (*path, "<<"), f"expected a mapping to merge, found {found(source)}")
                    return
                for pair in source.pairs:
                    if pair[0].text != "<<":
                        self._visits += 1
                        yield pair
                yield from self._merged(source, path, depth - 1)

    def _wrong(self, node: Node, path: Path, text: str) -> Any:  # noqa: ANN401
        self.problems.append(Problem(node.line, field_name(path), text))
        return WRONG


def field_name(path: Path) -> str:
    """`hosts.worlock.models[1].context`; names that are no plain words are quoted."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif re.fullmatch(r"[A-Za-z0-9_-]+", part):
            text += f".{part}"
        else:
            text += f"[{_quoted(part)}]"
    return text.removeprefix(".")


def found(node: Node) -> str:
    """The node in a few words, for an error."""
    if isinstance(node, Mapping):
        return "a mapping"
    if isinstance(node, Sequence):
        return "a list"
    if _is_nothing(node):
        return "nothing"
    return node.text if not isinstance(_core(node), str) else _quoted(node.text)


def _unlike(node: Node, kind: Listing) -> str:
    return f"expected {kind.what}, found {found(node)}; write e.g. {kind.example}"


def _typed(node: Scalar, kind: Leaf) -> Any:  # noqa: ANN401
    value = _core(node)
    match kind:
        case Text():
            return value if isinstance(value, str) and _fits(value, kind) else WRONG
        case Whole():
            whole = int(value) if isinstance(value, float) and value.is_integer() else value
            return whole if type(whole) is int and kind.least <= whole <= kind.most else WRONG
        case Number():
            return float(value) if _is_number(value) and kind.least <= value <= kind.most else WRONG
        case Choice():
            return value if value in kind.words else WRONG
        case Truth():
            return value if isinstance(value, bool) else WRONG
        case Size():
            return _size(value, kind)
        case Value():
            return value if not isinstance(value, str | None) or _fits(value or "", kind.text) else WRONG


def _size(value: Any, kind: Size) -> Any:  # noqa: ANN401
    if type(value) is int:
        return value if 0 < value <= kind.most else WRONG
    if not isinstance(value, str) or not re.search(kind.pattern, value):
        return WRONG
    number, unit = re.findall(r"^([0-9.]+) ?([KMGT]?i?)B$", value)[0]
    size = int(float(number) * UNITS[unit])
    return size if size <= kind.most else WRONG


def _is_number(value: Any) -> TypeGuard[int | float]:  # noqa: ANN401
    return type(value) in (int, float)


def _core(node: Scalar) -> str | int | float | bool | None:
    """YAML 1.2's core schema, without octal and hexadecimal numbers, infinities and NaN: those stay text."""
    if not node.plain:
        return node.text
    if node.text in NULLS:
        return None
    if node.text in TRUTHS:
        return TRUTHS[node.text]
    if re.fullmatch(r"[-+]?(0|[1-9][0-9]{0,18})", node.text):
        return int(node.text)
    if FLOAT.fullmatch(node.text) and isfinite(float(node.text)):
        return float(node.text)
    return node.text


def _is_nothing(node: Node) -> bool:
    return isinstance(node, Scalar) and node.plain and node.text in NULLS


def _fits(text: str, kind: Text) -> bool:
    return len(text) <= kind.longest and re.search(kind.pattern, text) is not None and "\n" not in text


def _instead(node: Node, kind: Leaf) -> str:
    """What to write: the nearest word, the number without its quotes, quotes around it, or an example."""
    text = node.text if isinstance(node, Scalar) else ""
    if isinstance(kind, Choice):
        return f"{_meant(text, kind.words)}; one of {', '.join(kind.words)}"
    if isinstance(node, Scalar):
        if isinstance(kind, Text) and text and not isinstance(_core(node), str) and _fits(text, kind):
            return f'; write it in quotes: "{text}"'
        bare = Scalar(re.sub(r"^0+(?=[0-9])|[_,]", "", text), True, node.line)
        if isinstance(kind, Whole | Number) and bare.text != text and _typed(bare, kind) is not WRONG:
            return f"; write {bare.text}"
        if isinstance(kind, Whole | Number) and not node.plain and _typed(bare, kind) is not WRONG:
            return f"; write {text} without quotes"
    return f"; write e.g. {kind.example}"


def _meant(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word[:64], list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def _belongs(word: str, known: Iterable[str]) -> str:
    """The key that was probably meant, else where one of this name may stand."""
    elsewhere = places(word)
    if _meant(word, known) or not elsewhere:
        return _meant(word, known)
    return f"; it belongs under {' or '.join(place or 'the top level' for place in elsewhere)}"


def _example(kind: Kind) -> str:
    match kind:
        case Record() | Table():
            return "{…}"
        case Choice():
            return kind.words[0]
        case _:
            return kind.example


def _quoted(text: str) -> str:
    return json.dumps(text if len(text) <= 60 else text[:57] + "…", ensure_ascii=False)
