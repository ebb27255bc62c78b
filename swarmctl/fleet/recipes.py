"""Recipes as files: those that ship with swarmctl, by name, and a person's own, by path."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swarmctl.errors import RecipeError
from swarmctl.recipe import parse_recipe, with_keys

if TYPE_CHECKING:
    from collections.abc import Iterable

    from swarmctl.recipe import Recipe


def read_recipe(named: str, given: Iterable[str] = ()) -> Recipe:
    """The recipe that `named` means: a shipped one's name, or the path of a file; with `KEY=VALUE` words
    over it.

    Raises RecipeError where there is none, or it is wrong.
    """
    path = _find(named)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as exc:
        raise RecipeError(f"{path}: not valid UTF-8", hint="save the file as UTF-8") from exc
    except OSError as exc:
        raise RecipeError(f"{path} cannot be read: {exc.strerror}") from exc
    recipe = parse_recipe(text, str(path), path.stem, key_table())
    words = tuple(given)
    return with_keys(recipe, words, key_table()) if words else recipe


def shipped_recipes() -> tuple[tuple[str, str], ...]:
    """The name of every shipped recipe, with the first line of its comment."""
    found = sorted(_folder().glob("*.yaml"))
    return tuple((path.stem, _first_words(path.read_text(encoding="utf-8"))) for path in found)


@cache
def key_table() -> dict[str, Any]:
    """The names and types of TRL's keys, as recipes/keys.json holds them."""
    found: dict[str, Any] = json.loads((_folder() / "keys.json").read_text(encoding="utf-8"))
    return found


def _find(named: str) -> Path:
    if named.endswith((".yaml", ".yml")) or "/" in named:
        path = Path(named).expanduser()
        if not path.exists():
            raise RecipeError(f"there is no recipe at {path}", hint=_known())
        return path
    path = _folder() / f"{named}.yaml"
    if not path.exists():
        raise RecipeError(f"swarmctl ships no recipe {named!r}", hint=_known())
    return path


def _known() -> str:
    return f"it ships {', '.join(name for name, _ in shipped_recipes())}; or name a file of yours"


def _folder() -> Path:
    return Path(str(resources.files("swarmctl"))) / "recipes"


def _first_words(text: str) -> str:
    """The comment at the top, as far as its first full stop."""
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    return comment.partition(". ")[0].rstrip(".")
