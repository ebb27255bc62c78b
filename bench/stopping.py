"""The end of a server that a bench started in a session of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess


def stop(process, folder):
    """End a server and all that it started, and remove its folder."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
    shutil.rmtree(folder, ignore_errors=True)
