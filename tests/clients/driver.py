"""The test's end of a driver: starts it, calls it, and collects its reports.

The README of the suite has the protocol.
"""

import asyncio
import itertools
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.clients.drivers.kinds import Kind

ROOT = Path(__file__).parents[2]
LOOKS_EVERY_S = 0.01
LONGEST_REPORT = 1 << 25
STARTS_WITHIN_S = 30.0
ENDS_WITHIN_S = 4.0
"""How long a driver may take to end, before it is killed: a call that a test left behind may last
for its 30 seconds."""
WITHIN_S = 60.0
"""How long a test waits for anything before it fails."""


async def until(holds: Callable[[], bool]) -> None:
    """Wait for a condition that nobody reports."""
    async with asyncio.timeout(WITHIN_S):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(LOOKS_EVERY_S)


class ClientError(Exception):
    """An exception of the client library."""

    def __init__(self, told: dict[str, Any]) -> None:
        super().__init__(f"{told['class']}: {told['message']}")
        self.name: str = told["class"]
        self.code: str | None = told["code"]
        self.message: str = told["message"]


@dataclass(frozen=True, slots=True)
class Event:
    """An event, as the application got it."""

    id: str
    stream: str
    body: Any
    consumer: str | None


@dataclass(frozen=True, slots=True)
class Gap:
    """The application learned that events may be missing."""


GAP = Gap()


