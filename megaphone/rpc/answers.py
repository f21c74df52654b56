"""Answers that are serialized piece by piece, so that a long one does not hold the event loop."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any


async def joined(pieces: Iterator[bytes]) -> bytes:
    """Return a serialized response from its pieces. Other tasks run between two pieces."""
    made: list[bytes] = []
    for piece in pieces:
        if made:
            await asyncio.sleep(0)
        made.append(piece)
    return b"".join(made)


def or_serialized(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Return a serializer that passes on responses which a handler has serialized itself."""
    return lambda response: response if isinstance(response, bytes) else serialize(response)
