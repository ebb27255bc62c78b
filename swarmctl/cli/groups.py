"""Many hosts in few lines: those that fail alike, or say alike, are told of together.

Two hundred lines of one error are as unreadable as none. `--json` has every host by itself.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from swarmctl.errors import SwarmError

_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]+")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
#: with more reasons than these, numbers (ports, seconds, sizes) no longer part one from another
FEW = 10

Groups = tuple[tuple[tuple[str, ...], str], ...]


def alike(told: Iterable[tuple[str, str]]) -> Groups:
    """The hosts that say one thing, and the thing as the first of them says it; in the order of the first.

    A host's own name and a fingerprint make no difference, nor do numbers where there are many reasons. Of
    fingerprints that differ none is shown: it would be read as everybody's.
    """
    pairs = [(host, text, _FINGERPRINT.sub("#", text.replace(host, "#"))) for host, text in told]
    groups = _grouped(pairs)
    return groups if len(groups) <= FEW else _grouped(
        [(host, text, _NUMBER.sub("#", reason)) for host, text, reason in pairs])


def failures_text(failed: Sequence[tuple[str, SwarmError]]) -> str:
    """What failed and what to do, by reason: a line for a lone host; for several the reason once, what to do
    about the first, and all their names."""
    errors = dict(failed)
    lines = []
    for hosts, message in alike((host, error.message) for host, error in failed):
        first, hint = hosts[0], errors[hosts[0]].hint
        if len(hosts) == 1:
            lines.append(f"{first}: {message} ({hint})" if hint else f"{first}: {message}")
            continue
        lines += [f"{len(hosts)} hosts: {message}", f"  {', '.join(hosts)}"]
        lines += [f"  for {first}: {hint}"] if hint else []
    return "\n".join(lines)


def unchanged_text(hosts: Sequence[str], few: int = 8) -> str:
    """That these hosts are as they should be: by name where they are few."""
    if len(hosts) == 1:
        return f"{hosts[0]}: nothing to do"
    names = f": {', '.join(hosts)}" if len(hosts) <= few else ""
    return f"{len(hosts)} hosts unchanged{names}"


def _grouped(pairs: Sequence[tuple[str, str, str]]) -> Groups:
    found: dict[str, tuple[list[str], list[str]]] = {}
    for host, text, reason in pairs:
        hosts, texts = found.setdefault(reason, ([], []))
        hosts.append(host)
        texts.append(text)
    return tuple((tuple(hosts), _shared(texts)) for hosts, texts in found.values())


def _shared(texts: Sequence[str]) -> str:
    """What the first says, without a fingerprint that is not everybody's."""
    prints = {tuple(_FINGERPRINT.findall(text)) for text in texts}
    return texts[0] if len(prints) == 1 else _FINGERPRINT.sub("SHA256:…", texts[0])
