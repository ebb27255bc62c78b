"""Which licence a repository or a file is under, as an SPDX identifier. Pure.

A file's own SPDX header decides; else the texts in the repository's root, known by the sentences that only
they have. What is not known is not guessed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

#: Licences that let anybody use, change and pass on what is under them, with no more than a notice.
PERMISSIVE = frozenset({"MIT", "MIT-0", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "ISC",
                        "Unlicense",
                        "CC0-1.0", "Zlib", "BSL-1.0", "PSF-2.0", "BlueOak-1.0.0"})
NONE = "none"
FILE = re.compile(r"(?i)(?:licen[cs]e|copying|unlicense)(?:[-_.][\w.-]*)?")
SPDX = re.compile(r"SPDX-License-Identifier:\s*([A-Za-z0-9.+() -]{2,120}?)\s*(?:\*/|-->|#\}|$)", re.MULTILINE)
#: The first whose sentences all stand in a text names it; the longer licences are asked for first.
TEXTS: Mapping[str, tuple[str, ...]] = {
    "AGPL-3.0": ("gnu affero general public license", "version 3"),
    "LGPL-3.0": ("gnu lesser general public license", "version 3"),
    "LGPL-2.1": ("gnu lesser general public license", "version 2.1"),
    "GPL-3.0": ("gnu general public license", "version 3"),
    "GPL-2.0": ("gnu general public license", "version 2"),
    "MPL-2.0": ("mozilla public license", "version 2.0"),
    "EPL-2.0": ("eclipse public license", "2.0"),
    "Apache-2.0": ("apache license", "version 2.0"),
    "CC0-1.0": ("cc0 1.0",),
    "Unlicense": ("this is free and unencumbered software released into the public domain",),
    "BSL-1.0": ("boost software license",),
    "PSF-2.0": ("python software foundation license version 2",),
    "Zlib": ("altered source versions must be plainly marked as such", "misrepresented"),
    "BSD-3-Clause": ("redistribution and use in source and binary forms", "neither the name"),
    "BSD-2-Clause": ("redistribution and use in source and binary forms",),
    "MIT": ("permission is hereby granted, free of charge", "shall be included in all copies"),
    "MIT-0": ("permission is hereby granted, free of charge",),
    "ISC": ("permission to use, copy, modify, and/or distribute",
            "copyright notice and this permission notice"),
    "0BSD": ("permission to use, copy, modify, and/or distribute",),
}


def is_licence_file(name: str) -> bool:
    """Whether a file of a repository's root holds its licence, by its name."""
    return FILE.fullmatch(name) is not None


def licence_of(text: str) -> str:
    """The licence that a text is, or NONE."""
    header = spdx(text)
    if header != NONE:
        return header
    told = " ".join(text.lower().split())
    return next((name for name, parts in TEXTS.items() if all(part in told for part in parts)), NONE)


def spdx(text: str) -> str:
    """The SPDX expression in the first lines of a file, or NONE."""
    found = SPDX.search("\n".join(text.split("\n", 20)[:20]))
    return found[1].strip() if found else NONE


def allowed(expression: str, wanted: Collection[str]) -> bool:
    """Whether an SPDX expression can be had under the wanted licences: one side of an OR, both of an AND.
    `any` among them takes everything; versions' -only and -or-later do not count."""
    if "any" in wanted:
        return True
    bare = {_bare(name) for name in wanted}
    sides = re.split(r"\s+OR\s+", expression.replace("(", " ").replace(")", " ").strip())
    return any(all(_bare(part) in bare for part in re.split(r"\s+AND\s+", side)) for side in sides)


def _bare(name: str) -> str:
    return re.sub(r"(?:-only|-or-later|\+)$", "", name.split(" WITH ")[0].strip()).lower()
