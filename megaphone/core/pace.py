"""Long work in slices, so that no request holds the event loop.

Work is counted and not timed, so that it is the same on every machine and in every test: a slice
takes a millisecond or so.
"""

import asyncio

SLICE = 16_384
"""The work of one slice. Looking through a byte of a body is 1."""
ADDRESS_WORK = 256
"""To parse an address, decrypt it, and look up its channel."""
EVENT_WORK = 128
"""To make an event, or to write it to a channel."""
ANSWER_WORK = 32
"""To make one of many parts of an answer."""


class Pace:
    """Counts the work of one request, and lets other tasks run after each slice of it."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = SLICE

    async def work(self, amount: int) -> None:
        """Count work that was done, and give way if the slice is used up."""
        self._left -= amount
        if self._left <= 0:
            self._left = SLICE
            await asyncio.sleep(0)
