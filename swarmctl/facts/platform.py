"""Which hosts can run each other's builds."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swarmctl.facts.seen import Facts


def platform_key(facts: Facts) -> str:
    """Name what a native build depends on: system, machine, libc and CPU features, e.g.
    linux-x86_64-glibc2.36-1f3a90c2.

    Equal keys mean that a build made on one host runs on the other.
    """
    features = sha256(" ".join(sorted(facts.cpu.features)).encode()).hexdigest()[:8]
    libc = facts.libc.replace(" ", "") or "libc"
    return f"{facts.system.lower()}-{facts.machine}-{libc}-{features}"
