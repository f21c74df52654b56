"""Long work in slices, so that no request holds the event loop.

The code counts work instead of measuring time, so that the slices are the same on each machine and
in each test. A slice takes about a millisecond.
"""

import asyncio
from typing import Any, Final, Protocol

SLICE: Final = 16_384
"""The amount of work in one slice. To check one byte of a body is an amount of 1."""
ADDRESS_WORK: Final = 256
"""The amount of work to parse an address, decrypt it and look up its channel."""
EVENT_WORK: Final = 128
"""The amount of work to make an event, or to write an event to a channel."""
ANSWER_WORK = 32
"""The amount of work to make one entry of a long response."""
FREED_AT_ONCE = 200
"""How many entries of a mapping are freed before tasks get a turn."""


class Pace:
    """Counts the work of one request, and lets other tasks run after each slice."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = SLICE

    async def work(self, amount: int) -> None:
        """Count work that was done. If the slice is used up, let other tasks run."""
        if self.is_used_up(amount):
            await asyncio.sleep(0)

    def is_used_up(self, amount: int) -> bool:
        """Count work, and return whether it used up the slice. If so, the next slice begins."""
        self._left -= amount
        if self._left > 0:
            return False
        self._left = SLICE
        return True


class Mapping(Protocol):
    """A dict, or an object that can be emptied like one."""

    def __len__(self) -> int: ...

    def popitem(self) -> Any: ...


def free_in_slices(mapping: Mapping) -> None:
    """Empty a mapping that is not used any more, in slices, now and in later turns of the event
    loop. To free very many entries at once would hold the loop."""
    for _ in range(min(len(mapping), FREED_AT_ONCE)):
        mapping.popitem()
    if len(mapping):
        asyncio.get_running_loop().call_soon(free_in_slices, mapping)


def loop_time() -> float:
    """Return the time of the event loop, in seconds."""
    return asyncio.get_running_loop().time()
