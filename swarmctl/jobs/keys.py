"""The names a recipe may use, read off the installed TRL, so that the control side needs none of it.

`python -m swarmctl.jobs.keys >swarmctl/recipes/keys.json` writes the table; a test compares it with the TRL
that is installed. A key has a `type` (int, float, bool, str, map, list of one of these, or any), whether it
may be `null`, its `choices` where they are few, and TRL's own `default` where JSON can hold it.
"""

from __future__ import annotations

import json
import sys
import types
import typing
from dataclasses import MISSING, fields
from typing import Any

PLAIN = {int: "int", float: "float", bool: "bool", str: "str"}


def table() -> dict[str, Any]:
    """The table of the installed TRL: its version, and for each trainer its keys in TRL's order."""
    import trl

    shared = (trl.ModelConfig, trl.ScriptArguments)
    trainers = {"sft": trl.SFTConfig, "dpo": trl.DPOConfig, "kto": trl.KTOConfig}
    return {"trl": trl.__version__, "trainers": {
        name: _keys((*shared, config)) for name, config in trainers.items()}}


def _keys(configs: tuple[type, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for config in configs:
        hints = typing.get_type_hints(config)
        for field in fields(config):
            found[field.name] = {**_described(hints[field.name]), **_default(field)}
    return found


def _described(hint: Any) -> dict[str, Any]:  # noqa: ANN401  a type of any kind
    """The type in our few words. A list wins over the scalar it may be given as; an enum is text with
    choices."""
    import enum

    options = _options(hint)
    kinds = [option for option in options if option is not type(None)]
    null = {"null": True} if len(kinds) < len(options) else {}
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, enum.Enum):
            return {"type": "str", "choices": [str(one.value) for one in kind], **null}
        if typing.get_origin(kind) is typing.Literal:
            return {"type": "str", "choices": [str(one) for one in typing.get_args(kind)], **null}
    names = {_name(kind) for kind in kinds}
    for name in sorted(names, key=lambda name: (not name.startswith("list"), name != "map", name)):
        return {"type": name if len(names) == 1 or name[:4] in ("list", "map") else "any", **null}
    return {"type": "any", **null}


def _options(hint: Any) -> tuple[Any, ...]:  # noqa: ANN401
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return tuple(one for each in typing.get_args(hint) for one in _options(each))
    return (hint,)


def _name(kind: Any) -> str:  # noqa: ANN401
    origin = typing.get_origin(kind) or kind
    if origin is list:
        (item,) = typing.get_args(kind) or (str,)
        return f"list[{PLAIN.get(item, 'any')}]"
    return "map" if origin is dict else PLAIN.get(origin, "any")


def _default(field: Any) -> dict[str, Any]:  # noqa: ANN401  dataclasses.Field[Any]
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    value = getattr(value, "value", value)
    plain = isinstance(value, bool | int | float | str) or (isinstance(value, list) and value)
    return {"default": value} if plain else {}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(table(), indent=1) + "\n")
