"""Images as clients send them, made into the data URLs that messages hold.

The gateway fetches nothing: an address in a client's body would make it ask anywhere for anybody. So an image
comes as base64 within the request, or is refused.
"""

from __future__ import annotations

import binascii
from typing import TYPE_CHECKING

from swarmctl.gateway.turn import BadRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

#: how the base64 of each kind begins
KINDS: Mapping[str, str] = {"iVBORw0KGgo": "image/png", "/9j/": "image/jpeg", "R0lGOD": "image/gif",
                            "UklGR": "image/webp", "Qk": "image/bmp"}
#: what llama-server takes by the kind of its bytes, whatever it is called
UNKNOWN = "image/unknown"


def from_url(url: object, param: str) -> str:
    """A data URL as it is. Raises BadRequest for any other, and for what is not base64."""
    if not isinstance(url, str):
        raise BadRequest("an image's url must be a string", param=param)
    head, comma, text = url.partition(";base64,")
    if not comma or not head.startswith("data:image/"):
        raise BadRequest("this gateway fetches no images: send data:image/…;base64,… instead of an address",
                         param=param)
    return f"{head};base64,{_checked(text, param)}"


def from_base64(text: object, param: str, kind: str = "") -> str:
    """A data URL of bare base64; its kind is told by its first bytes where it is not given."""
    if not isinstance(text, str):
        raise BadRequest("an image must be base64", param=param)
    found = kind or next((name for start, name in KINDS.items() if text.startswith(start)), UNKNOWN)
    return f"data:{found};base64,{_checked(text, param)}"


def _checked(text: str, param: str) -> str:
    try:
        binascii.a2b_base64(text, strict_mode=True)
    except ValueError as exc:
        raise BadRequest("an image's data is not base64", param=param) from exc
    return text
