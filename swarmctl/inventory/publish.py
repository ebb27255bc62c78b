"""The table of keys in other forms: a JSON Schema (draft 2020-12), and the reference page's tables.

The schema refuses all that the parser refuses by structure. What lies between entries (unknown models, ports
that meet) only the parser sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swarmctl.inventory.shape import (
    HOST,
    HOST_ENERGY,
    IMPROVE,
    INVENTORY,
    LIMITS,
    LLAMACPP,
    MODEL,
    OLLAMA,
    PLACEMENT,
    QUALITY,
    Choice,
    Key,
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
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SCHEMA_ID = "urn:swarmctl:inventory:1"
DOWNLOAD = {"if": {"properties": {"source": {"pattern": "^https://"}}, "required": ["source"]},
            "then": {"required": ["sha256"]}}


def json_schema() -> dict[str, Any]:
    """The JSON Schema of an inventory."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID,
              "title": "swarmctl inventory",
              "description": "What a person wishes of their machines. Hardware is discovered.",
              **_schema(INVENTORY)}
    schema["properties"]["models"]["additionalProperties"].update(DOWNLOAD)
    return schema


def reference() -> str:
    """The reference page's tables, in Markdown: every key with its type, default and meaning."""
    parts = [("The file", INVENTORY), ("`energy`", _record(INVENTORY, "energy")), ("`models.NAME`", MODEL),
             ("`models.NAME.quality`", QUALITY), ("`models.NAME.improve`", IMPROVE),
             ("`hosts.NAME`", HOST),
             ("`hosts.NAME.llamacpp`", LLAMACPP), ("`hosts.NAME.ollama`", OLLAMA),
             ("`hosts.NAME.models[]`", PLACEMENT),
             ("`hosts.NAME.limits`", LIMITS),
             ("`hosts.NAME.energy`", HOST_ENERGY)]
    return "\n".join(line for title, record in parts for line in _section(title, record))


def _schema(kind: Kind) -> dict[str, Any]:
    match kind:
        case Text():
            return {"type": "string", "pattern": kind.pattern, "maxLength": kind.longest}
        case Whole():
            return {"type": "integer", "minimum": kind.least, "maximum": kind.most}
        case Number():
            return {"type": "number", "minimum": kind.least, "maximum": kind.most}
        case Size():
            return {"anyOf": [{"type": "integer", "minimum": 1, "maximum": kind.most},
                              {"type": "string", "pattern": kind.pattern}]}
        case Choice():
            return {"enum": list(kind.words)}
        case Truth():
            return {"type": "boolean"}
        case Value():
            return {"anyOf": [{"type": "boolean"}, {"type": "number"}, _schema(kind.text)]}
        case _:
            return _composed(kind)


def _composed(kind: Kind) -> dict[str, Any]:
    match kind:
        case Listing():
            return _listing(kind)
        case Table():
            return _table(kind)
        case Record():
            return _mapping(kind)
        case _:
            raise TypeError(kind)


def _listing(kind: Listing) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": ["array"] if kind.least else ["array", "null"],
                              "items": _schema(kind.item)}
    if kind.least:
        schema["minItems"] = kind.least
    if kind.unique:
        schema["uniqueItems"] = True
    return schema


def _table(kind: Table) -> dict[str, Any]:
    names = _schema(kind.key)
    if kind.refused:
        names["not"] = {"enum": sorted(kind.refused)}
    schema: dict[str, Any] = {
        "type": ["object"] if kind.least else ["object", "null"],
        "propertyNames": names,
        "additionalProperties": _schema(kind.item),
    }
    if kind.least:
        schema["minProperties"] = kind.least
    return schema


def _mapping(kind: Record) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": ["object", "null"] if kind.nothing else ["object"],
        "properties": {key.name: _described(key) for key in kind.keys},
        "additionalProperties": False,
    }
    required = [key.name for key in kind.keys if key.required]
    if required:
        schema["required"] = required
    if kind.short:
        short = next(key for key in kind.keys if key.name == kind.short)
        return {"anyOf": [_schema(short.kind), schema]}
    return schema


def _described(key: Key) -> dict[str, Any]:
    default = f" Default: {key.default}." if key.default else ""
    return {"description": key.means + default, **_schema(key.kind)}


def _record(parent: Record, name: str) -> Record:
    return next(key.kind for key in parent.keys if key.name == name and isinstance(key.kind, Record))


def _section(title: str, record: Record) -> Iterator[str]:
    yield from ("", f"### {title}", "", "| key | type | default | meaning |", "|---|---|---|---|")
    for key in record.keys:
        default = "**required**" if key.required else key.default or "none"
        yield f"| `{key.name}` | {_type(key.kind)} | {default} | {key.means} |".replace("{}", "`{}`")


def _type(kind: Kind) -> str:
    match kind:
        case Whole():
            span = f"whole number, {kind.least:,} to {kind.most:,}"
            return span if kind.least < kind.most else f"`{kind.least}`"
        case Number():
            return f"number, {kind.least:g} to {kind.most:,.0f}"
        case Size():
            return "size: bytes, or text such as `16GiB`, `500MB`"
        case Choice():
            return ", ".join(f"`{word}`" for word in kind.words)
        case _:
            return kind.what
