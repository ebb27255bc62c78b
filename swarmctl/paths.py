"""Where things lie on this machine: one XDG folder for each kind of state.

`config` is what people edit, `data` is precious (journal, ledger), `state` can be rebuilt by asking the hosts
(fleet snapshot, known_hosts, marks), `cache` may be deleted (built runtimes, downloads), `runtime` holds
sockets. `SWARMCTL_HOME` puts all of it under one folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: sun_path holds 104 bytes on macOS and 108 on Linux, and OpenSSH appends a 17-byte suffix while it binds.
SOCKET_FOLDER_LIMIT = 60


@dataclass(frozen=True, slots=True)
class Paths:
    """The five folders. Nothing is created by asking for a path; whoever writes creates the folder."""

    config: Path
    data: Path
    state: Path
    cache: Path
    runtime: Path

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Paths:
        """Read SWARMCTL_HOME, then the XDG variables, then HOME."""
        home = Path(environ.get("HOME") or Path.home())
        one = environ.get("SWARMCTL_HOME")
        if one:
            base = Path(one).expanduser().absolute()
            return cls(base / "config", base / "data", base / "state", base / "cache",
                       _runtime(environ, base / "run", base))
        state = _xdg(environ, "XDG_STATE_HOME", home / ".local" / "state")
        return cls(
            config=_xdg(environ, "XDG_CONFIG_HOME", home / ".config"),
            data=_xdg(environ, "XDG_DATA_HOME", home / ".local" / "share"),
            state=state,
            cache=_xdg(environ, "XDG_CACHE_HOME", home / ".cache"),
            runtime=_runtime(environ, state / "run", state),
        )

    @property
    def inventory(self) -> Path:
        """The inventory that is read when no other is named."""
        return self.config / "inventory.yaml"

    @property
    def this_machine(self) -> Path:
        """The inventory that stands in while there is none: this machine with the shipped models."""
        return self.state / "this-machine.yaml"

    @property
    def known_hosts(self) -> Path:
        """Host keys accepted through `swarmctl trust`."""
        return self.state / "known_hosts"

    @property
    def fleet(self) -> Path:
        """The snapshot of what `up` last made true; `ask` reads it instead of the inventory."""
        return self.state / "fleet.json"

    @property
    def journal(self) -> Path:
        """Folder of append-only JSONL files, one a month."""
        return self.data / "journal"

    @property
    def releases(self) -> Path:
        """What was trained and may be served: `<model>/<release>/` with the GGUF and what the next round
        trains from."""
        return self.data / "releases"

    @property
    def ledger(self) -> Path:
        """The DuckDB file; it can be rebuilt from the journal at any time."""
        return self.data / "ledger.duckdb"

    @property
    def datasets(self) -> Path:
        """Training sets, each an immutable folder; precious, because runs refer to them."""
        return self.data / "datasets"

    @property
    def topics(self) -> Path:
        """What is asked about: vectors, clusters and their names."""
        return self.data / "topics"

    @property
    def runs(self) -> Path:
        """What this machine knows of the jobs it started: `<run>/run.json` and the results it fetched."""
        return self.data / "runs"

    @property
    def store(self) -> Path:
        """Content-addressed cache of what hosts are given: built runtimes, sources, downloaded weights."""
        return self.cache / "store"


def _xdg(environ: Mapping[str, str], name: str, default: Path) -> Path:
    value = environ.get(name, "")
    return (Path(value) if value.startswith("/") else default) / "swarmctl"


def _runtime(environ: Mapping[str, str], preferred: Path, key: Path) -> Path:
    """Choose a folder short enough for unix socket names, apart for each state folder."""
    if len(os.fsencode(preferred)) <= SOCKET_FOLDER_LIMIT:
        return preferred
    tag = sha256(os.fsencode(key)).hexdigest()[:12]
    base = environ.get("XDG_RUNTIME_DIR") or f"/tmp/swarmctl-{os.getuid()}"  # noqa: S108  created 0700 by its user
    return Path(base) / f"swarmctl-{tag}"
