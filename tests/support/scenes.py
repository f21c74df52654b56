"""Common steps of tests: write numbers, wait for a condition, read again."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from itertools import count

from megaphone.app import App
from megaphone.errors import ReaderBusy
from megaphone.model import ReadOptions
from tests.support.faces import PLAIN, Created, Face, OpenRead, ReadEvent, take

UNKNOWN_EVENT = "x" * 23
UNKNOWN_ADDRESS = f"elsewhere.{'A' * 59}"
"""A well-formed address of an agent that no node of a test has."""


def now() -> float:
    return asyncio.get_running_loop().time()


async def write_numbers(face: Face, channel: Created, values: Iterable[int]) -> list[str]:
    """Write numbers, one after the other. Returns: the ids of the events."""
    return [await face.write(channel.producer, "s", b"%d" % value) for value in values]


def numbers(events: Sequence[ReadEvent]) -> list[int]:
    return [int(event.body) for event in events]


def altered(address: str) -> str:
    """Return a well-formed producer address that no key can decrypt."""
    agent, _, sealed = address.partition(".")
    return f"{agent}.{'B' if sealed[0] == 'A' else 'A'}{sealed[1:]}"


def resuming_after(event_id: str) -> ReadOptions:
    return ReadOptions(cursor=event_id)


@asynccontextmanager
async def traffic(face: Face, channel: Created) -> AsyncIterator[None]:
    """Write 0, 1, 2 and so on as fast as possible within this context."""
    writing = asyncio.create_task(write_numbers(face, channel, count()))
    try:
        yield
        assert not writing.done(), "the writer has failed"
    finally:
        writing.cancel()
        with suppress(asyncio.CancelledError):
            await writing


@asynccontextmanager
async def reading_once_free(
    face: Face, channel: Created, options: ReadOptions = PLAIN
) -> AsyncIterator[OpenRead]:
    """Read a channel that has events, as soon as the broker has noticed that its reader left."""
    async with AsyncExitStack() as reads:
        async with asyncio.timeout(5):
            read = await first_not_refused(reads, face, channel, options)
        yield read


async def first_not_refused(
    reads: AsyncExitStack, face: Face, channel: Created, options: ReadOptions
) -> OpenRead:
    while True:
        try:
            read = await reads.enter_async_context(face.read(channel.consumer, options))
            await read.begun()
        except ReaderBusy:
            await a_moment()
        else:
            return read


async def read_once_free(
    face: Face, channel: Created, amount: int, options: ReadOptions = PLAIN
) -> list[ReadEvent]:
    async with reading_once_free(face, channel, options) as read:
        return await take(read, amount)


@contextmanager
def busy_loop(held_up_s: float = 0.003) -> Iterator[None]:
    """Slow down every turn of the event loop, as on a node under load."""
    loop = asyncio.get_running_loop()
    is_over = False

    def hold_up() -> None:
        if not is_over:
            time.sleep(held_up_s)
            loop.call_soon(hold_up)

    hold_up()
    try:
        yield
    finally:
        is_over = True


async def eventually(condition: Callable[[], Awaitable[bool]], within_s: float = 5) -> None:
    """Wait until a condition holds."""
    async with asyncio.timeout(within_s):
        while not await condition():
            await a_moment()


async def a_moment() -> None:
    await asyncio.sleep(0.01)


def gone(face: Face, channel: Created) -> Callable[[], Awaitable[bool]]:
    """Return the condition that a channel does not exist any more."""

    async def is_gone() -> bool:
        return await face.exists([channel.consumer]) == {channel.consumer: False}

    return is_gone


def writers_wait(app: App, amount: int) -> Callable[[], Awaitable[bool]]:
    """Return the condition that the given number of writers wait for a place."""

    async def do_wait() -> bool:
        return app.metrics.writers_waiting == amount

    return do_wait


async def still_waits(*tasks: "asyncio.Task[object]", for_s: float = 0.1) -> bool:
    """Return whether none of the tasks ends within the given time."""
    done, _ = await asyncio.wait(tasks, timeout=for_s, return_when=asyncio.FIRST_COMPLETED)
    return not done
