"""A host's history of versions: data_dir/runtimes/versions.jsonl, append-only.

It lies on the host beside the installs it speaks of, so that whoever looks after that host sees the same, and
it goes where they go. The last line of a runtime says what is in force (see runtimes.versions).
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from swarmctl.fleet.host_shell import on_host
from swarmctl.fleet.person import who

if TYPE_CHECKING:
    from swarmctl.facts import VersionChange
    from swarmctl.fleet.shell import Remote

WRITE_LIMIT = 60.0


def write_change(remote: Remote, data_dir: str, change: VersionChange) -> VersionChange:
    """Append a change, with who made it and when. Raises RemoteErrors."""
    made = replace(change, at=datetime.now(UTC).isoformat(timespec="seconds"),
                   by=who())
    on_host(remote, "version", data_dir, payload=json.dumps(asdict(made)).encode() + b"\n",
            timeout=WRITE_LIMIT)
    return made
