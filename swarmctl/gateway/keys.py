"""API keys: who may ask, how much, and for what. The file in config holds names, limits and hashes.

A key is 256 random bits, so one SHA-256 is the right hash: nobody can guess what was hashed, and a slow hash
would only slow every request. Every stored hash is compared, each in constant time.
"""

from __future__ import annotations

import hmac
import json
import re
import secrets
import threading
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from swarmctl.atomic import write_whole
from swarmctl.errors import Garbled, SwarmError, UsageError
from swarmctl.typed import build, items, load

if TYPE_CHECKING:
    from pathlib import Path

    from swarmctl.paths import Paths

PREFIX = "sk-swarm-"
BITS = 256
KEYS_VERSION = 1
OTHERS_WRITE = 0o022
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")
#: ask: every API; feedback: rate one's own answers; rate: those of all; metrics: /metrics.
SCOPES = ("ask", "feedback", "rate", "metrics")
DEFAULT_SCOPES = ("ask", "feedback")
#: What `ask --priority` takes, too.
PRIORITIES = range(-9, 10)


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it is stored. A limit of None is none; `made` is ISO 8601. Where questions wait for a slot,
    those of a higher `priority` come earlier."""

    name: str
    sha256: str
    made: str
    scopes: tuple[str, ...] = DEFAULT_SCOPES
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    at_once: int | None = None
    priority: int = 0

    @property
    def terminal(self) -> str:
        """What exchanges call who asked."""
        return f"key:{self.name}"


def keys_file(paths: Paths) -> Path:
    """Where keys are kept."""
    return paths.config / "keys.json"


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys. Raises SwarmError where the file is not one of ours, or not ours alone to write: nobody gets
    in by breaking it."""
    try:
        if path.stat().st_mode & OTHERS_WRITE:
            raise SwarmError(f"{path} may be changed by others, who could let themselves in",
                             hint=f"look at what is in it, then: chmod 600 {path}")
        return tuple(_key(one, f"keys.{place}") for place, one in enumerate(_listed(load(path))))
    except FileNotFoundError:
        return ()
    except (OSError, Garbled) as exc:
        why = exc.strerror if isinstance(exc, OSError) else exc
        raise SwarmError(f"{path} cannot be read as API keys: {why}", hint=(
            "nobody is let in meanwhile; mend it, or remove it and make new keys:\n"
            "swarmctl serve key add NAME")) from exc


def _listed(raw: Any) -> list[Any]:  # noqa: ANN401  any JSON
    if not isinstance(raw, dict) or raw.get("version") != KEYS_VERSION:
        raise Garbled(f"it is not of version {KEYS_VERSION}")
    return items(raw, "keys")


def _key(raw: object, where: str) -> Key:
    key = build(Key, raw, where)
    for name in ("requests_per_minute", "tokens_per_day", "at_once"):
        limit = getattr(key, name)
        if limit is not None and limit < 1:
            raise Garbled(f"{where}.{name} is {limit}; at least 1, or null for no limit")
    if key.priority not in PRIORITIES:
        raise Garbled(f"{where}.priority is {key.priority}, not from {PRIORITIES[0]} to {PRIORITIES[-1]}")
    if unknown := [scope for scope in key.scopes if scope not in SCOPES]:
        raise Garbled(f"{where}.scopes has {unknown[0]!r}, none of {', '.join(SCOPES)}")
    return key


def add_key(paths: Paths, key: Key) -> tuple[Key, str]:
    """Make a key with these limits; the key as stored, and the secret, which is never shown again. Raises
    UsageError."""
    if not NAME.fullmatch(key.name):
        raise UsageError(f"{key.name!r} is no name for a key", hint="letters, digits, . _ -; at most 40")
    if unknown := [scope for scope in key.scopes if scope not in SCOPES]:
        raise UsageError(f"no scope is called {unknown[0]!r}", hint=", ".join(SCOPES))
    known = read_keys(keys_file(paths))
    if any(one.name == key.name for one in known):
        raise UsageError(f"there is a key named {key.name}",
                         hint=f"`swarmctl serve key revoke {key.name}` first, or another name")
    secret = PREFIX + secrets.token_urlsafe(BITS // 8)
    made = replace(key, sha256=hashed(secret))
    _write(keys_file(paths), (*known, made))
    return made, secret


def revoke_key(paths: Paths, name: str) -> Key:
    """Remove a key; a running gateway refuses it from its next request on. Raises UsageError where there is
    none."""
    known = read_keys(keys_file(paths))
    gone = next((one for one in known if one.name == name), None)
    if gone is None:
        raise UsageError(f"no key is named {name}",
                         hint=f"keys: {', '.join(one.name for one in known) or 'none'}")
    _write(keys_file(paths), tuple(one for one in known if one is not gone))
    return gone


def hashed(secret: str) -> str:
    """What is stored of a secret."""
    return sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


class Keyring:
    """The keys as the gateway keeps them; read anew when the file changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._keys: tuple[Key, ...] = ()

    def keys(self) -> tuple[Key, ...]:
        """All keys. Raises SwarmError, as read_keys."""
        with self._lock:
            try:
                seen = self._path.stat()
            except FileNotFoundError:
                self._stamp, self._keys = None, ()
                return ()
            except OSError:  # keys that cannot be seen are not no keys
                return read_keys(self._path)
            stamp = (seen.st_mtime_ns, seen.st_ino)
            if stamp != self._stamp:
                self._keys = read_keys(self._path)
                self._stamp = stamp
            return self._keys

    def find(self, secret: str) -> Key | None:
        """The key of a secret. Takes as long whichever it is, or none."""
        given, found = hashed(secret), None
        for key in self.keys():
            if hmac.compare_digest(key.sha256, given):
                found = key
        return found


def _write(path: Path, keys: tuple[Key, ...]) -> None:
    text = json.dumps({"version": KEYS_VERSION, "keys": [asdict(one) for one in keys]}, indent=1)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, text)
        path.chmod(0o600)
    except OSError as exc:
        raise SwarmError(f"cannot write {path}: {exc.strerror or exc}",
                         hint=f"is the disk full, or {path.parent} not yours?") from exc
