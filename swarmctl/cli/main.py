"""The entry point, and the one place that catches everything."""

from __future__ import annotations

import errno
import os
import sys

from swarmctl.cli import loading
from swarmctl.errors import SwarmError

#: what a stream to a file says that takes no more; it names no file
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


def main() -> None:
    """Run the command line and leave with an exit status that means something."""
    _open_missing_streams()
    loading.begin()
    from swarmctl.cli.app import app

    try:
        app()
    except SwarmError as exc:
        show_error(exc)
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        sys.exit(130)
    except BrokenPipeError:
        _drop_output()
        sys.exit(141)
    except Exception as exc:
        if os.environ.get("SWARMCTL_DEBUG"):
            raise
        if isinstance(exc, OSError) and exc.errno in FULL and exc.filename is None:
            sys.stderr.write(f"swarmctl: the output cannot be written: {exc.strerror}\n")
            _drop_output()
            sys.exit(1)
        sys.stderr.write(f"swarmctl: unexpected {type(exc).__name__}: {exc}\n"
                         "  This is a defect in swarmctl. SWARMCTL_DEBUG=1 shows where it happened.\n")
        sys.exit(1)
    finally:
        _let_a_lost_terminal_be()


def _drop_output() -> None:
    """What is still to be written goes nowhere, so that leaving does not fail for it again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _let_a_lost_terminal_be() -> None:
    """What a terminal that is gone did not take of our remarks is no failure of what was done; Python would
    leave with 120 for it."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _open_missing_streams() -> None:
    """Give a process that was started with closed streams (`<&-`, some service managers) ones to nowhere."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def show_error(exc: SwarmError) -> None:
    """Print an error the way a person reads it: what failed, then what to do."""
    sys.stderr.write(f"swarmctl: {exc}\n")
    if exc.hint:
        sys.stderr.write("".join(f"  {line}\n" for line in exc.hint.splitlines()))
