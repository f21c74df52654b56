"""A read over gRPC: one server stream, each message everything that is ready.

A message costs grpc.aio the same however small it is, so batches are what makes it fast.
"""

import asyncio
import math
from typing import Any

import grpc

from megaphone.core.reader import Reader
from megaphone.errors import TooSlow
from megaphone.wire import protobuf as wire
from megaphone_api.v1 import channels_pb2 as pb

RECOVERED_KEY = "megaphone-recovered"
STALL_GRACE_S = 5.0
DEADLINE_MARGIN_S = 0.5


def read_window_s(time_remaining_s: float | None) -> float:
    """How long a read with a deadline lasts: a little less, so that it ends with OK before it."""
    if time_remaining_s is None:
        return math.inf
    return max(0.0, time_remaining_s - min(DEADLINE_MARGIN_S, time_remaining_s / 10))


async def stream_events(
    context: "grpc.aio.ServicerContext[Any, pb.ReadResponse]", reader: Reader
) -> None:
    """Send everything the reader gets, until it ends.

    Must run within the reader's context: whatever is raised here makes the read a broken one.

    Raises: TooSlow, when the client takes nothing for so long that the read should have ended.
    """
    recovered = reader.recovered
    await context.send_initial_metadata(
        () if recovered is None else ((RECOVERED_KEY, str(recovered).lower()),)
    )
    try:
        # Only a client that takes nothing can make it last so long.
        async with asyncio.timeout_at(reader.until + STALL_GRACE_S):
            async for events in reader:
                await context.write(wire.events(events))
    except TimeoutError:
        raise TooSlow("the client took no events for too long") from None
