"""A run's folder: all state of a job lies in it, so that nobody needs to stay connected.

spec.json (what), progress.jsonl (how it goes), stages/<name>.json (what each stage that ended gave),
result.json (last of all, by rename), lock (held as long as the job lives), checkpoints/, out/.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from io import TextIOWrapper
    from pathlib import Path

RESULT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder at `path`, absolute."""

    path: Path

    @property
    def spec(self) -> Path:
        """What the job is to do."""
        return self.path / "spec.json"

    @property
    def progress(self) -> Path:
        """JSON lines, appended as the job goes."""
        return self.path / "progress.jsonl"

    @property
    def checkpoints(self) -> Path:
        """What a run that was cut goes on from."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The trained adapter, PEFT's own format."""
        return self.path / "out" / "adapter"

    @property
    def pruned(self) -> Path:
        """The whole model before training, where the job pruned it first."""
        return self.path / "out" / "pruned"

    @property
    def merged(self) -> Path:
        """The whole model after training, ready for the converter and for the next round."""
        return self.path / "out" / "merged"

    def start(self, model: str) -> str:
        """What training starts from: the pruned weights where there are some, else `model`."""
        return str(self.pruned) if self.pruned.is_dir() else model

    def say(self, stage: str, **fields: Any) -> None:  # noqa: ANN401  any JSON
        """Append one record to progress.jsonl."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"at": at, "stage": stage, **fields}) + "\n"
        with self.progress.open("a", encoding="utf-8") as file:
            file.write(line)

    def result(self) -> dict[str, Any] | None:
        """What result.json says, or None where there is none yet."""
        return read_json(self.path / "result.json")

    def end(self, status: str, gave: dict[str, Any], error: str | None = None) -> None:
        """The job ended; nothing more will come."""
        write_json(self.path / "result.json",
                   {"version": RESULT_VERSION, "status": status, "stages": gave, "error": error})

    def gave(self) -> dict[str, Any]:
        """What each stage gave that has ended well."""
        stages = (read_json(self.spec) or {}).get("stages", ())
        return {name: found for name in stages if (found := self.stage(name)) is not None}

    def stage(self, name: str) -> dict[str, Any] | None:
        """What a stage gave that has ended well, or None."""
        return read_json(self.path / "stages" / f"{name}.json")

    def end_stage(self, name: str, gave: dict[str, Any]) -> None:
        """A stage ended well."""
        (self.path / "stages").mkdir(exist_ok=True)
        write_json(self.path / "stages" / f"{name}.json", gave)

    def lock(self) -> TextIOWrapper | None:
        """Be the job of this folder for as long as the file is open; None where another process is."""
        file = (self.path / "lock").open("a+", encoding="ascii")
        if not any(_lock(file) for _ in range(20)):
            file.close()
            return None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        return file

    def holder(self) -> int | None:
        """The process id of the job that lives, or None."""
        try:
            with (self.path / "lock").open("r", encoding="ascii") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(file.read() or 0) or None
        except (FileNotFoundError, ValueError):
            pass
        return None


def _lock(file: TextIOWrapper) -> bool:
    """Take the lock. Who asks for the holder has it for a moment too, so one refusal says nothing."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        time.sleep(0.1)
        return False
    return True


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None where it is missing or torn."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: Path, what: dict[str, Any]) -> None:
    """Replace a file in one rename, once its bytes are on the disk."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("w", encoding="utf-8") as file:
        file.write(json.dumps(what, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
