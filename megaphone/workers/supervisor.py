"""Starts the workers, starts again what dies, replaces one after the other, and stops all.

The supervisor serves no client. It has the sockets on which the workers listen for HTTP, so what
waits to be accepted by a worker is not lost when another process takes its place. A gRPC server
makes its own socket; the supervisor only keeps the port.
"""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from megaphone.listen.exposure import log_start
from megaphone.listen.sockets import bind_shared, check_unused, grpc_path, reserve
from megaphone.model import AgentMode
from megaphone.observe.rendering import render
from megaphone.observe.summing import lasting, summed
from megaphone.process.terminal import has_terminal
from megaphone.settings import Settings
from megaphone.workers.member import Member, StartFailed

log = logging.getLogger(__name__)

LONG_LIFE_S = 10.0
"""A worker that served for this long is started again at once."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
STOPS_WITHIN_S = 30.0
"""How long a worker may take to stop in order."""
FIXED = (
    "address",
    "grpc_address",
    "ops_address",
    "mng_socket_path",
    "workers",
    "store",
    "store_prefix",
)
"""The settings that change only when the supervisor is started again, because the workers must
agree on them."""
ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Slot:
    """One of the workers, whichever process it is at the moment."""

    def __init__(self, number: int, supervisor: "Supervisor") -> None:
        self.number = number
        self._supervisor = supervisor
        self._member: Member | None = None
        self._socket: socket.socket | None = None
        self._changes = asyncio.Lock()
        """Held while another process takes the place of the one that is here."""

    @property
    def _fields(self) -> dict[str, int]:
        """What each log line about the worker says."""
        return {"worker": self.number}

    async def start(self) -> Member:
        """Start a worker, and wait until it serves. Raises: StartFailed; OSError."""
        if self._socket is None:
            self._socket = bind_shared(self._supervisor.http)
        member = await self._supervisor.start(self.number, self._socket)
        await member.serves()
        self._member = member
        return member

    async def keep(self) -> None:
        """Start the worker again whenever it ends by itself, for ever."""
        while True:
            member = self._member
            assert member is not None
            await member.ended()
            async with self._changes:
                if self._member is member:
                    await self._restart(member)

    async def _restart(self, ended: Member) -> None:
        self._supervisor.died += 1
        pause_s = 0.0 if ended.age_s > LONG_LIFE_S else FIRST_PAUSE_S
        reason = f"process {ended.pid} {ended.end}"
        while True:
            when = f" in {pause_s:g} s" if pause_s else ""
            log.error("%s; the worker is started again%s", reason, when, extra=self._fields)
            if pause_s:
                self.close()  # nobody may wait in its queue for so long
                await asyncio.sleep(pause_s)
            try:
                member = await self.start()
            except (StartFailed, OSError) as error:
                reason = str(error)
                pause_s = min(max(2 * pause_s, FIRST_PAUSE_S), LONGEST_PAUSE_S)
            else:
                log.info("a worker serves", extra=self._fields | {"pid": member.pid})
                return

    async def replace(self) -> None:
        """Start another process, and let the present one leave. Raises: StartFailed; OSError."""
        async with self._changes:
            old = self._member
            new = await self.start()
        log.info("a worker serves", extra=self._fields | {"pid": new.pid})
        if old is not None:
            began_at = time.monotonic()
            old.leave()
            await old.ended()
            took_s = time.monotonic() - began_at
            log.info(
                "a worker has left",
                extra=self._fields | {"pid": old.pid, "seconds": round(took_s, 1)},
            )

    def close(self) -> None:
        """Close the socket. What waits there to be accepted is refused."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Supervisor:
    """Runs the workers of one broker."""

    def __init__(self, settings: Settings, reload: Callable[[Settings], Settings]) -> None:
        """`reload` returns the settings that are to be used instead of the present ones. Raises:
        ValueError, when they are wrong."""
        self.http = settings.http_endpoint
        """Where the workers listen, as soon as it is known."""
        self.died = 0
        """How many workers have ended by themselves."""
        self._reloads = {"success": 0, "failure": 0}
        """How often the settings were read again for workers that take the place of others."""
        self._settings = settings
        self._reload = reload
        self._slots = [Slot(number, self) for number in range(1, settings.workers + 1)]
        self._members: set[Member] = set()
        """All processes that have not ended."""
        self._agents_added: dict[str, AgentMode] = {}
        """The agents that operators have added, which each new worker gets too."""
        self._agents_dropped: set[str] = set()
        """The agents of the settings under which no worker shall make new channels."""
        self._tasks: set[asyncio.Task[object]] = set()
        self._of_ended = b""
        """What still counts of the metrics of processes that have ended."""
        self._stopping = asyncio.Event()
        self._hung_up = asyncio.Event()

    async def run(self, announce: Callable[[int, int], None]) -> None:
        """Serve until SIGTERM or SIGINT, then stop in order. A second one ends all at once.

        SIGHUP replaces all workers, one after the other. `announce` is called with both ports when
        all workers serve.

        Raises: StartFailed and OSError, when one of them cannot start.
        """
        self._handle_signals()
        with ExitStack() as stack:
            settings = self._settings
            http = stack.enter_context(reserve(settings.http_endpoint))
            grpc = stack.enter_context(reserve(settings.grpc_endpoint))
            self.http = settings.http_endpoint.with_port(port_of(http))
            self._settings = replace(
                settings,
                address=str(self.http),
                grpc_address=str(settings.grpc_endpoint.with_port(port_of(grpc))),
            )
            ops_port = None
            if settings.ops_endpoint is not None:
                ops = stack.enter_context(reserve(settings.ops_endpoint))
                ops_port = port_of(ops)
                address = str(settings.ops_endpoint.with_port(ops_port))
                self._settings = replace(self._settings, ops_address=address)
            for path in self._admin_paths():
                check_unused(path)
            for slot in self._slots:
                stack.callback(slot.close)
            try:
                await self._serve(announce, port_of(http), port_of(grpc), ops_port)
            finally:
                await self._stop()
        log.info("stopped")

    async def _serve(
        self,
        announce: Callable[[int, int], None],
        http_port: int,
        grpc_port: int,
        ops_port: int | None,
    ) -> None:
        if not await self._unless_stopping(self._start_all()):
            return
        pids = ", ".join(str(member.pid) for member in sorted(self._members, key=number_of))
        more = f"; {len(self._slots)} workers: processes {pids}"
        log_start(log, self._settings, http_port, grpc_port, ops_port, more)
        announce(http_port, grpc_port)
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(slot.keep()) for slot in self._slots]
            tasks.append(group.create_task(self._replace_when_asked()))
            await self._stopping.wait()
            for task in tasks:
                task.cancel()

    async def _unless_stopping(self, awaited: Awaitable[None]) -> bool:
        """Wait, but no longer than until the stop. Returns: whether it was awaited."""
        task = asyncio.ensure_future(awaited)
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((task, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if task.done():
            task.result()
            return True
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        return False

    async def _start_all(self) -> None:
        starts = [asyncio.ensure_future(slot.start()) for slot in self._slots]
        try:
            for start in asyncio.as_completed(starts):
                await start
        finally:
            for task in starts:
                task.cancel()
            await asyncio.gather(*starts, return_exceptions=True)

    async def start(self, number: int, listening: socket.socket) -> Member:
        """Start a worker process."""
        settings = self._settings
        if settings.mng_socket_path is not None:
            path = admin_path(settings.mng_socket_path, number)
            settings = replace(settings, mng_socket_path=path)
        agents = {**settings.agent, **self._agents_added}
        agents = {name: mode for name, mode in agents.items() if name not in self._agents_dropped}
        settings = replace(settings, agent=agents)
        member = await Member.start(number, settings, listening, self)
        self._members.add(member)
        for name in self._agents_added.keys() - settings.agent.keys():  # added meanwhile
            self._begin(member.add_agent(name))
        self._begin(self._bury(member))
        return member

    def _begin(self, work: Coroutine[Any, Any, object]) -> None:
        task: asyncio.Task[object] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _bury(self, member: Member) -> None:
        await member.ended()
        self._members.discard(member)
        self._of_ended = summed([self._of_ended, lasting(member.metrics)])

    def _admin_paths(self) -> Iterator[str]:
        if (path := self._settings.mng_socket_path) is not None:
            for slot in self._slots:
                for_http = admin_path(path, slot.number)
                yield from (for_http, grpc_path(for_http))

    # -- Agents

    async def let_have(self, name: str, asking: Member) -> str | None:
        """Let all workers but one have an agent, and those that are started from now on.

        Returns: why one of them does not have it.
        """
        self._agents_added[name] = AgentMode.MASTER
        self._agents_dropped.discard(name)
        others = [member for member in self._members if member is not asking]
        errors = await asyncio.gather(*(member.add_agent(name) for member in others))
        return next(filter(None, errors), None)

    def let_drop(self, name: str, asking: Member) -> None:
        """Let no worker make new channels under an agent, until the settings are read again."""
        self._agents_added.pop(name, None)
        self._agents_dropped.add(name)
        for member in self._members:
            if member is not asking:
                member.drop_agent(name)

    # -- Metrics

    async def gather(self) -> bytes:
        """Return the metrics of all workers together."""
        await asyncio.gather(*(member.measure() for member in self._members))
        return summed(
            [
                self._of_ended,
                *(member.metrics for member in sorted(self._members, key=number_of)),
                self._own_metrics(),
            ]
        )

    def _own_metrics(self) -> bytes:
        reloads = [({"outcome": outcome}, count) for outcome, count in self._reloads.items()]
        return render(
            {
                "workers": lambda: len(self._members),
                "workers_died": lambda: self.died,
                "reloads_total": lambda: reloads,
            }
        )

    # -- Replacing

    async def _replace_when_asked(self) -> None:
        while True:
            await self._hung_up.wait()
            self._hung_up.clear()
            await self._replace_all()

    async def _replace_all(self) -> None:
        try:
            self._take_settings(self._reload(self._settings))
        except ValueError as error:
            self._reloads["failure"] += 1
            log.error("no worker is replaced: %s", error)
            return
        log.info("SIGHUP: replacing %d workers", len(self._slots))
        for slot in self._slots:
            try:
                await slot.replace()
            except (StartFailed, OSError) as error:
                self._reloads["failure"] += 1
                log.error("worker %d and those after it stay: %s", slot.number, error)
                return
        self._reloads["success"] += 1
        log.info("all workers are replaced")

    def _take_settings(self, settings: Settings) -> None:
        now = self._settings
        self._settings = replace(settings, **{name: getattr(now, name) for name in FIXED})
        self._agents_dropped.clear()

    # -- The end

    async def _stop(self) -> None:
        await asyncio.gather(*(member.stopped(STOPS_WITHIN_S) for member in self._members))

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        had_terminal = has_terminal()

        def end(number: signal.Signals) -> None:
            if not self._stopping.is_set():
                log.info("%s: stopping", number.name)
                self._stopping.set()
                return
            for member in self._members:
                member.kill_now()
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

        def hang_up() -> None:
            if had_terminal and not has_terminal():
                log.info("SIGHUP: stopping, because the terminal was closed")
                self._stopping.set()
            else:
                self._hung_up.set()

        for number in ENDING_SIGNALS:
            loop.add_signal_handler(number, end, number)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which `nohup` sets
            loop.add_signal_handler(signal.SIGHUP, hang_up)


def number_of(member: Member) -> int:
    return member.number


def port_of(bound: socket.socket) -> int:
    return int(bound.getsockname()[1])


def admin_path(path: str, number: int) -> str:
    """Return the admin socket of a worker: `m.sock` of the first one, `m.2.sock` of the second."""
    if number == 1:
        return path
    return f"{path.removesuffix('.sock')}.{number}{'.sock' if path.endswith('.sock') else ''}"
