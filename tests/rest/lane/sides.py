"""Sends the same bytes to two brokers, of which only one has the lane, and compares what they do.

Every exchange gets channels of its own on each side, and their addresses take the places of the
made-up ones. What a side sends is translated back, so the sides can be compared byte by byte.

Nobody can see from outside that a server waits for more bytes. But the client and both servers
share one event loop. So after each step the client sends requests on another connection, until some
of these in a row were answered and nothing else has come: a server that owes an answer has had many
turns of the loop by then.

TCP does not keep the borders of what a client sends, and aiohttp answers some bytes differently if
they arrive in other portions. So the lane may do what aiohttp does for any portions of the bytes.
"""

import asyncio
import re
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from megaphone.app import App, running
from megaphone.core.access import ANYONE, Names
from megaphone.core.budget import Budget
from megaphone.core.writing import Write
from megaphone.errors import ChannelNotFound, MegaphoneError
from megaphone.listen.sockets import listen_tcp
from megaphone.model import Endpoint, NewChannel, NewEvent, ReadOptions
from megaphone.observe.calls import OK
from megaphone.rest.callers import Callers
from megaphone.rest.channels import ChannelApi
from megaphone.rest.connection.protocol import Answered, Begun, Later, Opened, Outcome
from megaphone.rest.cors import Origins
from megaphone.rest.lane import Lane
from megaphone.rest.probes import ProbeApi
from megaphone.rest.server import HttpServer
from megaphone.settings import Settings
from tests.rest.lane.exchange import (
    CONSUMER,
    FIRST,
    GONE_CONSUMER,
    GONE_PRODUCER,
    OTHER_CONSUMER,
    OTHER_PRODUCER,
    PROBE,
    PRODUCER,
    SECOND,
    Exchange,
)
from tests.support.raw_http import (
    JSON,
    RECEIVE_BYTES,
    Connection,
    Node,
    receive_body,
    receive_head,
    request_of,
)
from tests.support.settings import fast_settings

BARRIERS = 4
"""After so many answers on the other connection, without a byte on those of the exchanges, nothing
more is expected."""
PATIENCE_S = 1.1
"""Longer than a read, and than a connection waits for the rest of a body (`protocol.BODY_WAIT_S`);
shorter than all other limits of time."""
METRICS = "/metrics"
"""The sides lack this route, because its answer is never the same twice."""
QUICK_BARRIERS = 2
QUICK_TURNS = 4
"""See `Side.is_thorough`."""
SETTINGS = {
    "poll_duration_millis": 1_000,
    "max_read_secs": 1.0,  # odd requests ask for long reads, which must end
    "max_body_bytes": 20_000,
    "channel_ttl_secs": 1e6,
}

_OURS = frozenset(
    (
        PRODUCER,
        CONSUMER,
        FIRST,
        SECOND,
        OTHER_PRODUCER,
        OTHER_CONSUMER,
        GONE_PRODUCER,
        GONE_CONSUMER,
    )
)


def shape_of(kind: bytes) -> Callable[[re.Match[bytes]], bytes]:
    """Return a function that names the kind of an address or id, unless it is one of ours."""

    def shaped(found: re.Match[bytes]) -> bytes:
        return found[1] + (found[2] if found[2] in _OURS else b"{" + kind + b"}")

    return shaped


_SHAPES = [
    (re.compile(rb"(?m)^(Date: )([^\r]+)"), shape_of(b"now")),
    (re.compile(rb"()(node\.[A-Za-z0-9_-]{59})"), shape_of(b"producer")),
    (re.compile(rb"()(node\.[A-Za-z0-9]{50}\.1)"), shape_of(b"consumer")),
    (
        re.compile(rb'((?:"eid":"|\nid: |\nMegaphone-Position: ))([A-Za-z0-9]{23})'),
        shape_of(b"event"),
    ),
    (re.compile(rb'([\[,]")([A-Za-z0-9]{23})(?=")'), shape_of(b"event")),
    (re.compile(rb'("ts":")([0-9TZ:.-]+)'), shape_of(b"time")),
]
_READ_HAS_BEGUN = b"X-Accel-Buffering: no\r\n"
_COUNTS = (
    "channels_created",
    "channels_disposed",
    "messages_received",
    "messages_read",
    "messages_redelivered",
    "messages_unroutable",
    "messages_lost",
    "reads_open",
    "writers_waiting",
)


