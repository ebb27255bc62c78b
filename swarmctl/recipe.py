"""A recipe: how a model is trained, as YAML in TRL's own key names, flat, as `trl dpo --config` takes them.

Two keys are ours: `trainer` says which of TRL's trainers, `swarmctl` holds what TRL has no word for. The
names and types come from recipes/keys.json, which is made from the pinned TRL (see jobs.keys), so that a
wrong key is refused here, with its line and what would be right, and not after an hour on a host. Pure:
`fleet.recipes` finds the file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from swarmctl.errors import RecipeError
from swarmctl.inventory.nodes import Mapping as Tree
from swarmctl.inventory.nodes import Scalar, Sequence, Unreadable, compose
from swarmctl.inventory.reading import Problem, Reader
from swarmctl.inventory.shape import (
    Choice,
    Key,
    Kind,
    Listing,
    Number,
    Record,
    Table,
    Text,
    Truth,
    Value,
    Whole,
)
from swarmctl.recipe_keys import GONE, OURS, odd

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from swarmctl.inventory.nodes import Node

HUGE = 2**60
#: where a mistake stands that is in no file, so that it has no line
SET = "--set"
HINT = "docs/train.md explains recipes; `swarmctl train --list` names those that ship"
#: Steps of a job, by trainer. Each is a stage of jobs.stages; what a stage made is not made again.
STAGES = {"sft": ("sft", "merge"), "dpo": ("dpo", "merge"), "kto": ("kto", "merge")}

_SCALAR = Value("text, a number, true or false", "1")
_minutes = Number("minutes", "10", 0.01, 1e5)
PRUNE = Record("prune", "a mapping of what is pruned", (
    Key("layers", Number("how many layers go, or a share below 1", "4", 0, 10_000),
        "Whole layers that go, those of least influence first.", "0"),
    Key("ffn", Number("a share from 0 to 0.95", "0.25", 0, 0.95),
        "The share of each layer's feed-forward channels that goes.", "0"),
    Key("sparsity", Number("a share from 0 to 0.95", "0.3", 0, 0.95),
        "The share of weights that is set to zero.", "0"),
))
OWN = Record("swarmctl", "a mapping of what TRL has no word for", (
    Key("model", Text("a model's name in the inventory", "small"), "The model that is trained.", "`--model`"),
    Key("inference", Choice("what becomes of the host's servers", ("keep", "drain")),
        "`drain` cordons the host while it trains and waits until it is idle; `keep` lets it answer on.",
        "keep"),
    Key("checkpoint_minutes", _minutes, "A checkpoint is written at least this often.", "10"),
    Key("dropped", Number("a share from 0 to 1", "0.02", 0, 1),
        "The largest share of rows that may be lost for their length before the job fails.", "0.02"),
    Key("processes", Whole("a whole number", "2", 1, 1024), "Training processes on a host.",
        "one a GPU, one without"),
    Key("hosts", Listing("a list of hosts", Text("a host's name", "worlock"), "[worlock, calisota]", 1,
                         unique=True),
        "Hosts that train together, through torchrun; the first leads.", "one host"),
    Key("deepspeed", Choice("a stage of ZeRO", ("zero2", "zero3")), "Train with DeepSpeed.", "without"),
    Key("offload", Choice("where to", ("cpu", "nvme")), "Where DeepSpeed puts what the GPU cannot hold.",
        "nowhere"),
    Key("prune", PRUNE, "Prune the base first; the training then recovers what is left.", "nothing"),
), nothing=True)


@dataclass(frozen=True, slots=True)
class Own:
    """What the `swarmctl` key says; OWN explains each field."""

    model: str | None = None
    inference: str = "keep"
    checkpoint_minutes: float = 10.0
    dropped: float = 0.02
    processes: int | None = None
    hosts: tuple[str, ...] = ()
    deepspeed: str | None = None
    offload: str | None = None
    prune: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe that was read: `keys` are TRL's, with their right types, only those that are written down."""

    name: str
    trainer: str
    keys: Mapping[str, Any]
    own: Own = field(default_factory=Own)

    @property
    def stages(self) -> tuple[str, ...]:
        """What a job of this recipe does, in order."""
        trained = STAGES[self.trainer]
        return ("prune", *trained, "compare") if self.own.prune else trained


