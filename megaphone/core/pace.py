"""Long work in slices, so that no request holds the event loop.

Work is counted and not timed, so that it is the same on every machine and in every test: a slice
takes a millisecond or so.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Protocol

SLICE = 16_384
"""The work of one slice. Looking through a byte of a body is 1."""
ADDRESS_WORK = 256
"""To parse an address, decrypt it, and look up its channel."""
EVENT_WORK = 128
"""To make an event, or to write it to a channel."""
ANSWER_WORK = 32
"""To make one of many parts of an answer."""
CANCELLED_AT_ONCE = 200
"""How many tasks are cancelled before others get their turn."""
FREED_AT_ONCE = 500
"""How many entries of a mapping are freed before tasks get their turn."""


class Pace:
    """Counts the work of one request, and lets other tasks run after each slice of it."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = SLICE

    async def work(self, amount: int) -> None:
        """Count work that was done, and give way if the slice is used up."""
        if self.is_used_up(amount):
            await asyncio.sleep(0)

    def is_used_up(self, amount: int) -> bool:
        """Count work, and tell whether the slice is used up; then the next one begins."""
        self._left -= amount
        if self._left > 0:
            return False
        self._left = SLICE
        return True


Start = Callable[[Coroutine[None, None, None]], None]


@asynccontextmanager
async def many_tasks() -> AsyncIterator[Start]:
    """A context that starts tasks and ends when they have ended, as `asyncio.TaskGroup`.

    If it is cancelled, it cancels them in slices.
    """
    tasks: list[asyncio.Task[None]] = []
    async with asyncio.TaskGroup() as group:
        try:
            yield lambda work: tasks.append(group.create_task(work))
            if tasks:
                await asyncio.wait(tasks)
        except asyncio.CancelledError:
            for number, task in enumerate(tasks, start=1):
                task.cancel()
                if number % CANCELLED_AT_ONCE == 0:
                    await asyncio.sleep(0)
            raise


class Mapping(Protocol):
    """A dict of any kind."""

    def __len__(self) -> int: ...

    def popitem(self) -> Any: ...


def free_in_slices(mapping: Mapping) -> None:
    """Empty a mapping that nobody uses any more, in later turns of the event loop.

    To free very many entries at once would hold the loop.
    """
    for _ in range(min(len(mapping), FREED_AT_ONCE)):
        mapping.popitem()
    if len(mapping):
        asyncio.get_running_loop().call_soon(free_in_slices, mapping)
