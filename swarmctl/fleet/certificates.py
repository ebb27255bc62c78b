"""Host certificates: what one says, and whether it vouches for a host (OpenSSH, PROTOCOL.certkeys).

Pure bytes. Whether the authority's signature is right is for the caller, who has the cryptography.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fnmatch import fnmatchcase

SUFFIX = "-cert-v01@openssh.com"
HOST = 2
#: How many fields of a certificate, after the nonce, make the public key.
_KEY_FIELDS = {"ssh-ed25519": 1, "ssh-rsa": 2, "ecdsa-sha2-nistp256": 2, "ecdsa-sha2-nistp384": 2,
               "ecdsa-sha2-nistp521": 2}


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate. `key` is the plain public key in it, `signed` what `signature` by `authority` covers."""

    kind: str
    key: bytes
    role: int
    principals: tuple[str, ...]
    valid_after: int
    valid_before: int
    critical: bytes
    authority: bytes
    signed: bytes
    signature: bytes

    def vouches_for(self, host: str, now: float) -> bool:
        """Whether it is a host's certificate, for that name, at that time, without conditions we do not
        know."""
        names = (name.lower() for name in self.principals)
        named = not self.principals or any(fnmatchcase(host.lower(), name) for name in names)
        in_time = self.valid_after <= now < self.valid_before
        return self.role == HOST and named and in_time and not self.critical


def parse_certificate(blob: bytes) -> Certificate | None:
    """Read a public key blob as a certificate; None where it is a plain key or makes no sense."""
    try:
        return _parse(_Reader(blob))
    except (struct.error, UnicodeDecodeError, KeyError):
        return None


class _Reader:
    """Takes the fields of an SSH message (RFC 4251, 5) one after the other."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def number(self, form: str) -> int:
        """A big-endian integer."""
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def string(self) -> bytes:
        """A length and that many bytes."""
        size = self.number(">I")
        if size > len(self.data) - self.at:
            raise struct.error("a field is longer than the message")
        self.at += size
        return self.data[self.at - size:self.at]


def _parse(reader: _Reader) -> Certificate | None:
    name = reader.string().decode("ascii")
    if not name.endswith(SUFFIX):
        return None
    kind = name.removesuffix(SUFFIX)
    reader.string()  # nonce
    fields = tuple(reader.string() for _ in range(_KEY_FIELDS[kind]))
    reader.number(">Q")  # serial
    role = reader.number(">I")
    reader.string()  # key id
    principals = _strings(reader.string())
    after, before = reader.number(">Q"), reader.number(">Q")
    critical = reader.string()
    reader.string()  # extensions
    reader.string()  # reserved
    authority = reader.string()
    signed = reader.data[:reader.at]
    key = b"".join(struct.pack(">I", len(field)) + field for field in (kind.encode(), *fields))
    return Certificate(kind, key, role, principals, after, before, critical, authority, signed,
                       reader.string())


def _strings(packed: bytes) -> tuple[str, ...]:
    reader = _Reader(packed)
    found = []
    while reader.at < len(packed):
        found.append(reader.string().decode())
    return tuple(found)
