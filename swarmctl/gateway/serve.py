"""The gateway as a process: a uvicorn server around the app, from its sockets to its graceful end.

At SIGTERM, Ctrl-C or the end of its terminal it stops accepting, lets what is under way finish within
`bounds.drain` seconds, hangs up on the rest, and leaves once every exchange is recorded. A second Ctrl-C does
not wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from typing import TYPE_CHECKING

import uvicorn

from swarmctl.errors import SwarmError
from swarmctl.gateway.wire import protocol
from swarmctl.runtimes.http import keeping

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from swarmctl.gateway.app import App

#: After the last hang-up, for exchanges to be recorded.
RECORD_SECONDS = 5.0
BACKLOG = 512


def bind(host: str, port: int) -> socket.socket:
    """A socket of that address, to listen on later. Raises SwarmError where it is taken or not ours."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, kind, proto)
    except OSError as exc:
        raise SwarmError(f"cannot listen on {host}: {exc.strerror or exc}") from exc
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as exc:
        sock.close()
        raise _cannot_listen(host, port, exc) from exc
    sock.setblocking(False)
    return sock


def listen(sock: socket.socket) -> None:
    """Accept connections from now on. Raises SwarmError where another process was first."""
    host, port = sock.getsockname()[:2]
    try:
        sock.listen(BACKLOG)
    except OSError as exc:
        sock.close()
        raise _cannot_listen(host, port, exc) from exc


def _cannot_listen(host: str, port: int, exc: OSError) -> SwarmError:
    hint = "is a gateway running already? --port chooses another" if exc.errno == errno.EADDRINUSE else None
    return SwarmError(f"cannot listen on {host}:{port}: {exc.strerror or exc}", hint=hint)


def serve(app: App, sock: socket.socket, say: Callable[[str], None]) -> None:
    """Serve until a signal. Returns when all is recorded."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # each junk request would be a warning
    with keeping(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(app, sock, say))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed (it has no wheel for every machine); else asyncio's own. It took 0.3 ms
    off the first token (2.65 to 2.37 ms added)."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(app: App, sock: socket.socket, say: Callable[[str], None]) -> None:
    server = _server(app)
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, server, stopping)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup is heeded
        loop.add_signal_handler(signal.SIGHUP, _stop, server, stopping)
    running = asyncio.ensure_future(server.serve([sock]))
    stop = asyncio.ensure_future(stopping.wait())
    try:
        await asyncio.wait((running, stop), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            await _drain(app, server, running, say)
        await running
    finally:
        stop.cancel()
        app.gateway.engine.close()
        app.gateway.metrics.close()


class _Server(uvicorn.Server):
    """Signals are ours: uvicorn's handlers would raise them again at the end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave them alone."""
        yield


def _server(app: App) -> _Server:
    bounds = app.gateway.bounds
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False,
        http=protocol(bounds), proxy_headers=False, timeout_keep_alive=round(bounds.idle),
        timeout_graceful_shutdown=round(bounds.drain + RECORD_SECONDS))
    return _Server(config)


def _stop(server: uvicorn.Server, stopping: asyncio.Event) -> None:
    server.force_exit = server.should_exit
    server.should_exit = True
    stopping.set()


async def _drain(app: App, server: uvicorn.Server, running: asyncio.Future[None],
                 say: Callable[[str], None]) -> None:
    engine, bounds = app.gateway.engine, app.gateway.bounds
    if engine.running:
        say(f"{engine.running} answers are under way; waiting for them up to {bounds.drain:.0f} s "
            "(Ctrl-C again: no longer)")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(bounds.drain):
            while not running.done() and not server.force_exit:
                await asyncio.sleep(0.05)
    if cut := engine.hang_up():
        say(f"{cut} answers were cut short and recorded as cancelled")
    await engine.settle(RECORD_SECONDS)
