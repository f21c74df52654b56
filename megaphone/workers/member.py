"""One worker, as the supervisor sees it: a process that is started, asked and ended."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Protocol

from megaphone.settings import Settings
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
    Message,
    Ready,
    Stop,
)

COMMAND = (sys.executable, "-P", "-m", "megaphone.cli.worker")
"""A new interpreter, and not a fork, because gRPC has threads; so a restart also runs the code that
is installed then. -P, because the working directory must not be searched for modules."""
QUIET_GRPC = {"GRPC_VERBOSITY": "NONE"}
"""Without it gRPC would print a line to standard error whenever a worker stops listening."""
SERVES_WITHIN_S = 60.0
"""How long a worker may take to start."""
MEASURES_WITHIN_S = 1.0
"""How long a worker may take to say what its metrics are. Then its last ones count."""
ADDS_AGENT_WITHIN_S = 5.0
"""How long a worker may take to have an agent that another worker was given."""


class StartFailed(Exception):
    """A worker does not serve. The text is one line for the operator."""


class Others(Protocol):
    """What a worker may ask of all workers."""

    async def gather(self) -> bytes:
        """Return the metrics of all workers together."""

    async def let_have(self, name: str, asking: "Member") -> str | None:
        """Let all workers but one have an agent. Returns: why somebody does not have it."""

    def let_drop(self, name: str, asking: "Member") -> None:
        """Let no worker make new channels under an agent."""


class Member:
    """A worker process from its start to its end."""

    def __init__(
        self, number: int, process: asyncio.subprocess.Process, link: Link, others: Others
    ) -> None:
        self.number = number
        self.metrics = b""
        """What the worker said last of its metrics."""
        self._process = process
        self._link = link
        self._others = others
        self._began_at = time.monotonic()
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._reason: str | None = None
        self._measured: deque[asyncio.Future[None]] = deque()
        self._adding: dict[str, asyncio.Future[str | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        number: int,
        settings: Settings,
        http: socket.socket,
        others: Others,
    ) -> "Member":
        """Start a worker process."""
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *COMMAND,
                str(theirs.fileno()),
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), http.fileno()),
                process_group=0,  # because Ctrl-C is for the supervisor alone
                env=QUIET_GRPC | os.environ,
            )
        member = cls(number, process, await Link.over(ours), others)
        member._link.send(Begin(settings, number, http.fileno()))
        member._running = asyncio.create_task(member._run())
        return member

    async def serves(self) -> Ready:
        """Wait until the worker serves. Raises: StartFailed, if it does not; it has ended then."""
        try:
            async with asyncio.timeout(SERVES_WITHIN_S):
                return await asyncio.shield(self._ready)
        except TimeoutError:
            await self.kill()
            raise StartFailed(f"it did not serve within {SERVES_WITHIN_S:g} s") from None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def age_s(self) -> float:
        return time.monotonic() - self._began_at

    @property
    def end(self) -> str:
        """How the process has ended, in words."""
        code = self._process.returncode
        if code is not None and code < 0:
            return f"ended by {signal.Signals(-code).name}"
        return f"ended with the exit code {code}"

    async def _run(self) -> None:
        while (message := await self._link.receive()) is not None:
            self._take(message)
        await self._process.wait()
        self._link.close()
        self._ended.set()
        if not self._ready.done():
            self._ready.set_exception(StartFailed(self._reason or f"it {self.end}"))
            self._ready.exception()  # nobody may ask for it
        for measured in self._measured:
            if not measured.done():
                measured.set_result(None)
        for added in self._adding.values():
            added.set_result(None)
        self._adding.clear()

    def _take(self, message: Message) -> None:
        match message:
            case Ready() if not self._ready.done():
                self._ready.set_result(message)
            case Failed(reason):
                self._reason = reason
            case Measured(text, is_last):
                self.metrics = text.encode()
                if not is_last and self._measured:
                    measured = self._measured.popleft()
                    if not measured.done():
                        measured.set_result(None)
            case Gather():
                self._begin(self._say_metrics())
            case AddAgent(name):
                self._begin(self._say_who_has(name))
            case AgentAdded(name, error) if name in self._adding:
                self._adding.pop(name).set_result(error)
            case DropAgent(name):
                self._others.let_drop(name, self)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _say_metrics(self) -> None:
        self._link.send(Gathered((await self._others.gather()).decode()))

    async def _say_who_has(self, name: str) -> None:
        self._link.send(AgentAdded(name, await self._others.let_have(name, self)))

    async def add_agent(self, name: str) -> str | None:
        """Let the worker have an agent. Returns: why it does not have it. A worker that ends
        meanwhile counts as one that has it, because the next one does."""
        if self._ended.is_set():
            return None
        if (added := self._adding.get(name)) is None:
            added = self._adding[name] = asyncio.get_running_loop().create_future()
            self._link.send(AddAgent(name))
        try:
            async with asyncio.timeout(ADDS_AGENT_WITHIN_S):
                return await asyncio.shield(added)
        except TimeoutError:
            self._adding.pop(name, None)
            return f"worker {self.number} does not answer"

    def drop_agent(self, name: str) -> None:
        """Let the worker make no new channels under an agent."""
        self._link.send(DropAgent(name))

    async def measure(self) -> None:
        """Ask for the metrics, and wait for them, but not long."""
        if not self._ready.done() or self._ended.is_set():
            return
        measured: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._measured.append(measured)
        self._link.send(Measure())
        with suppress(TimeoutError):
            async with asyncio.timeout(MEASURES_WITHIN_S):
                await measured

    # -- The end

    async def ended(self) -> None:
        """Wait until the process has ended."""
        await self._ended.wait()

    def leave(self) -> None:
        """Ask the worker to end without refusing anything."""
        self._link.send(Leave())

    def stop(self) -> None:
        """Ask the worker to stop in order."""
        self._link.send(Stop())

    async def stopped(self, within_s: float) -> None:
        """Let the worker stop in order, and kill it when that takes too long."""
        self.stop()
        try:
            async with asyncio.timeout(within_s):
                await self.ended()
        except TimeoutError:
            await self.kill()

    def kill_now(self) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()

    async def kill(self) -> None:
        self.kill_now()
        await self.ended()
