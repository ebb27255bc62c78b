"""What one host is and has, as one survey saw it. Discovered, never typed in. Pure data and parsing.

`fleet/probe.sh` prints sections over one SSH round trip; `parse_facts` turns that text into `Facts`. Sizes
are bytes, times seconds. A fact that could not be had is None or empty, never a guess.
"""

from swarmctl.facts.parse import parse_facts
from swarmctl.facts.platform import platform_key
from swarmctl.facts.seen import (
    BlobSeen,
    Cpu,
    Disk,
    Facts,
    Gpu,
    Listener,
    OllamaLoaded,
    OllamaModel,
    OllamaSeen,
    RunnerSeen,
    RuntimeSeen,
    ServerSeen,
    Speed,
    VersionChange,
)

__all__ = [
    "BlobSeen",
    "Cpu",
    "Disk",
    "Facts",
    "Gpu",
    "Listener",
    "OllamaLoaded",
    "OllamaModel",
    "OllamaSeen",
    "RunnerSeen",
    "RuntimeSeen",
    "ServerSeen",
    "Speed",
    "VersionChange",
    "parse_facts",
    "platform_key",
]
