"""Weights over https: resumed where they broke off, verified before they get their name."""

from __future__ import annotations

import time
from hashlib import sha256
from typing import TYPE_CHECKING
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from swarmctl.errors import DiskFull, SwarmError, TransferFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CHUNK = 1 << 20
STALL = 60.0
ATTEMPTS = 5


def download(url: str, to: Path, digest: str, note: Callable[[str], None]) -> Path:
    """Fetch `url` to `to`. What arrived is kept in a .part and resumed, here and in a later run.

    Raises TransferFailed after a budget of attempts, DiskFull, and SwarmError where the bytes are not those
    of `digest`.
    """
    part = to.with_name(f"{to.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(ATTEMPTS):
        try:
            _fetch(url, part, note)
            break
        except (URLError, TimeoutError, ConnectionError) as exc:
            if isinstance(exc, HTTPError) and exc.code < 500:
                raise TransferFailed(f"{url} answers {exc.code} {exc.reason}",
                                     hint="correct the model's `source`") from exc
            if attempt == ATTEMPTS - 1:
                raise TransferFailed(f"{url} broke off {ATTEMPTS} times: {exc}",
                                     hint="what arrived is kept; run the same again") from exc
            time.sleep(2 ** attempt)
        except OSError as exc:
            raise DiskFull(f"{part} cannot be written: {exc.strerror}", hint="free some space") from exc
    _check(url, part, digest)
    part.replace(to)
    return to


def _fetch(url: str, part: Path, note: Callable[[str], None]) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310  https only
    try:
        response = urlopen(request, timeout=STALL)  # noqa: S310
    except HTTPError as exc:
        if exc.code == 416 and have:  # nothing is missing
            return
        raise
    with response:
        if response.status != 206:
            have = 0
        size = have + int(response.headers.get("Content-Length") or 0)
        with part.open("ab" if have else "wb") as file:
            while data := response.read(CHUNK):
                file.write(data)
                have += len(data)
                note(f"{have / 1e6:,.0f} of {size / 1e6:,.0f} MB")
    if have < size:
        raise ConnectionError("the server closed the connection early")


def _check(url: str, part: Path, digest: str) -> None:
    found = sha256()
    with part.open("rb") as file:
        while data := file.read(CHUNK):
            found.update(data)
    if found.hexdigest() != digest:
        part.unlink()
        raise SwarmError(f"{url} has the sha256 {found.hexdigest()}, not {digest}",
                         hint="correct the model's `sha256`, if you trust the file")