Effect = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Record:
    """What one side has done with an exchange."""

    output: bytes
    """What it has sent, with made-up addresses and ids, and without the date."""
    ended_behind: str
    """The step after which the server had closed the connection."""
    effect: Effect
    """What is in the channels afterwards."""


# -- One side


class Clock:
    """The time of an event loop, which a test may let pass at once, or stop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._time = loop.time
        self._passed_s = 0.0
        self._stopped_at: float | None = None

    def time(self) -> float:
        now = self._time() if self._stopped_at is None else self._stopped_at
        return now + self._passed_s

    def advance(self, seconds: float) -> None:
        self._passed_s += seconds

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let time pass by `advance` alone within this context."""
        self._stopped_at = self._time()
        try:
            yield
        finally:
            self._passed_s += self._stopped_at - self._time()
            self._stopped_at = None


@contextmanager
def own_clock() -> Iterator[Clock]:
    """Give the running event loop such a clock within this context."""
    loop = asyncio.get_running_loop()
    clock = Clock(loop)
    with mock.patch.object(loop, "time", clock.time):
        yield clock


@dataclass(slots=True)
class WatchedLane:
    """A lane that notes which bytes it has answered."""

    lane: Lane
    offered: int = 0
    """How often it was offered some bytes."""
    answered: list[bytes] = field(default_factory=list)
    _writes: list[bytes] = field(default_factory=list)
    """The writes of this turn."""

    def answer(self, data: bytes, names: Names) -> Outcome:
        self.offered += 1
        outcome = self.lane.answer(data, names)
        if isinstance(outcome, Write):
            self._writes.append(bytes(data))
        if isinstance(outcome, (bytes, Opened)):
            self.answered.append(bytes(data))
        elif isinstance(outcome, Later):
            return Later(self._noted(outcome.call, bytes(data)))
        return outcome

    def complete(self, outcomes: list[Outcome], began_at: float) -> None:
        numbers = [n for n, one in enumerate(outcomes) if isinstance(one, Write)]
        self.lane.complete(outcomes, began_at)
        for number, data in zip(numbers, self._writes, strict=True):
            outcome = outcomes[number]
            if isinstance(outcome, bytes):
                self.answered.append(data)
            elif isinstance(outcome, Begun):
                outcomes[number] = self._noted_begun(outcome, data)
        self._writes.clear()

    def _noted_begun(self, begun: Begun, data: bytes) -> Begun:
        noted = Begun()

        def conclude(outcome: Outcome) -> None:
            if isinstance(outcome, bytes):
                self.answered.append(data)
            noted.conclude(outcome)

        begun.on_outcome = conclude
        return noted

    async def _noted(self, call: Coroutine[Any, Any, Answered], data: bytes) -> Answered:
        answer = await call
        if answer is not None:
            self.answered.append(data)
        return answer


