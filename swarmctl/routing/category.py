"""Routine, complex or code? Rules a person can read, because they also have to read the route they lead to.

Categories are coarse on purpose: quality is learned per (model, category) from this swarm's own ratings, and
a few dozen ratings must be enough to say something.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from swarmctl.exchange import Category

CODE_FILES = frozenset({
    "py", "pyi", "js", "ts", "tsx", "jsx", "go", "rs", "c", "h", "cc", "cpp", "hpp", "java", "kt", "swift",
    "rb", "php", "pl", "lua", "sh", "bash", "sql", "r", "jl", "scala", "cs", "zig", "hs", "ml", "el", "vue",
    "html",
    "css", "toml", "cmake", "dockerfile", "makefile",
})
#: [^\S\n] is white space within a line: with \s, a prompt of many empty lines took time by their square.
CODE_MARKS = re.compile(
    r"```|^[^\S\n]*(?:def|class|import|from|#include|func|fn|public|private|SELECT|package)\b"
    r".*[\w(:;{][^\S\n]*$|^Traceback \(most recent|\b\w+\(\)|[{};][^\S\n]*$|=>|::|!=|==",
    re.MULTILINE,
)
CODE_WORDS = re.compile(
    r"\b(?:python|javascript|typescript|rust|golang|c\+\+|java|bash|shell script|sql|regex|regexp|function|"
    r"refactor|unit tests?|compil\w+|stack ?trace|traceback|segfault|exception|api|json|yaml|dockerfile|git|"
    r"debug\w*|bug|code|script|algorithm|implement)\b",
    re.IGNORECASE,
)
COMPLEX_WORDS = re.compile(
    r"\b(?:why|how (?:many|much|long|far|does|do|can|would|should)|explain|compare|contrast|prove|derive|"
    r"calculate|compute|sum|count|plus|minus|times|divided|step by step|pros and cons|trade-?offs?|"
    r"analy[sz]e|evaluate|summari[sz]e|plan|design|argue|essay|reason\w*|"
    r"difference between|according to|notes?)\b",
    re.IGNORECASE,
)
ARITHMETIC = re.compile(r"\d\s*[-+*/x×÷^]\s*\d")  # noqa: RUF001  people type the true signs too
LONG_PROMPT_WORDS = 80


@dataclass(frozen=True, slots=True)
class Categorised:
    """A category and the reason a person reads beside it."""

    category: Category
    reason: str


def categorise(prompt: str, attachments: Sequence[str] = ()) -> Categorised:
    """Categorise a question by its own words and by the names of the files that come with it."""
    for name in attachments:
        if name.rsplit(".", 1)[-1].rsplit("/", 1)[-1].lower() in CODE_FILES:
            return Categorised("code", f"{name} is source code")
    if CODE_MARKS.search(prompt):
        return Categorised("code", "it holds code")
    if found := CODE_WORDS.search(prompt):
        return Categorised("code", f"it speaks of “{found.group().lower()}”")
    if attachments:
        return Categorised("complex", "a file must be read")
    if ARITHMETIC.search(prompt):
        return Categorised("complex", "it holds arithmetic")
    if found := COMPLEX_WORDS.search(prompt):
        return Categorised("complex", f"it says “{found.group().lower()}”")
    if len(prompt.split()) > LONG_PROMPT_WORDS:
        return Categorised("complex", f"it is longer than {LONG_PROMPT_WORDS} words")
    return Categorised("routine", "short, and asks for nothing hard")
