"""`serve`: the gateway, from the swarm that `up` made to a listening server, and its keys."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from swarmctl.atomic import write_whole
from swarmctl.dispatch.record import timestamp
from swarmctl.errors import SwarmError, UsageError
from swarmctl.fleet.locks import local_lock
from swarmctl.gateway.bounds import DEFAULT_BOUNDS, Bounds
from swarmctl.gateway.guard import is_loopback
from swarmctl.gateway.keys import DEFAULT_SCOPES, Key, Keyring, add_key, keys_file, read_keys, revoke_key
from swarmctl.gateway.unit import UNIT, unit_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from swarmctl.gateway.app import App
    from swarmctl.paths import Paths

PORT = 11411
#: seconds that who changes the keys waits for another who does
LOCK_WAIT = 30.0
#: Of this environment, what a unit keeps: where state lies, and the agent that holds SSH keys.
KEPT_ENVIRONMENT = ("SWARMCTL_HOME", "SSH_AUTH_SOCK", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME",
                    "XDG_CACHE_HOME")


@dataclass(frozen=True, slots=True)
class Serving:
    """How the gateway is to be served."""

    host: str = "127.0.0.1"
    port: int = PORT
    bounds: Bounds = DEFAULT_BOUNDS
    log_prompts: bool = False


def run(paths: Paths, find_inventory: Callable[[], Path], serving: Serving, *, clock: Callable[[], float],
        log: TextIO, say: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C. `find_inventory` may take its time: where there is none it brings up
    this machine. Raises UsageError where others could reach it without a key, SwarmError where there is no
    swarm, or nothing to listen on."""
    from swarmctl.gateway.serve import bind, listen, serve

    _refuse_open(paths, serving)
    sock = bind(serving.host, serving.port)
    app = make_app(paths, find_inventory(), serving, clock=clock, log=log, say=say)
    listen(sock)
    shown = f"[{serving.host}]" if ":" in serving.host else serving.host
    say(f"listening on http://{shown}:{sock.getsockname()[1]}")
    if not app.gateway.guard.locked():
        say("without an API key: every program of this machine may ask")
    serve(app, sock, say)


def make_app(paths: Paths, inventory: Path, serving: Serving, *, clock: Callable[[], float], log: TextIO,
             say: Callable[[str], None]) -> App:
    """The application, without a server around it."""
    from swarmctl.gateway.access_log import access_log
    from swarmctl.gateway.app import App, Gateway, surfaces
    from swarmctl.gateway.engine import Engine
    from swarmctl.gateway.guard import Guard
    from swarmctl.gateway.health import Health
    from swarmctl.gateway.limits import Limits, spent_today
    from swarmctl.gateway.resident import Resident
    from swarmctl.monitor.hosts import HostPoller
    from swarmctl.monitor.metrics import Metrics

    resident = Resident(paths, inventory, say)
    resident.swarm()
    guard = Guard(Keyring(keys_file(paths)), not is_loopback(serving.host))
    now = clock()
    spent = spent_today(paths.journal, now) if guard.locked() else {}
    engine = Engine(resident, clock, serving.bounds.at_once)
    return App(Gateway(engine, serving.bounds, clock, guard, Limits(spent, now), Health(resident, clock),
                       Metrics(paths, HostPoller(paths, clock=clock), clock),
                       access_log(log, clock), serving.log_prompts),
               surfaces())


def keys(paths: Paths) -> tuple[Key, ...]:
    """All API keys."""
    return read_keys(keys_file(paths))


def make_key(paths: Paths, name: str, now: float, *, scopes: tuple[str, ...] = DEFAULT_SCOPES,
             requests_per_minute: int | None = None, tokens_per_day: int | None = None,
             at_once: int | None = None, priority: int = 0) -> tuple[Key, str]:
    """Make an API key; as stored, and its secret."""
    with _one_at_a_time(paths):
        return add_key(paths, Key(name, "", timestamp(now), scopes or DEFAULT_SCOPES, requests_per_minute,
                                  tokens_per_day, at_once, priority))


def revoke(paths: Paths, name: str) -> Key:
    """Take an API key back."""
    with _one_at_a_time(paths):
        return revoke_key(paths, name)


def _one_at_a_time(paths: Paths) -> AbstractContextManager[None]:
    """Two terminals that change the keys must not undo each other's work."""
    return local_lock(paths.state / "keys.lock", "changing the keys", wait=LOCK_WAIT, on_wait=lambda _: None)


def _refuse_open(paths: Paths, serving: Serving) -> None:
    if is_loopback(serving.host) or read_keys(keys_file(paths)):
        return
    raise UsageError(f"{serving.host} can be reached by others, and there is no API key", hint=(
        "`swarmctl serve key add NAME` makes one, and is then asked for;\n"
        "or stay on this machine: --host 127.0.0.1"))


def unit(inventory: Path, environ: Mapping[str, str], host: str, port: int) -> str:
    """A systemd user unit that serves this inventory on this address, from this installation."""
    argv = (sys.executable, "-m", "swarmctl", "--inventory", str(inventory), "serve", "--host", host,
            "--port", str(port))
    kept = {name: environ[name] for name in KEPT_ENVIRONMENT if environ.get(name)}
    return unit_text(argv, kept, DEFAULT_BOUNDS.drain)


def install_unit(text: str, environ: Mapping[str, str]) -> Path:
    """Write the unit where this user's systemd looks. Raises SwarmError."""
    home = Path(environ.get("HOME") or Path.home())
    config = environ.get("XDG_CONFIG_HOME", "")
    folder = (Path(config) if config.startswith("/") else home / ".config") / "systemd" / "user"
    try:
        write_whole(folder / UNIT, text)
    except OSError as exc:
        raise SwarmError(f"cannot write {folder / UNIT}: {exc.strerror}") from exc
    return folder / UNIT
