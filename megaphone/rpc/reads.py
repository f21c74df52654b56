"""Reads over gRPC: one server stream, whose messages each hold all events that are ready.

A small message costs grpc.aio as much as a large one, so batches make a read fast.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from megaphone.core.budget import Budget
from megaphone.core.many import ManyReader
from megaphone.core.progress import LARGEST_UNSEEN_BATCH_BYTES
from megaphone.core.reader import Reader
from megaphone.core.reading import Reading
from megaphone.model import Event, Part
from megaphone.rpc.errors import present_call

if TYPE_CHECKING:
    import grpc

POSITION_KEY = "megaphone-position"
RECOVERED_KEY = "megaphone-recovered"
DEADLINE_MARGIN_S = 0.5
COPIES = 2
"""How many times a batch is in memory while it is sent: as bytes, and as their copy in grpc."""


def read_time_s(time_remaining_s: float | None) -> float:
    """Return how long a read with a deadline may last.

    That is a little less than the time to the deadline, so that the read ends with OK before it.
    """
    if time_remaining_s is None:
        return math.inf
    return max(0.0, time_remaining_s - min(DEADLINE_MARGIN_S, time_remaining_s / 10))


async def stream_events(
    context: "grpc.aio.ServicerContext[Any, bytes]",
    reading: Reading[Reader],
    budget: Budget,
    message_of: Callable[[Sequence[Event]], bytes],
) -> None:
    """Open a read, and send every batch of it until the read ends.

    `message_of` makes the bytes of a batch. A batch counts against `budget` while it is sent. The
    call counts as answered when the read is open.

    Raises: the errors of a `Reading`. An error after its context is entered makes the read a broken
        one. After a clean end: TokenExpired or another error, if the caller may not read any more.
    """
    async with reading:
        reader = reading.reader
        begun = [(POSITION_KEY, reader.cursor)]
        if reader.recovered is not None:
            begun.append((RECOVERED_KEY, str(reader.recovered).lower()))
        present_call().end()
        await context.send_initial_metadata(begun)
        async for events in reading:
            with budget.lent(COPIES * reader.size_of(events)):
                await context.write(message_of(events))
    if reader.refusal is not None:
        raise reader.refusal


async def stream_many(
    context: "grpc.aio.ServicerContext[Any, bytes]",
    reading: Reading[ManyReader],
    budget: Budget,
    message_of: Callable[[Sequence[Part]], bytes],
) -> None:
    """Do the same for a read of many channels."""
    async with reading:
        present_call().end()
        await context.send_initial_metadata(())
        reader = reading.reader
        async for batch in reading:
            for parts in messages_of(batch, reader):
                with budget.lent(COPIES * reader.size_of(parts)):
                    await context.write(message_of(parts))


def messages_of(batch: list[Part], reader: ManyReader) -> Iterator[list[Part]]:
    """Divide a batch into messages: one, unless an event in it is larger than batches are.

    Such an event may come behind smaller ones. It has a message to itself, because clients have
    room for the largest event, but not for what other channels have as well.
    """
    message: list[Part] = []
    size = 0
    for part in batch:
        more = reader.size_of([part])
        if message and size + more > LARGEST_UNSEEN_BATCH_BYTES:
            yield message
            message, size = [], 0
        message.append(part)
        size += more
    yield message
