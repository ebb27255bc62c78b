"""Host keys: what known_hosts files say of a host, and whether a presented key is the known one.

Pure text and bytes (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT): hashed names, patterns, `[host]:port`,
@cert-authority and @revoked. paramiko reads none of the markers and fails on a host whose second key type
is the known one, so the verdict is made here and paramiko only asks for it.
"""

from __future__ import annotations

import binascii
import hmac
from base64 import b64decode, b64encode
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha1, sha256
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from swarmctl.fleet.certificates import SUFFIX, parse_certificate
from swarmctl.fleet.ssh_stderr import key_changed, key_unknown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from swarmctl.fleet.certificates import Certificate

Verdict = Literal["known", "unknown", "changed", "revoked"]


@dataclass(frozen=True, slots=True)
class KnownKey:
    """One line of a known_hosts file. `marker` is "", "@cert-authority" or "@revoked"."""

    marker: str
    names: tuple[str, ...]
    kind: str
    blob: bytes
    file: str = ""
    line: int = 0

    def matches(self, name: str) -> bool:
        """Whether this line speaks of that name; a negated pattern that matches rules the line out."""
        hits = [pattern for pattern in self.names if _pattern_matches(pattern.removeprefix("!"), name)]
        return bool(hits) and not any(pattern.startswith("!") for pattern in hits)


@dataclass(frozen=True, slots=True)
class Gate:
    """Lets a connection to `host` through only with a key that `known` has for `name`, or a certificate of an
    authority that `known` trusts with that name."""

    host: str
    name: str
    known: tuple[KnownKey, ...]

    def algorithms(self, offered: Sequence[str]) -> tuple[str, ...]:
        """In which order to ask for host keys: certificates where there are authorities, then the recorded
        types, as OpenSSH does. A host that has several keys must be asked for the one we know."""
        plain = [name for name in offered if not name.endswith(SUFFIX)]
        first = [name for name in known_algorithms(known_kinds(self.known, self.name)) if name in plain]
        vouched = [name + SUFFIX for name in plain] if authorities(self.known, self.name) else []
        return (*vouched, *first, *(name for name in plain if name not in first))

    def check(self, presented: bytes, now: float, is_signed: Callable[[Certificate], bool]) -> None:
        """Raise HostKeyUnknown or HostKeyChanged unless the presented public key blob is good."""
        certificate = parse_certificate(presented)
        blob = certificate.key if certificate else presented
        verdict = judge(self.known, self.name, blob)
        if verdict == "known":
            return
        vouched = certificate and self._vouched(certificate, now) and is_signed(certificate)
        if vouched and verdict != "revoked":
            return
        if verdict == "unknown":
            raise key_unknown(self.host, _shown(blob))
        was = ", ".join(f"{key.kind} {fingerprint(key.blob)}" for key in recorded(self.known, self.name))
        raise key_changed(self.host, _shown(blob), "revoked" if verdict == "revoked" else was)

    def _vouched(self, certificate: Certificate, now: float) -> bool:
        bare = self.name.removeprefix("[").partition("]")[0]
        trusted = certificate.authority in authorities(self.known, self.name)
        return trusted and certificate.vouches_for(bare, now)


def read_known_hosts(files: Iterable[str | Path]) -> tuple[KnownKey, ...]:
    """All lines of all files that can be read, each file once."""
    found: list[KnownKey] = []
    for file in dict.fromkeys(map(str, files)):
        try:
            text = Path(file).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        found.extend(parse_known_hosts(text, file))
    return tuple(found)


def parse_known_hosts(text: str, file: str = "") -> tuple[KnownKey, ...]:
    """Read the lines of a known_hosts file. As OpenSSH does, lines that make no sense are passed over."""
    parsed = (_parse_line(line, file, number) for number, line in enumerate(text.splitlines(), 1))
    return tuple(key for key in parsed if key)


def judge(known: Sequence[KnownKey], name: str, blob: bytes) -> Verdict:
    """Whether a plain key may be accepted for that name. A line of another key counts as changed, of any
    type: a host that hides its known key behind a new type is not the host we knew."""
    lines = [key for key in known if key.matches(name) and key.marker != "@cert-authority"]
    if any(key.marker == "@revoked" and key.blob == blob for key in lines):
        return "revoked"
    plain = [key for key in lines if not key.marker]
    if any(key.blob == blob for key in plain):
        return "known"
    return "changed" if plain else "unknown"


def known_kinds(known: Sequence[KnownKey], name: str) -> tuple[str, ...]:
    """The key types recorded for that name: a client must ask for these first."""
    return tuple(dict.fromkeys(key.kind for key in known if key.matches(name) and not key.marker))


def known_algorithms(kinds: Iterable[str]) -> tuple[str, ...]:
    """The signature algorithms that present keys of these types: RSA keys sign with SHA-2 (RFC 8332)."""
    rsa = ("rsa-sha2-512", "rsa-sha2-256", "ssh-rsa")
    return tuple(name for kind in kinds for name in (rsa if kind == "ssh-rsa" else (kind,)))


def authorities(known: Sequence[KnownKey], name: str) -> tuple[bytes, ...]:
    """The public keys of the certificate authorities that may vouch for that name."""
    revoked = {key.blob for key in known if key.marker == "@revoked" and key.matches(name)}
    vouching = (key for key in known if key.marker == "@cert-authority" and key.matches(name))
    return tuple(key.blob for key in vouching if key.blob not in revoked)


def recorded(known: Sequence[KnownKey], name: str) -> tuple[KnownKey, ...]:
    """The plain keys recorded for that name."""
    return tuple(key for key in known if key.matches(name) and not key.marker)


def fingerprint(blob: bytes) -> str:
    """`SHA256:…` as ssh-keygen -l prints it."""
    return "SHA256:" + b64encode(sha256(blob).digest()).decode().rstrip("=")


def without(text: str, name: str) -> str:
    """The text of a known_hosts file less its plain lines for that name."""
    gone = {key.line for key in parse_known_hosts(text) if key.matches(name) and not key.marker}
    lines = enumerate(text.splitlines(keepends=True), 1)
    return "".join(line for number, line in lines if number not in gone)


def _shown(blob: bytes) -> str:
    kind = blob[4:4 + int.from_bytes(blob[:4], "big")].decode("ascii", errors="replace")
    return f"{kind} {fingerprint(blob)}"


def _parse_line(line: str, file: str, number: int) -> KnownKey | None:
    fields = line.split()
    if not fields or fields[0].startswith("#"):
        return None
    marker = fields.pop(0) if fields[0].startswith("@") else ""
    if len(fields) < 3 or marker not in {"", "@cert-authority", "@revoked"}:
        return None
    try:
        blob = b64decode(fields[2], validate=True)
    except (binascii.Error, ValueError):
        return None
    return KnownKey(marker, tuple(fields[0].split(",")), fields[1], blob, file, number)


def _pattern_matches(pattern: str, name: str) -> bool:
    if not pattern.startswith("|1|"):
        # fnmatch reads brackets as a set; OpenSSH knows only * and ?.
        return fnmatchcase(name.lower(), pattern.lower().replace("[", "[[]"))
    try:
        salt, digest = (b64decode(part) for part in pattern[3:].split("|"))
    except (binascii.Error, ValueError):
        return False
    return hmac.compare_digest(hmac.new(salt, name.encode(), sha1).digest(), digest)
