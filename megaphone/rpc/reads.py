"""A read over gRPC: one server stream, each message everything that is ready.

A message costs grpc.aio the same however small it is, so batches are what makes it fast.
"""

import math
from typing import Any

import grpc

from megaphone.core.budget import Budget
from megaphone.core.reader import Reader, bytes_of
from megaphone.wire import protobuf as wire
from megaphone_api.v1 import channels_pb2 as pb

RECOVERED_KEY = "megaphone-recovered"
DEADLINE_MARGIN_S = 0.5
COPIES = 2
"""How often a batch is in memory while it is sent: as messages, and as their bytes."""


def read_window_s(time_remaining_s: float | None) -> float:
    """How long a read with a deadline lasts: a little less, so that it ends with OK before it."""
    if time_remaining_s is None:
        return math.inf
    return max(0.0, time_remaining_s - min(DEADLINE_MARGIN_S, time_remaining_s / 10))


async def stream_events(
    context: "grpc.aio.ServicerContext[Any, pb.ReadResponse]", reader: Reader, budget: Budget
) -> None:
    """Send everything the reader gets, until it ends. Batches count against `budget` meanwhile.

    Must run within the reader's context: whatever is raised here makes the read a broken one.

    Raises: TooSlow, when the client has stalled; AgentMoved, when it takes nothing while its
        channel moves.
    """
    recovered = reader.recovered
    await context.send_initial_metadata(
        () if recovered is None else ((RECOVERED_KEY, str(recovered).lower()),)
    )
    async with reader.expecting_progress(None):
        async for events in reader:
            with budget.lent(COPIES * bytes_of(events)):
                await context.write(wire.events(events))
