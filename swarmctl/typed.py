"""JSON that swarmctl wrote for itself, read back into dataclasses with every field of its type: whatever
became of a file since, a person hears which field is wrong, and nothing wrong travels on into a sum.

A field is checked by its annotation, as READ knows it. NaN and Infinity, which no JSON has, are refused.
"""

from __future__ import annotations

import json
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from swarmctl.errors import Garbled

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

T = TypeVar("T")
NONE = type(None)
#: annotation → the classes that JSON gives for it, of it and of what it holds
READ: Mapping[str, tuple[tuple[type, ...], tuple[type, ...]]] = {
    "str": ((str,), ()), "int": ((int,), ()), "float": ((float, int), ()), "bool": ((bool,), ()),
    "str | None": ((str, NONE), ()), "int | None": ((int, NONE), ()), "tuple[str, ...]": ((list,), (str,)),
    "Mapping[str, float]": ((dict,), (float, int)),
}


def load(path: Path) -> Any:  # noqa: ANN401  any JSON
    """A file's JSON. Raises OSError, Garbled."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as exc:
        raise Garbled(f"it is not UTF-8 (byte {exc.start})") from exc


def parse(text: str) -> Any:  # noqa: ANN401  any JSON
    """A text's JSON. Raises Garbled."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as exc:
        raise Garbled("it is nested too deeply") from exc
    except json.JSONDecodeError as exc:
        raise Garbled(f"line {exc.lineno}, column {exc.colno}: {exc.msg}") from exc


def too_deep(found: object, text: bytes, most: int) -> bool:
    """Whether the JSON `found` in `text` has more than so many levels. Python itself gives up at some
    hundred, fewer the deeper in a program it is asked: what one reader takes would stop the next."""
    if text.count(b"{") + text.count(b"[") <= most:
        return False
    level = [found]
    for _ in range(most):
        level = [inner for one in level if isinstance(one, dict | list)
                 for inner in (one.values() if isinstance(one, dict) else one)]
    return bool(level)


def build(kind: type[T], raw: object, where: str = "", **made: Any) -> T:  # noqa: ANN401  the fields' own types
    """A dataclass from a JSON object found at `where`; `made` are fields that the caller has built. Raises
    Garbled."""
    if not isinstance(raw, dict):
        raise Garbled(f"{where or 'it'} is no object")
    allowed = _allowed(kind)  # type: ignore[arg-type]
    for name, value in raw.items():
        if name in made:
            continue
        outer, inner = allowed.get(name) or _unknown(where, name)
        if value.__class__ not in outer or (inner and value and not _holds(value, inner)):
            wanted = kind.__annotations__[name]
            raise Garbled(f"{_at(where, name)} is {json.dumps(value)[:40]}, not {wanted}")
        if value.__class__ is list:
            made[name] = tuple(value)
    try:
        return kind(**{**raw, **made})
    except TypeError as exc:
        missing = [name for name in allowed if name not in raw and name not in made]
        raise Garbled(f"{where or 'it'} lacks {', '.join(missing)}") from exc


def items(raw: object, name: str, where: str = "") -> list[Any]:
    """A field of a JSON object that is a list. Raises Garbled."""
    found = raw.get(name) if isinstance(raw, dict) else None
    if not isinstance(found, list):
        raise Garbled(f"{_at(where, name)} is {json.dumps(found)[:40]}, not a list")
    return found


def _holds(value: Any, inner: tuple[type, ...]) -> bool:  # noqa: ANN401
    return all(one.__class__ in inner for one in (value.values() if isinstance(value, dict) else value))


@cache
def _allowed(kind: type) -> dict[str, tuple[tuple[type, ...], tuple[type, ...]]]:
    return {name: READ.get(annotation, ((), ())) for name, annotation in kind.__annotations__.items()}


def _unknown(where: str, name: str) -> NoReturn:
    raise Garbled(f"{_at(where, name)} is no field that this version knows")


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _refuse(constant: str) -> None:
    raise Garbled(f"{constant} is no number")
