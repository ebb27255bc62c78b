"""One line of JSON a request: who asked, which host and model answered, how long it took. No prompts, no
answers, no keys, unless the operator asked for prompts."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

    from swarmctl.gateway.call import Call

#: Characters of a prompt that --log-prompts keeps; the journal has the whole.
PROMPT_LENGTH = 2000


def access_log(out: TextIO, clock: Callable[[], float]) -> Callable[[Call], None]:
    """A function that writes the line of a request that is over. A full disk loses lines and no requests."""

    def log(call: Call) -> None:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(clock(), UTC).isoformat(timespec="milliseconds"),
            "client": call.client, "key": call.key, "method": call.method, "path": call.path,
            "status": call.status, "bytes": call.sent,
            "seconds": round(time.monotonic() - call.began, 4), "first_byte": rounded(call.first),
            **call.noted}
        try:
            out.write(json.dumps({key: value for key, value in line.items() if value is not None}) + "\n")
            out.flush()
        except (OSError, ValueError):
            return

    return log


def rounded(seconds: float | None) -> float | None:
    """To a tenth of a millisecond."""
    return None if seconds is None else round(seconds, 4)
