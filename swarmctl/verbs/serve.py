"""`serve`: the gateway, from the swarm that `up` made to a listening server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from swarmctl.gateway.access_log import access_log
from swarmctl.gateway.app import App, Gateway, surfaces
from swarmctl.gateway.bounds import DEFAULT_BOUNDS, Bounds
from swarmctl.gateway.engine import Engine
from swarmctl.gateway.resident import Resident
from swarmctl.gateway.serve import listen, serve

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from swarmctl.paths import Paths

PORT = 11411


@dataclass(frozen=True, slots=True)
class Serving:
    """How the gateway is to be served."""

    host: str = "127.0.0.1"
    port: int = PORT
    bounds: Bounds = DEFAULT_BOUNDS


def run(paths: Paths, inventory: Path, serving: Serving, *, clock: Callable[[], float], log: TextIO,
        say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises SwarmError where there is no swarm, or nothing to listen on."""
    resident = Resident(paths, inventory, say)
    resident.swarm()
    engine = Engine(resident, clock, serving.bounds.at_once)
    app = App(Gateway(engine, serving.bounds, clock, access_log(log, clock)), surfaces())
    sock = listen(serving.host, serving.port)
    say(f"listening on http://{serving.host}:{sock.getsockname()[1]}")
    serve(app, sock, say)
