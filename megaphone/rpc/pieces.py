"""Responses that are serialized piece by piece, so that long ones do not hold the event loop."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any


async def joined(pieces: Iterator[bytes]) -> bytes:
    """Put a serialized response together, giving way between two pieces."""
    made: list[bytes] = []
    for piece in pieces:
        if made:
            await asyncio.sleep(0)
        made.append(piece)
    return b"".join(made)


def or_serialized(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Return a serializer that leaves what a handler has put together itself as it is."""
    return lambda response: response if isinstance(response, bytes) else serialize(response)