@dataclass(slots=True)
class Reading:
    """What a read of a driver has reported so far."""

    name: str
    items: list[Event | Gap] = field(default_factory=list)
    unacked: list[ClientError] = field(default_factory=list)
    """Why acknowledging failed."""
    is_over: bool = False
    error: ClientError | None = None
    cursor: str | None = None
    """Where the application would go on; known at the end."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def events(self) -> list[Event]:
        return [item for item in self.items if isinstance(item, Event)]

    @property
    def bodies(self) -> list[Any]:
        return [event.body for event in self.events]

    @property
    def gaps(self) -> int:
        return sum(isinstance(item, Gap) for item in self.items)

    def take(self, told: dict[str, Any]) -> None:
        match told["is"]:
            case "event":
                self.items.append(
                    Event(told["id"], told["stream"], told["body"], told.get("consumer"))
                )
            case "gap":
                self.items.append(GAP)
            case "unacked":
                self.unacked.append(ClientError(told))
            case ending:
                self.is_over, self.cursor = True, told["cursor"]
                self.error = ClientError(told) if ending == "error" else None
        self._changed.set()

    def break_off(self) -> None:
        """The driver has ended without a report."""
        self.is_over = True
        self._changed.set()

    async def until(self, holds: Callable[[], bool], within_s: float = WITHIN_S) -> None:
        """Wait until a condition on the reports holds, or the read is over."""
        async with asyncio.timeout(within_s):
            while not (holds() or self.is_over):
                self._changed.clear()
                await self._changed.wait()

    async def has(self, events: int, within_s: float = WITHIN_S) -> list[Event]:
        """Wait for a number of events. Raises: ClientError, if the read fails before."""
        await self.until(lambda: len(self.events) >= events, within_s)
        if self.error is not None and len(self.events) < events:
            raise self.error
        assert len(self.events) >= events, f"ended after {len(self.events)} events"
        return self.events

    async def fails(self, within_s: float = WITHIN_S) -> ClientError:
        """Wait for the end, which must be an error."""
        await self.until(lambda: False, within_s)
        assert self.error is not None, "the read ended without an error"
        return self.error


class Driver:
    """A running driver."""

    def __init__(self, kind: Kind, process: asyncio.subprocess.Process) -> None:
        self.kind = kind
        self.process = process
        self._numbers = itertools.count()
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._readings: dict[str, Reading] = {}
        self.leaks = 0
        """How many errors had an address in their text; addresses are secrets."""
        self._secrets: set[str] = set()
        self._is_ready = asyncio.get_running_loop().create_future()
        assert process.stderr is not None
        self._errors = asyncio.create_task(process.stderr.read())
        self._reporting = asyncio.create_task(self._take_reports())

    @classmethod
    async def start(cls, kind: Kind) -> "Driver":
        process = await asyncio.create_subprocess_exec(
            *kind.command,
            cwd=ROOT,
            env={**os.environ, "SSL_CERT_FILE": os.devnull},  # which aiohttp would load
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            limit=LONGEST_REPORT,
        )
        driver = cls(kind, process)
        async with asyncio.timeout(STARTS_WITHIN_S):
            await driver._is_ready
        return driver

    async def _take_reports(self) -> None:
        assert self.process.stdout is not None
        try:
            while line := await self.process.stdout.readline():
                self._take(json.loads(line))
        finally:
            gone = ConnectionError(f"the driver has ended: {(await self._errors).decode()}")
            for future in (self._is_ready, *self._calls.values()):
                if not future.done():
                    future.set_exception(gone)
            if not self._is_ready.cancelled():
                self._is_ready.exception()
            for reading in self._readings.values():
                if not reading.is_over:
                    reading.break_off()

    def _take(self, told: dict[str, Any]) -> None:
        if told["is"] == "ready":
            self._is_ready.set_result(None)
            return
        if "message" in told:
            self.leaks += any(secret in told["message"] for secret in self._secrets)
        if "read" in told:
            self._readings[told["read"]].take(told)
            return
        future = self._calls.pop(told["call"])
        if future.done():
            return
        if told["is"] == "error":
            future.set_exception(ClientError(told))
        else:
            future.set_result(told["result"])

    # -- Commands

    def _send(self, **command: Any) -> None:
        named = (command.get(name) or () for name in ("producers", "consumers", "addresses"))
        single = (command[name] for name in ("producer", "consumer") if name in command)
        for address in itertools.chain(single, *named):
            self._secrets |= {address.partition(".")[2]} - {""}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")

    def begin_call(self, do: str, client: str, **members: Any) -> "asyncio.Future[Any]":
        """Begin a call. Returns: the future of its result, or of a ClientError."""
        number = next(self._numbers)
        self._calls[number] = future = asyncio.get_running_loop().create_future()
        self._send(do=do, call=number, client=client, **members)
        return future

    @asynccontextmanager
    async def client(self, url: str, **options: Any) -> AsyncIterator["Client"]:
        """Let the driver have a client within this context."""
        client = Client(self, f"c{next(self._numbers)}")
        await client.call("open", url=url, **options)
        try:
            yield client
        finally:
            if self.process.returncode is None:
                await client.call("close")

    def begin_read(self, do: str, client: str, **members: Any) -> Reading:
        reading = Reading(f"r{next(self._numbers)}")
        self._readings[reading.name] = reading
        self._send(do=do, read=reading.name, client=client, **members)
        return reading

    async def stop(self, reading: Reading) -> None:
        """Leave a read, and wait until everything of it is closed."""
        self._send(do="stop", read=reading.name)
        await reading.until(lambda: False)

    # -- The process

    def sleep(self) -> None:
        """Let the process do nothing until `wake`, as on a laptop that sleeps."""
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        self.process.kill()
        await self.process.wait()
        await self._reporting

    async def end(self) -> str:
        """Let the driver end in order, or kill it if something holds it. Returns: what it wrote on
        standard error."""
        assert self.process.stdin is not None
        if not self.process.stdin.is_closing():
            self.process.stdin.close()
        try:
            async with asyncio.timeout(ENDS_WITHIN_S):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        errors = await self._errors
        await self._reporting
        return errors.decode()


@dataclass(frozen=True, slots=True)
class Client:
    """A client of a driver."""

    driver: Driver
    name: str

    async def call(self, do: str, **members: Any) -> Any:
        """Call, and wait for the result. Raises: ClientError."""
        async with asyncio.timeout(WITHIN_S):
            return await self.driver.begin_call(do, self.name, **members)

    async def create(self) -> tuple[str, str]:
        """Returns: the addresses of producer and consumer."""
        made = await self.call("create")
        return made["producer"], made["consumer"]

    async def write(self, producer: str, stream: str, body: Any, **options: Any) -> str:
        told = await self.call("write", producer=producer, stream=stream, body=body, **options)
        return str(told)

    async def batch(
        self, producers: list[str], messages: list[tuple[str, Any]]
    ) -> list[tuple[str, int, str]]:
        failed = await self.call("batch", producers=producers, messages=messages)
        return [(producer, index, reason) for producer, index, reason in failed]

    async def publish(self, items: list[tuple[str, str, Any]]) -> list[dict[str, Any]]:
        return list(await self.call("publish", items=items))

    async def exists(self, *addresses: str) -> dict[str, bool]:
        return dict(await self.call("exists", addresses=addresses))

    async def ack(self, consumer: str, event: str) -> int:
        return int(await self.call("ack", consumer=consumer, event=event))

    async def first(self, consumer: str, stream: str, **options: Any) -> Any:
        return await self.call("first", consumer=consumer, stream=stream, **options)

    def read(self, *consumers: str, **options: Any) -> Reading:
        return self.driver.begin_read("read", self.name, consumers=consumers, **options)

    def subscribe(self, consumer: str, streams: list[str], **options: Any) -> Reading:
        return self.driver.begin_read(
            "subscribe", self.name, consumer=consumer, streams=streams, **options
        )

    async def stop(self, reading: Reading) -> None:
        await self.driver.stop(reading)


@asynccontextmanager
async def driver_of(kind: Kind) -> AsyncIterator[Driver]:
    """Run a driver within this context. At its end the driver must end in order and in silence."""
    driver = await Driver.start(kind)
    try:
        yield driver
    except BaseException:
        driver.wake()
        await driver.kill()
        raise
    if driver.process.returncode is None:
        errors = await driver.end()
        assert not driver.leaks, "an error has an address in its text"
        assert not errors, f"the driver wrote on standard error:\n{errors}"
        was_held = -signal.SIGKILL
        code = driver.process.returncode
        assert code in (0, was_held), f"the driver ended with {code}"
