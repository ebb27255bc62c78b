"""This machine as a remote, for `ssh: local`: the same commands, without SSH."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from typing import TYPE_CHECKING

from swarmctl.fleet.shell import Completed, Feeder, Output, ShellRemote, timed_out

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

GRACE = 2.0  # seconds between SIGTERM and SIGKILL


class LocalRemote(ShellRemote):
    """Runs each command in a process group of its own."""

    def __init__(self, host: str) -> None:
        self.host = host

    def execute(self, argv: Sequence[str], *, timeout: float, source: Iterator[bytes] | None = None,
                sink: Callable[[bytes], None] | None = None) -> Completed:
        """See ShellRemote.execute. Past `timeout` the whole group is ended."""
        started = time.monotonic()
        try:
            process = subprocess.Popen(tuple(argv), stdin=subprocess.PIPE if source else subprocess.DEVNULL,
                                       bufsize=0,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        except OSError as exc:
            return Completed(tuple(argv), 127, "", f"{argv[0]}: {exc.strerror}", time.monotonic() - started)
        with process:
            feeder = _feed(process, source) if source else None
            output, error = Output(sink), Output()
            try:
                finished = _drain(process, output, error, started + timeout)
            except BaseException:  # Ctrl-C too: what we started does not outlive us; raised again
                _end_group(process)
                raise
            if not finished:
                _end_group(process)
                raise timed_out(self.host, argv, timeout)
            if feeder:
                feeder.finish(GRACE)
        return Completed(tuple(argv), process.returncode, output.text, error.text, time.monotonic() - started)

    def close(self) -> None:
        """Nothing is held."""


def _feed(process: subprocess.Popen[bytes], source: Iterator[bytes]) -> Feeder:
    stdin = process.stdin
    if stdin is None:
        raise ValueError("the process has no stdin")
    fd = stdin.fileno()

    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view):]

    return Feeder(source, write, stdin.close)


def _drain(process: subprocess.Popen[bytes], output: Output, error: Output, deadline: float) -> bool:
    """Read both streams to their end and wait; False past the deadline."""
    with selectors.DefaultSelector() as selector:
        for stream, kept in ((process.stdout, output), (process.stderr, error)):
            if stream:
                selector.register(stream, selectors.EVENT_READ, kept)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                return False
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                key.data.add(data)
                if not data:
                    selector.unregister(key.fileobj)
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            continue
