"""Lines that arrive over time, from a pipe, a terminal or a file."""

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from typing import Final

CHUNK_BYTES: Final = 65_536


async def lines_of(descriptor: int) -> AsyncIterator[bytes]:
    """Yield each line without its end, as soon as it is there."""
    rest = b""
    async for chunk in chunks_of(descriptor):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r")
    if rest:
        yield rest


async def chunks_of(descriptor: int) -> AsyncIterator[bytes]:
    """Yield bytes as they arrive. At most one chunk is read ahead.

    A thread reads, because a file cannot be waited for. It is a daemon and calls the system itself,
    so that a process may end while the thread waits for a pipe.
    """
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[bytes | OSError] = asyncio.Queue()
    is_wanted = threading.Semaphore(1)

    def read() -> None:
        while True:
            is_wanted.acquire()
            try:
                result: bytes | OSError = os.read(descriptor, CHUNK_BYTES)
            except OSError as error:
                result = error
            try:
                loop.call_soon_threadsafe(arrived.put_nowait, result)
            except RuntimeError:  # the loop is closed
                return
            if not result or isinstance(result, OSError):
                return

    threading.Thread(target=read, daemon=True).start()
    while chunk := await arrived.get():
        if isinstance(chunk, OSError):
            raise chunk
        is_wanted.release()
        yield chunk
