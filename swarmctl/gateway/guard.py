"""Who is let in: the key, what it may do, and, where no key is asked for, only programs of this machine.

Without keys the gateway listens on loopback alone. Then a web page that a person visits is the one stranger
who could still reach it: by a name of its own that leads here (DNS rebinding), which the Host header shows,
or by sending a form across origins, which the Origin header shows. Both are refused, and no CORS header is
ever sent.
"""

from __future__ import annotations

from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from swarmctl.gateway.turn import BadRequest

if TYPE_CHECKING:
    from swarmctl.gateway.call import Call
    from swarmctl.gateway.keys import Key, Keyring
    from swarmctl.gateway.surface import Surface

#: Asked by machines that watch; they learn no more than that somebody is there.
OPEN = ("/healthz",)


class Guard:
    """The door. `wide` is whether others than this machine can reach it: then a key is always asked for."""

    def __init__(self, keyring: Keyring, wide: bool) -> None:
        self._keyring = keyring
        self._wide = wide

    def admit(self, call: Call, surface: Surface) -> Key | None:
        """The key of a request, or None where none is asked for. Raises BadRequest: 401 without a key that
        is known, 403 for a stranger."""
        secret = _bearer(call) or (surface.key(call.headers) if surface.key else None)
        if not self.locked():
            _refuse_strangers(call)
            return None
        key = self._keyring.find(secret) if secret else None
        if key is not None:
            call.key = key.terminal
        elif call.path not in OPEN:
            raise BadRequest("no API key was given" if not secret else "this API key is not known",
                             status=401)
        return key

    def locked(self) -> bool:
        """Whether a key is asked for."""
        return self._wide or bool(self._keyring.keys())


def demand(key: Key | None, scope: str) -> None:
    """Raise BadRequest where a key may not do this. No key is all there is where none is asked for."""
    if key is not None and scope not in key.scopes:
        raise BadRequest(f"the key {key.name} may not do this: it lacks the scope {scope}", status=403)


@lru_cache(maxsize=64)  # asked of every request, mostly the same
def is_loopback(host: str) -> bool:
    """Whether an address, or localhost, is this machine's own."""
    name = host.strip("[]").partition("%")[0]
    if name.lower().rstrip(".") == "localhost" or name.lower().endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _bearer(call: Call) -> str | None:
    kind, _, secret = call.headers.get("authorization", "").partition(" ")
    return secret.strip() or None if kind.lower() == "bearer" else None


def _refuse_strangers(call: Call) -> None:
    if not is_loopback(_name(call.headers.get("host", ""))):
        raise BadRequest("this gateway answers to localhost only", status=403)
    origin = call.headers.get("origin")
    if origin is not None and not is_loopback(_name(origin.partition("://")[2])):
        raise BadRequest("web pages of other origins may not ask this gateway", status=403)


def _name(authority: str) -> str:
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""
