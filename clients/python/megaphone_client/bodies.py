"""JSON values: an app's object to bytes, and bytes to the type that it asked for.

msgspec is imported at the first use, because that takes half as long as all of the client.
"""

from collections.abc import Callable
from functools import cache
from typing import Any


def encode(body: object) -> bytes:
    """Return a body as JSON. `bytes` are JSON already, and stay as they are.

    Raises: TypeError, if there is no JSON for such an object.
    """
    return body if isinstance(body, bytes) else _encoder()(body)


def decoder(type: Any, decode: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """Return what decodes the bodies of a read."""
    if decode is not None:
        return decode
    import msgspec

    return msgspec.json.Decoder(type).decode


@cache
def _encoder() -> Callable[[object], bytes]:
    import msgspec

    return msgspec.json.Encoder().encode
