"""One job, from its spec.json to its result.json: `python -m swarmctl.jobs spec.json` inside the run's
folder."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from swarmctl.jobs.folder import Folder
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
    cancel = Cancel()
    with held:
        signal.signal(signal.SIGTERM, cancel)
        (folder.path / "result.json").unlink(missing_ok=True)
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder.path / "tensorboard")
        try:
            spec = read_spec(path)
            if spec.threads:  # before any library makes its pool of threads
                os.environ["OMP_NUM_THREADS"] = str(spec.threads)
            gave = run_stages(spec, folder)
        except BaseException as exc:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends; asking again must not cut what it says
            _failed(folder, exc, cancelled=cancel.asked or isinstance(exc, KeyboardInterrupt))
            raise
        folder.end("done", gave)
        folder.say("job", event="done")
    return 0


class Cancel:
    """What SIGTERM does: end the job by an exception, and remember it. A library may make another of it."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002  a handler's signature
        """The signal's handler."""
        self.asked = True
        raise SystemExit("cancelled")


def _failed(folder: Folder, exc: BaseException, *, cancelled: bool) -> None:
    """Say why, and that nothing more will come."""
    why = str(exc) if isinstance(exc, JobError) else f"{type(exc).__name__}: {exc}"
    status, why = ("cancelled", "cancelled") if cancelled else ("failed", why[:2000])
    folder.end(status, folder.gave(), why)
    folder.say("job", event=status, error=why)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
