"""JSON values: an app's object to bytes, and bytes to the type that it asked for."""

from collections.abc import Callable
from typing import Any

import msgspec

encode_json = msgspec.json.Encoder().encode


def encode(body: object) -> bytes:
    """Return a body as JSON. `bytes` are JSON already, and stay as they are.

    Raises: TypeError, if there is no JSON for such an object.
    """
    return body if isinstance(body, bytes) else encode_json(body)


def decoder(type: Any, decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """Return what decodes the bodies of a read."""
    if decode is not None:
        return decode
    return msgspec.json.Decoder(type).decode
