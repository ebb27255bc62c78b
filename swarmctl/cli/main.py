"""The entry point, and the one place that catches everything."""

from __future__ import annotations

import os
import sys

from swarmctl.cli import loading
from swarmctl.errors import SwarmError


def main() -> None:
    """Run the command line and leave with an exit status that means something."""
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as exc:
        if os.environ.get("SWARMCTL_DEBUG"):
            raise
        sys.stderr.write(f"swarmctl: unexpected {type(exc).__name__}: {exc}\n"
                         "  This is a defect in swarmctl. SWARMCTL_DEBUG=1 shows where it happened.\n")
        sys.exit(1)


def show_error(exc: SwarmError) -> None:
    """Print an error the way a person reads it: what failed, then what to do."""
    sys.stderr.write(f"swarmctl: {exc}\n")
    if exc.hint:
        sys.stderr.write("".join(f"  {line}\n" for line in exc.hint.splitlines()))