def parse_recipe(text: str, source: str, name: str, table: Mapping[str, Any]) -> Recipe:
    """Read a recipe. `source` is the file as errors show it, `table` what recipes/keys.json holds.

    Raises RecipeError with one line a problem: file:line: key: what is wrong; what would be right.
    """
    try:
        root = compose(text)
    except Unreadable as exc:
        where = f"{source}:{exc.line}" if exc.line and source != SET else source
        raise RecipeError(f"{where}: {exc.problem}", hint=HINT) from exc
    if not isinstance(root, Tree):
        raise RecipeError(f"{source}: expected a mapping of keys", hint=HINT)
    reader = Reader()
    raw = _read(root, reader, table)
    if not reader.problems:
        reader.problems += [Problem(reader.lines.get((key,), root.line), key, said) for key, said in odd(raw)]
    if reader.problems:
        lines = [f"{source if source == SET else f'{source}:{one.line}'}: {one.field}: {one.text}"
                 for one in sorted(set(reader.problems))]
        raise RecipeError("\n".join(lines), hint=HINT)
    own = raw.pop("swarmctl", {})
    own["hosts"] = tuple(own.get("hosts", ()))
    return Recipe(name, raw.pop("trainer"), raw, Own(**own))


def with_keys(recipe: Recipe, given: Iterable[str], table: Mapping[str, Any]) -> Recipe:
    """The recipe with `KEY=VALUE` words over it, read as if they stood in the file."""
    written = {"trainer": recipe.trainer, **recipe.keys}
    lines = {key: json.dumps(value) for key, value in written.items()}
    for word in given:
        key, equals, value = word.partition("=")
        if not equals or not key.strip() or "\n" in word:
            raise RecipeError(f"{word!r} is no KEY=VALUE", hint="e.g. --set learning_rate=2e-5")
        lines[key.strip()] = value
    text = "\n".join(f"{key}: {value}" for key, value in lines.items())
    return replace(parse_recipe(text, SET, recipe.name, table), own=recipe.own)


def _read(root: Tree, reader: Reader, table: Mapping[str, Any]) -> dict[str, Any]:
    trainer = _trainer(root, tuple(table["trainers"]))
    known = table["trainers"].get(trainer, {})
    pairs: list[tuple[Scalar, Node]] = []
    values: dict[str, Any] = {}
    for name, node in root.pairs:
        if name.text in ("trainer", "swarmctl"):
            pairs.append((name, node))
        elif name.text in OURS or name.text not in known:
            said = OURS.get(name.text) or _unknown(name.text, trainer, known, table["trainers"])
            if trainer or name.text in OURS:
                reader.problems.append(Problem(name.line, name.text, said))
        elif _is_null(node) and known[name.text].get("null"):
            values[name.text] = None
        else:
            pairs.append((name, _as_list(node, known[name.text])))
    keys = tuple(Key(name, _kind(name, what), "") for name, what in known.items() if name not in OURS)
    shape = Record("recipe", "a mapping of keys", (
        Key("trainer", Choice("a trainer", tuple(table["trainers"])), "", required=True),
        Key("swarmctl", OWN, ""), *keys))
    read = reader.read(Tree(tuple(pairs), root.line), shape)
    return {**read, **values}


def _trainer(root: Tree, trainers: tuple[str, ...]) -> str:
    """The trainer's name where it is a right one; the shape complains otherwise."""
    for name, node in root.pairs:
        if name.text == "trainer" and isinstance(node, Scalar) and node.text in trainers:
            return node.text
    return ""


def _unknown(name: str, trainer: str, known: Mapping[str, Any], trainers: Mapping[str, Any]) -> str:
    if name in GONE:
        return f"TRL has this no more; {GONE[name]}"
    others = [other for other, keys in trainers.items() if name in keys]
    if others:
        return f"not a key of the {trainer} trainer; it belongs to {' and '.join(others)}"
    if name in {key.name for key in OWN.keys}:
        return f"it belongs under `swarmctl`: swarmctl: {{{name}: …}}"
    close = get_close_matches(name[:64], [*known, "trainer", "swarmctl"], n=1, cutoff=0.6)
    return f"unknown key{f'; did you mean {close[0]}?' if close else ''}"


def _is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.plain and node.text in ("", "~", "null", "Null", "NULL")


def _as_list(node: Node, what: Mapping[str, Any]) -> Node:
    """A single word where TRL takes a list, such as `lora_target_modules: all-linear`."""
    alone = isinstance(node, Scalar) and what["type"].startswith("list")
    return Sequence((node,), node.line) if alone else node


def _kind(name: str, what: Mapping[str, Any]) -> Kind:
    if "choices" in what:
        return Choice("one of TRL's words", tuple(what["choices"]))
    return _plain(name, what["type"], what.get("default"))


def _plain(name: str, kind: str, default: Any) -> Kind:  # noqa: ANN401  any JSON
    example = str(default) if default is not None and not isinstance(default, list | bool) else ""
    match kind:
        case "int":
            return Whole("a whole number", example or "1", -HUGE)
        case "float":
            return Number("a number", example or "0.1", -1e300, 1e300)
        case "bool":
            return Truth()
        case "str":
            return Text("text", example or "a word", longest=4096)
        case "map":
            return Table("a mapping", Text("a name", "use_reentrant"), _SCALAR)
    if kind.startswith("list"):
        item = _plain(name, kind[5:-1], None)
        return Listing("a list", item, f"[{getattr(item, 'example', '')}]")
    return _SCALAR
