"""The processes that hold a model on a host, ours and Ollama's: how far each has come, and how busy it is.

Ollama says neither how far a load is nor how many requests it is at, and stays silent about loaded models
while one loads. Its runners tell: each is a llama-server with a port of its own on the host.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from swarmctl.facts.sections import number
from swarmctl.facts.seen import RunnerSeen

if TYPE_CHECKING:
    from swarmctl.facts.sections import Sections
    from swarmctl.facts.seen import Facts

#: a share that is read and yet not said to be loaded: what remains is warming up
NEARLY = 0.99


def runners_seen(sections: Sections) -> tuple[RunnerSeen, ...]:
    """Our llama.cpp servers and every Ollama's, from lines of `runner PID PARENT READ BUSY HEALTH ARGUMENTS`;
    of ours only pid and bytes are there."""
    found = []
    for line in sections.get("runners", ()):
        words = line.split(" ", 6)
        pid = number(words[1]) if len(words) >= 6 and words[0] == "runner" else None
        if pid is None:
            continue
        parent, read, busy = (number(word) for word in words[2:5])
        weights = re.search(r"(?:^| )(?:-m|--model) (\S+)", words[6]) if len(words) > 6 else None
        found.append(RunnerSeen(pid, parent, weights[1] if weights else "", read or 0, busy,
                                _state(words[5])))
    return tuple(found)


def runner_of(facts: Facts, pid: int | None) -> RunnerSeen | None:
    """The runner with a pid."""
    return next((one for one in facts.runners if one.pid == pid), None)


def of_ollama(facts: Facts) -> tuple[RunnerSeen, ...]:
    """The runners that are not llama.cpp servers of ours."""
    ours = {server.pid for server in facts.servers}
    return tuple(one for one in facts.runners if one.pid not in ours)


def share_read(runner: RunnerSeen, size: int) -> float | None:
    """How much of its weights a runner that loads has read, from 0 to 0.99; None where the size is
    unknown."""
    return min(NEARLY, runner.read / size) if size > 0 else None


def _state(health: str) -> str:
    if '"ok"' in health:
        return "ready"
    return "loading" if "oading" in health else ""
