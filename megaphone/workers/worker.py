"""What a worker hears from its supervisor, asks and answers. `megaphone.app` is what it runs."""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from megaphone.workers.messages import (
    Begin,
    Failed,
    Gather,
    Gathered,
    Leave,
    Link,
    Measure,
    Measured,
    Ready,
    Stop,
    encode,
    first_message,
)

GATHERED_WITHIN_S = 3.0
"""How long the supervisor may take to say what the metrics of all workers are."""


class Worker:
    """This process as one of several workers."""

    def __init__(self, connection: socket.socket) -> None:
        """Wait until the supervisor says what to serve.

        Raises: EOFError, when it has gone.
        """
        begin = first_message(connection)
        assert isinstance(begin, Begin)
        self.settings = begin.settings
        self.number = begin.number
        """Which of the workers this is, from 1."""
        self.http = socket.socket(fileno=begin.http)
        """The socket on which the worker serves HTTP."""
        self.leaving = asyncio.Event()
        """Set when the worker shall end without refusing anything."""
        self.stopping = asyncio.Event()
        """Set when the worker shall stop in order, or when the supervisor has gone."""
        self._connection = connection
        self._link: Link | None = None
        self._render: Callable[[], bytes] | None = None
        self._asked: deque[asyncio.Future[bytes]] = deque()

    @asynccontextmanager
    async def linked(self) -> AsyncIterator[None]:
        """Listen to the supervisor within this context."""
        self._link = await Link.over(self._connection.dup())
        listening = asyncio.create_task(self._listen(self._link))
        try:
            yield
        finally:
            listening.cancel()
            self._link.close()

    async def _listen(self, link: Link) -> None:
        while (message := await link.receive()) is not None:
            match message:
                case Measure() if self._render is not None:
                    link.send(Measured(self._render().decode()))
                case Gathered(text) if self._asked:
                    asked = self._asked.popleft()
                    if not asked.done():
                        asked.set_result(text.encode())
                case Leave():
                    self.leaving.set()
                case Stop():
                    self.stopping.set()
        self.stopping.set()

    def serves(self, http_port: int, grpc_port: int, render: Callable[[], bytes]) -> None:
        """Say that this worker serves. `render` returns its metrics."""
        assert self._link is not None
        self._render = render
        self._link.send(Ready(http_port, grpc_port))

    async def gather(self) -> bytes:
        """Return the metrics of all workers together.

        Raises: TimeoutError, when the supervisor does not answer.
        """
        assert self._link is not None
        asked: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked.append(asked)
        self._link.send(Gather())
        async with asyncio.timeout(GATHERED_WITHIN_S):
            return await asked

    async def report_last(self) -> None:
        """Report the metrics for the last time. Call this when nothing is counted any more."""
        if self._link is not None and self._render is not None:
            self._link.send(Measured(self._render().decode(), is_last=True))
            await self._link.sent()

    def report_failure(self, reason: str) -> None:
        """Say why this worker does not serve. Call this without an event loop."""
        self._connection.setblocking(True)
        with suppress(OSError):
            self._connection.sendall(encode(Failed(reason)))
