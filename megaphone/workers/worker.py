"""What a worker hears from its supervisor, asks and answers. `megaphone.app` is what it runs."""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from megaphone.errors import MegaphoneError, TargetUnavailable
from megaphone.workers.messages import (
    AddAgent,
    AgentAdded,
    Begin,
    DropAgent,
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
AGENT_ADDED_WITHIN_S = 10.0
"""How long the supervisor may take to let all workers have an agent."""


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
        self.is_orphaned = asyncio.Event()
        """Set when the supervisor has gone."""
        self._connection = connection
        self._link: Link | None = None
        self._render: Callable[[], bytes] | None = None
        self._asked: deque[asyncio.Future[bytes]] = deque()
        self._have_agent: Callable[[str], Awaitable[None]] | None = None
        self._drop_agent: Callable[[str], None] | None = None
        self._serves = asyncio.Event()
        self._adding: dict[str, asyncio.Future[str | None]] = {}
        """The agents that other workers do not have yet, or why not, by their names."""
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def linked(self) -> AsyncIterator[None]:
        """Listen to the supervisor within this context."""
        self._link = await Link.over(self._connection.dup())
        listening = asyncio.create_task(self._listen(self._link))
        try:
            yield
        finally:
            for task in (listening, *self._tasks):
                task.cancel()
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
                case AddAgent(name):
                    self._begin(self._add_agent(link, name))
                case AgentAdded(name, error) if name in self._adding:
                    self._adding.pop(name).set_result(error)
                case DropAgent(name) if self._drop_agent is not None:
                    self._drop_agent(name)
                case Leave():
                    self.leaving.set()
                case Stop():
                    self.stopping.set()
        self.is_orphaned.set()
        self.stopping.set()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def serves(
        self,
        http_port: int,
        grpc_port: int,
        render: Callable[[], bytes],
        have_agent: Callable[[str], Awaitable[None]],
        drop_agent: Callable[[str], None],
    ) -> None:
        """Say that this worker serves. `render` returns its metrics. `have_agent` gives it an
        agent, unless it has it, and `drop_agent` takes it away."""
        assert self._link is not None
        self._render = render
        self._have_agent = have_agent
        self._drop_agent = drop_agent
        self._serves.set()
        self._link.send(Ready(http_port, grpc_port))

    # -- Agents

    async def _add_agent(self, link: Link, name: str) -> None:
        """Have an agent that another worker was given."""
        await self._serves.wait()
        assert self._have_agent is not None
        try:
            await self._have_agent(name)
        except MegaphoneError as error:
            link.send(AgentAdded(name, f"worker {self.number}: {error}"))
        else:
            link.send(AgentAdded(name))

    async def let_others_have(self, name: str) -> None:
        """Let all other workers have an agent, and each worker that is started from now on.

        Raises: TargetUnavailable, when one of them does not have it. Then a repetition is harmless.
        """
        assert self._link is not None
        added = self._adding.get(name)
        if added is None:
            added = self._adding[name] = asyncio.get_running_loop().create_future()
            self._link.send(AddAgent(name))
        try:
            async with asyncio.timeout(AGENT_ADDED_WITHIN_S):
                error = await asyncio.shield(added)
        except TimeoutError:
            self._adding.pop(name, None)
            error = "the supervisor does not answer"
        if error is not None:
            raise TargetUnavailable(f"not every worker has agent {name}: {error}")

    def let_others_drop(self, name: str) -> None:
        """Let no other worker make new channels under an agent, nor one that is started from now
        on, until the settings are read again."""
        assert self._link is not None
        self._link.send(DropAgent(name))

    # -- Metrics

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
