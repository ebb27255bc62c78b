"""A yes or no that is asked of a person: what every kind of answer does, in a real terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import sys

import pytest

ASK = """
from swarmctl.cli import app, main
from swarmctl.cli.confirm import agreed
app.app = lambda: print("said", agreed("sure?"))
main.main()
"""


@pytest.mark.parametrize(("typed", "status", "said"), [
    (b"y\n", 0, "said True"), (b"n\n", 0, "said False"), (b"\n", 0, "said False"),
    (b"\x04", 0, "said False"), (b"\x03", 130, "sure?")])
def test_what_is_typed_is_what_is_understood(typed, status, said):
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, (sys.executable, "-c", ASK))
    shown = b""
    with os.fdopen(terminal, "r+b", buffering=0) as person, contextlib.suppress(OSError):  # its end, on Linux
        while b"sure?" not in shown:
            shown += person.read(4096)
        person.write(typed)
        while piece := person.read(4096):
            shown += piece
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == status
    assert said in shown.decode()
    assert "Aborted" not in shown.decode()
