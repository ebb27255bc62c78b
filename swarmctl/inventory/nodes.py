"""YAML text as a small tree that remembers lines, built within bounds.

Scalars keep their text, so `no`, `on` and `12:30` stay what was typed instead of what YAML 1.1 makes of them.
Anchors, aliases and `<<` work; nothing can refer to itself, and text, depth and node count are bounded before
anything is walked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST_TEXT = 1_000_000
MOST_NODES = 200_000
DEEPEST = 40


class Unreadable(Exception):
    """Text that is no YAML tree of ours. `line` is None where none is to blame."""

    def __init__(self, problem: str, line: int | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.line = line


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value as typed. `plain` means without quotes."""

    text: str
    plain: bool
    line: int


@dataclass(frozen=True, slots=True)
class Sequence:
    """A list."""

    items: tuple[Node, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Mapping:
    """Key and value pairs as typed: duplicates and `<<` are still there."""

    pairs: tuple[tuple[Scalar, Node], ...]
    line: int


Node = Scalar | Sequence | Mapping


def compose(text: str) -> Node | None:
    """The tree of the one document in `text`, or None where there is none. Raises Unreadable."""
    if len(text) > LONGEST_TEXT:
        raise Unreadable(f"longer than {LONGEST_TEXT:,} characters; no inventory needs that")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise Unreadable("not valid UTF-8", text.count("\n", 0, exc.start) + 1) from exc
    return _Builder(text).document()


class _Builder:
    """Folds the parser's events, which come without recursion, into nodes. A stack holds the open
    collections."""

    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self.text = text
        self.anchors: dict[str, Node] = {}
        self.roots: list[Node] = []
        self.open: list[tuple[Any, list[Node]]] = []

    def document(self) -> Node | None:
        for count, event in enumerate(self._events()):
            if count > MOST_NODES:
                raise Unreadable(f"more than {MOST_NODES:,} values", self._line(event))
            self._take(event)
        return self.roots[0] if self.roots else None

    def _events(self) -> Iterator[Any]:
        import yaml

        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            yield from yaml.parse(self.text, Loader=loader)
        except yaml.MarkedYAMLError as exc:
            mark = exc.problem_mark or exc.context_mark
            line = mark.line + 1 if mark else None
            raise Unreadable(self._explain(exc, line), line) from exc
        except yaml.YAMLError as exc:
            raise Unreadable(f"not valid YAML: {str(exc).splitlines()[0]}") from exc

    def _explain(self, exc: Any, line: int | None) -> str:  # noqa: ANN401  yaml is imported lazily
        said = ", ".join(part for part in (exc.context, exc.problem) if part)
        here = self.lines[line - 1] if line and line <= len(self.lines) else ""
        tab = "\t" in here[:len(here) - len(here.lstrip())] or here.lstrip(" -").startswith("\t")
        return f"not valid YAML: {said}" + ("; indent with spaces, not with tabs" if tab else "")

    def _take(self, event: Any) -> None:  # noqa: ANN401
        kind, line = type(event).__name__, self._line(event)
        if getattr(event, "tag", None) not in (None, "!"):
            raise Unreadable(f"tags such as {event.tag} have no meaning here; leave them out", line)
        if kind == "DocumentStartEvent" and self.roots:
            raise Unreadable("a second document begins here; an inventory is one", line)
        if kind in ("SequenceStartEvent", "MappingStartEvent"):
            if len(self.open) >= DEEPEST:
                raise Unreadable(f"nested deeper than {DEEPEST} levels", line)
            self.open.append((event, []))
        elif kind in ("SequenceEndEvent", "MappingEndEvent"):
            start, items = self.open.pop()
            self._place(_collection(start, items, self._line(start)), start.anchor)
        elif kind == "ScalarEvent":
            self._place(Scalar(event.value, not event.style, line), event.anchor)
        elif kind == "AliasEvent":
            if event.anchor not in self.anchors:
                raise Unreadable(f"*{event.anchor} refers to nothing that ends before it", line)
            self._place(self.anchors[event.anchor], None)

    def _place(self, node: Node, anchor: str | None) -> None:
        if anchor is not None:
            self.anchors[anchor] = node
        (self.open[-1][1] if self.open else self.roots).append(node)

    @staticmethod
    def _line(event: Any) -> int:  # noqa: ANN401
        return int(event.start_mark.line) + 1


def _collection(start: Any, items: list[Node], line: int) -> Node:  # noqa: ANN401
    if type(start).__name__ == "SequenceStartEvent":
        return Sequence(tuple(items), line)
    pairs = []
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, Scalar):
            raise Unreadable("a key must be a plain word, not a list or a mapping", key.line)
        pairs.append((key, value))
    return Mapping(tuple(pairs), line)
