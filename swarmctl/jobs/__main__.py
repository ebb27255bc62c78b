"""One job, from its spec.json to its result.json: `python -m swarmctl.jobs spec.json` inside the run's
folder."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.jobs.folder import RESULT_VERSION, Folder, read_json, write_json
from swarmctl.jobs.spec import JobError, read_spec
from swarmctl.jobs.stages import run_stages

if TYPE_CHECKING:
    from types import FrameType

BUSY = 75  # EX_TEMPFAIL: another process is this folder's job


def main(path: Path) -> int:
    """Run the job; its exit status. result.json says how it ended, however it ended short of a kill."""
    folder = Folder(path.absolute().parent)
    held = folder.lock()
    if held is None:
        sys.stderr.write(f"{folder.path}: the job runs already (process {folder.holder()})\n")
        return BUSY
    with held:
        signal.signal(signal.SIGTERM, _cancelled)
        (folder.path / "result.json").unlink(missing_ok=True)
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder.path / "tensorboard")
        try:
            spec = read_spec(path)
            if spec.threads:  # before any library makes its pool of threads
                os.environ["OMP_NUM_THREADS"] = str(spec.threads)
            gave = run_stages(spec, folder)
        except BaseException as exc:
            _failed(folder, exc)
            raise
        write_json(folder.path / "result.json",
                   {"version": RESULT_VERSION, "status": "done", "stages": gave, "error": None})
        folder.say("job", event="done")
    return 0


def _failed(folder: Folder, exc: BaseException) -> None:
    """Say why, and that nothing more will come."""
    why = str(exc) if isinstance(exc, JobError) else f"{type(exc).__name__}: {exc}"
    stages = (read_json(folder.spec) or {}).get("stages", ())
    status = "cancelled" if isinstance(exc, SystemExit | KeyboardInterrupt) else "failed"
    gave = {name: found for name in stages if (found := folder.stage(name)) is not None}
    write_json(folder.path / "result.json",
               {"version": RESULT_VERSION, "status": status, "stages": gave, "error": why[:2000]})
    folder.say("job", event=status, error=why[:2000])


def _cancelled(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  a signal handler's signature
    raise SystemExit("cancelled")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