@dataclass(slots=True)
class Side:
    """A broker with an HTTP face of its own, with the lane or without it."""

    app: App
    server: HttpServer
    port: int
    budget: Budget
    lane: WatchedLane | None
    gone: NewChannel
    clock: "Clock"
    barrier: bytes = PROBE
    """The request on the other connection. It must take as many steps as any other."""
    is_thorough: bool = True
    """Whether the client waits for answers on another connection before it goes on. If not, it
    waits for a few turns of the event loop only, which takes a third of the time."""
    _barrier: Connection = field(init=False, repr=False)
    _barriers_passed: int = 0

    async def run(self, exchanges: Sequence[Exchange]) -> list[Record]:
        """Run some exchanges at the same time, each on a connection of its own."""
        async with AsyncExitStack() as stack:
            if self.is_thorough:
                self._barrier = await Connection.open(Node(self.port, 0))
                stack.callback(self._barrier.close)
            calls = [await self._call(exchange) for exchange in exchanges]
            try:
                # A busy machine must not decide how many heartbeats a read gets.
                with self.clock.stopped():
                    await self._run(calls)
            finally:
                for call in calls:
                    call.close()
            await self._pass_turns()
        records = [await call.record() for call in calls]
        await self._dispose_of_channels()
        return records

    async def _dispose_of_channels(self) -> None:
        """Remove all channels, because one that expires later would count in another exchange."""
        admin = self.app.admin
        while addresses := await admin.list_channels():
            for address in addresses:
                with suppress(ChannelNotFound):
                    await admin.dispose(address)

    async def _run(self, calls: Sequence["Call"]) -> None:
        for number in range(max(len(call.exchange.steps) for call in calls)):
            if any(call.exchange.is_slow(number) for call in calls):
                await self._until_patience_ends(calls)
            for call in calls:
                call.send_step(number)
            await self._until_quiet(calls)
        await self._until_patience_ends(calls)
        for call in calls:
            call.send_probe()
        await self._until_patience_ends(calls)
        while any(call.is_owed_more for call in calls):
            await self._until_quiet(calls)
        for call in calls:
            call.half_close()
        await self._until_quiet(calls)

    async def _until_patience_ends(self, calls: Sequence["Call"]) -> None:
        """Wait until no server will do anything for the next seconds, unless it gets more bytes."""
        await self._until_quiet(calls)
        self.clock.advance(PATIENCE_S)
        await self._until_quiet(calls)

    async def _call(self, exchange: Exchange) -> "Call":
        """Make the channels of an exchange, and connect."""
        broker = self.app.broker
        channels = [await broker.create(ANYONE) for _ in range(2)]
        written = [
            await broker.write(ANYONE, channels[0].producer_address, NewEvent("before", body))
            for body in (b"1", b"2")
        ]
        return Call(self, exchange, channels, written)

    async def _until_quiet(self, calls: Sequence["Call"]) -> None:
        """Wait until no server will send anything before it gets more."""
        quiet = 0
        while quiet < (BARRIERS if self.is_thorough else QUICK_BARRIERS):
            await self._pass_turns()
            has_moved = [call.move() for call in calls]
            quiet = 0 if any(has_moved) else quiet + 1

    async def _pass_turns(self) -> None:
        if not self.is_thorough:
            for _ in range(QUICK_TURNS):
                await asyncio.sleep(0)
            return
        await self._barrier.send(self.barrier)
        await receive_body(self._barrier, await receive_head(self._barrier))
        self._barriers_passed += 1

    @property
    def counts(self) -> Counter[str]:
        metrics = self.app.metrics
        counts = {name: int(getattr(metrics, name)) for name in _COUNTS}
        calls = {
            f"{one.method} {code}": count
            for one in metrics.http.by_method.values()
            for code, count in ((OK, one.ok), *one.failed.items())
        }
        # One side may pass more barriers than the other.
        barrier = "exists OK" if self.app.broker.has_remote_store else "other OK"
        calls[barrier] -= self._barriers_passed
        ends = {f"read ended: {reason}": count for reason, count in metrics.reads_ended.items()}
        return Counter({**counts, **calls, **ends, "bytes held for requests": self.budget.used})


