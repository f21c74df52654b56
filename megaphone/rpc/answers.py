"""Answers that are made in a special way: serialized piece by piece, or refused unread."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from megaphone.errors import MegaphoneError


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


def failing_handler(error: MegaphoneError) -> Any:
    """Return a handler that fails with an error.

    It takes a stream, whether or not its method does. On the wire both are the same, but grpc would
    read a single message before it calls a handler.
    """

    async def refuse(requests: Any, context: Any) -> Any:
        raise error

    return grpc.stream_unary_rpc_method_handler(refuse)
