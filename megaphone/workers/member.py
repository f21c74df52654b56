"""One worker, as the supervisor sees it: a process that is started, asked and ended."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

from megaphone.settings import Settings
from megaphone.workers.messages import (
    Begin,
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


class StartFailed(Exception):
    """A worker does not serve. The text is one line for the operator."""


class Member:
    """A worker process from its start to its end."""

    def __init__(self, number: int, process: asyncio.subprocess.Process, link: Link) -> None:
        self.number = number
        self.metrics = b""
        """What the worker said last of its metrics."""
        self._process = process
        self._link = link
        self._began_at = time.monotonic()
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._reason: str | None = None
        self._measured: deque[asyncio.Future[None]] = deque()
        self._ended = asyncio.Event()
        self._running: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        number: int,
        settings: Settings,
        http: socket.socket,
        gather: Callable[[], Awaitable[bytes]],
    ) -> "Member":
        """Start a worker process. `gather` returns the metrics of all workers."""
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
        member = cls(number, process, await Link.over(ours))
        member._link.send(Begin(settings, number, http.fileno()))
        member._running = asyncio.create_task(member._run(gather))
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

    async def _run(self, gather: Callable[[], Awaitable[bytes]]) -> None:
        tasks: set[asyncio.Task[None]] = set()
        while (message := await self._link.receive()) is not None:
            if isinstance(message, Gather):
                task = asyncio.create_task(self._answer(gather))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            else:
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

    async def _answer(self, gather: Callable[[], Awaitable[bytes]]) -> None:
        self._link.send(Gathered((await gather()).decode()))

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