class Call:
    """An exchange on one side."""

    def __init__(
        self,
        side: Side,
        exchange: Exchange,
        channels: Sequence[NewChannel],
        written: Sequence[str],
    ) -> None:
        """`written` are the ids of two events in the first channel."""
        self.exchange = exchange
        self._channels = channels
        self._broker = side.app.broker
        self._real = {
            PRODUCER: channels[0].producer_address.encode(),
            CONSUMER: channels[0].consumer_address.encode(),
            OTHER_PRODUCER: channels[1].producer_address.encode(),
            OTHER_CONSUMER: channels[1].consumer_address.encode(),
            GONE_PRODUCER: side.gone.producer_address.encode(),
            GONE_CONSUMER: side.gone.consumer_address.encode(),
            FIRST: written[0].encode(),
            SECOND: written[1].encode(),
        }
        self._data = exchange.data
        for made_up, real in self._real.items():
            assert len(made_up) == len(real)
            self._data = self._data.replace(made_up, real)
        self._socket = socket.create_connection(("127.0.0.1", side.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self._step = ""
        self._unsent = b""
        self._received = bytearray()
        self.ended_behind = ""

    def send_step(self, number: int) -> None:
        if number < len(self.exchange.steps):
            self.send(f"step {number}", self._data[self.exchange.steps[number]])

    def send(self, step: str, data: bytes) -> None:
        self._step = step
        self._unsent += data
        self.move()

    def send_probe(self) -> None:
        if self.exchange.with_probe:
            self.send("the probe", PROBE)

    def half_close(self) -> None:
        self._step = "the half-close"
        if not self.ended_behind:
            self._socket.shutdown(socket.SHUT_WR)

    def move(self) -> bool:
        """Send and receive what is possible now. Returns: whether there was anything."""
        if self.ended_behind:
            return False
        try:
            has_sent = self._send_some()
            return self._receive_some() or has_sent
        except ConnectionError:
            self.ended_behind = self._step
            return True

    def _send_some(self) -> bool:
        if not self._unsent:
            return False
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return False
        except ConnectionError:
            self._unsent = b""  # the answer is still there to be received
            return True
        self._unsent = self._unsent[sent:]
        return True

    def _receive_some(self) -> bool:
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self.ended_behind = self._step
        self._received += data
        return True

    def close(self) -> None:
        self._socket.close()

    @property
    def is_owed_more(self) -> bool:
        """Whether an answer must still come, or has begun and goes on by itself."""
        if self.ended_behind:
            return False
        is_reading = _READ_HAS_BEGUN in self._received
        return is_reading or self._received.count(b"HTTP/1.") < self.exchange.answers

    async def record(self) -> Record:
        # The read time, and not what the client does, ends a read.
        is_read = _READ_HAS_BEGUN in self._received
        ended_behind = "the read" if is_read and self.ended_behind else self.ended_behind
        return Record(self._translated(bytes(self._received)), ended_behind, await self._effect())

    def _translated(self, output: bytes) -> bytes:
        for made_up, real in self._real.items():
            output = output.replace(real, made_up)
        for pattern, shape in _SHAPES:
            output = pattern.sub(shape, output)
        return output

    async def _effect(self) -> Effect:
        """Return what a plain reader gets from the channels now, and what their logs hold."""
        plain = ReadOptions(take_over=True, wait_s=0)
        of_all = replace(plain, cursor="-")
        return tuple(
            [
                await self._left_in(channel, options)
                for channel in self._channels
                for options in (plain, of_all)
            ]
        )

    async def _left_in(self, channel: NewChannel, options: ReadOptions) -> Any:
        try:
            async with self._broker.read(ANYONE, channel.consumer_address, options) as reading:
                events = [
                    (event.stream_id, self._translated(event.body))
                    async for batch in reading
                    for event in batch
                ]
                return reading.reader.recovered, events
        except MegaphoneError as error:
            return error.code


@asynccontextmanager
async def side(
    clock: Clock, *, with_lane: bool, budget_bytes: int = sys.maxsize, **changes: Any
) -> AsyncIterator[Side]:
    """Run a broker and its HTTP face. `budget_bytes` limits what the face holds for requests."""
    settings = fast_settings(**SETTINGS | {"http_lane": False} | changes)
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(running(settings))
        budget = Budget(budget_bytes)
        lane = WatchedLane(lane_over(app, settings)) if with_lane else None
        callers = Callers(app.doorkeeper, app.broker.peers)
        probes = ProbeApi(app.broker, callers, app.metrics.text, app.admin.list_agents).routes()
        server = HttpServer(
            [
                *ChannelApi(app.broker, callers).routes(),
                *(one for one in probes if one.path != METRICS),
            ],
            budget=budget,
            max_body_bytes=settings.max_body_bytes,
            origins=Origins(settings.cors_allow_origin),
            lane=lane,
            calls=app.metrics.http,
        )
        port = await server.start(listen_tcp(Endpoint("127.0.0.1", 0)))
        stack.push_async_callback(server.stop)
        gone = await app.broker.create(ANYONE)
        await app.admin.dispose(gone.consumer_address)
        one = Side(app, server, port, budget, lane, gone, clock)
        if app.broker.has_remote_store:
            body = b'["%b"]' % gone.consumer_address.encode()
            one.barrier = request_of("POST", "/channelsExists", b'{"channels":%b}' % body, JSON)
        yield one


def lane_over(app: App, settings: Settings) -> Lane:
    return Lane(
        app.broker,
        app.doorkeeper,
        settings.max_body_bytes,
        Origins(settings.cors_allow_origin),
        calls=app.metrics.http,
    )


# -- Both sides


@dataclass(slots=True)
class Pair:
    """The two sides."""

    lane: Side
    aiohttp: Side
    in_other_portions: list[Exchange] = field(default_factory=list)
    """Those with which the lane does what aiohttp does with other portions of the same bytes."""

    async def differences(
        self, exchanges: Sequence[Exchange], *, thoroughly: bool = True
    ) -> list[str]:
        """Run the exchanges on both sides. Returns: a description of each difference.

        If not `thoroughly`, a side that is slow to answer may count as different.
        """
        self.lane.is_thorough = self.aiohttp.is_thorough = thoroughly
        before = self._counts()
        by_lane = await self.lane.run(exchanges)
        by_aiohttp = await self.aiohttp.run(exchanges)
        after = self._counts()
        same: list[Exchange] = []
        found: list[str] = []
        for exchange, lane, aiohttp in zip(exchanges, by_lane, by_aiohttp, strict=True):
            if lane == aiohttp:
                same.append(exchange)
            elif await self._is_of_other_portions(exchange, lane):
                self.in_other_portions.append(exchange)
            else:
                found.append(described(exchange, lane, aiohttp))
        if len(same) < len(exchanges):  # without the others, the counts must be the same
            if same:
                found += await self.differences(same, thoroughly=thoroughly)
            return found
        changes = [changed(new, old) for new, old in zip(after, before, strict=True)]
        return (
            [] if changes[0] == changes[1] else [f"{changes} behind {[one.name for one in same]}"]
        )

    async def _is_of_other_portions(self, exchange: Exchange, lane: Record) -> bool:
        """Return whether aiohttp does the same as the lane did if the bytes come in other
        portions."""
        for other in exchange.in_other_portions():
            [aiohttp] = await self.aiohttp.run([other])
            if replace(aiohttp, ended_behind=lane.ended_behind) == lane:
                return bool(aiohttp.ended_behind) == bool(lane.ended_behind)
        return False

    def _counts(self) -> tuple[Counter[str], Counter[str]]:
        return self.lane.counts, self.aiohttp.counts

    @property
    def answered(self) -> list[bytes]:
        """The requests that the lane has answered."""
        assert self.lane.lane is not None
        return self.lane.lane.answered


def changed(after: Counter[str], before: Counter[str]) -> dict[str, int]:
    return {name: after[name] - before[name] for name in after if after[name] != before[name]}


def described(exchange: Exchange, lane: Record, aiohttp: Record) -> str:
    lines = [f"{exchange.name}: {exchange.data[:2_000]!r} cut at {exchange.cuts}"]
    for name, one, other in (
        ("output", lane.output, aiohttp.output),
        ("connection ended behind", lane.ended_behind, aiohttp.ended_behind),
        ("effect", lane.effect, aiohttp.effect),
    ):
        if one != other:
            lines += [f"  {name} with the lane: {one!r}", f"  {name} by aiohttp:    {other!r}"]
    return "\n".join(lines)


@asynccontextmanager
async def both_sides(**changes: Any) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        clock = stack.enter_context(own_clock())
        lane = await stack.enter_async_context(side(clock, with_lane=True, **changes))
        aiohttp = await stack.enter_async_context(side(clock, with_lane=False, **changes))
        yield Pair(lane, aiohttp)
