"""Seeded runs with three writers and one reader that goes away again and again, and their results.

Every random choice comes from the seed. The timing of the sockets does not. So a seed repeats a
scenario, but not the same interleaving.
"""

import asyncio
import random
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING

import grpc

from megaphone.errors import ReaderBusy
from megaphone.model import DEFAULT_IN_FLIGHT, ReadOptions
from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from tests.support.checker import (
    Acknowledgement,
    Ending,
    History,
    Kind,
    Outcome,
    Read,
    Seen,
    Verdict,
    Write,
    judge,
)
from tests.support.faces import agent_of, segment, telling_errors
from tests.support.fault_readers import (
    BEFORE_ANSWER,
    GRPC_CUTS,
    HTTP_CUTS,
    Cut,
    GrpcRead,
    How,
    HttpRead,
    OpenRead,
    grpc_connection,
)
from tests.support.fault_writers import GrpcDesk, HttpDesk, Writer
from tests.support.raw_http import RECEIVE_BYTES, Connection, Node, post, post_once

if TYPE_CHECKING:
    from megaphone_api.v1.channels_pb2_grpc import ChannelServiceAsyncStub

TRANSPORTS = ("ndjson", "sse", "grpc")
WRITERS = 3
QUIET_READS = 3
"""After this many clean reads in a row without an event, no more events will come."""
QUIET_S = 0.1
BUSY_AT_MOST_S = 10.0
RUN_AT_MOST_S = 60.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """The scenario of a seed."""

    kind: Kind
    seed: int
    window_s: float
    """How long the broker keeps a read open."""
    events: int
    """The number of events of all writers together."""
    cuts: int
    """How often the reader goes away. After that it reads to the end."""
    takes_over: bool
    """Whether the reader takes over from a former read; otherwise it waits until that has ended."""
    acknowledge_every: int
    in_flight: int
    """The window that the reader requests."""
    longest_stall_s: float

    @classmethod
    def draw(
        cls, kind: Kind, seed: int, *, window_s: float, longest_stall_s: float = 0.05
    ) -> "Scenario":
        rng = random.Random(f"{kind.value}-{seed}")
        return cls(
            kind=kind,
            seed=seed,
            window_s=window_s,
            events=rng.choice((60, 60, 60, 60, 60, 90, 201)),
            cuts=rng.randint(2, 8),
            takes_over=rng.random() < 0.4,
            acknowledge_every=rng.choice((1, 4, 10, 25)),
            in_flight=rng.choice((DEFAULT_IN_FLIGHT, DEFAULT_IN_FLIGHT, 30)),
            longest_stall_s=longest_stall_s,
        )

    @property
    def name(self) -> str:
        return f"{self.kind.value}-{self.seed}"

    def rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.name}-{purpose}")

    def transport_of(self, read_number: int) -> str:
        return self.rng(f"transport-{read_number}").choice(TRANSPORTS)

    def options_of(self, read_number: int) -> ReadOptions:
        """Return the options of a read except its cursor."""
        rng = self.rng(f"options-{read_number}")
        # A limit ends a read cleanly even if the reader has gone away before. A plain reader would
        # lose events; another test covers that.
        may_be_limited = self.kind is not Kind.PLAIN or read_number >= self.cuts
        return ReadOptions(
            acknowledge=self.kind is Kind.ACKNOWLEDGING,
            in_flight=self.in_flight,
            limit=rng.choice((None, None, None, 1, 7)) if may_be_limited else None,
            heartbeat_s=rng.choice((None, None, 0.1)),
        )

    def cut_of(self, read_number: int, *, has_cursor: bool) -> Cut | None:
        if read_number >= self.cuts:
            return None
        rng = self.rng(f"cut-{read_number}")
        how = rng.choice(GRPC_CUTS if self.transport_of(read_number) == "grpc" else HTTP_CUTS)
        if how is How.ABANDON and not self.takes_over and rng.random() < 0.7:
            how = How.STALL  # otherwise the run would mostly wait for read times to end
        after = rng.choice((BEFORE_ANSWER, 0, 1, rng.randint(2, 10), rng.randint(2, 40)))
        if self.kind is Kind.RESUMING and not has_cursor:
            after = max(1, after)  # a reader without a cursor would be a plain reader
        return Cut(
            how,
            after_events=after,
            piece_bytes=rng.choice((16, 64, 512, RECEIVE_BYTES)),
            stall_s=rng.uniform(0, self.longest_stall_s),
        )


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished run."""

    scenario: Scenario
    history: History
    verdict: Verdict
    failure: str | None = None
    """The reason why the run did not finish; None if it did."""

    @property
    def is_as_promised(self) -> bool:
        return self.failure is None and not self.verdict.anomalies

    def explanation(self) -> str:
        """Describe what went wrong, and how to repeat it."""
        lines = [f"FAULT_SEED={self.scenario.name} {self.scenario} {self.failure or ''}"]
        lines += [f"  {anomaly}" for anomaly in self.verdict.anomalies]
        for number, one in enumerate(self.history.reads):
            events = " ".join(f"{seen.writer}/{seen.number}" for seen in one.events)
            where = f"after {one.cursor}, recovered {one.recovered}" if one.cursor else "no cursor"
            lines.append(f"  read {number}, {where}, {one.ending.value}: {events}")
        return "\n".join(lines)


class Ledger:
    """The record of a run."""

    def __init__(self, kind: Kind) -> None:
        self.history = History(kind)
        self.all_written = False
        self._ticks = count()
        self._taken: set[tuple[int, int]] = set()
        self._seen: set[tuple[int, int]] = set()

    def tick(self) -> int:
        return next(self._ticks)

    def note_write(self, write: Write) -> None:
        self.history.writes.append(write)
        if write.outcome is Outcome.TAKEN:
            self._taken.add((write.writer, write.number))

    def note_seen(self, read: Read, seen: Seen) -> None:
        read.events.append(seen)
        self._seen.add((seen.writer, seen.number))

    @property
    def is_complete(self) -> bool:
        """Whether all events are written, and the reader has got every accepted event."""
        return self.all_written and self._taken <= self._seen


# -- Writing


async def write_all(
    node: Node, shared: grpc.aio.Channel, producer: str, scenario: Scenario, ledger: Ledger
) -> None:
    """Write the events of a scenario by three concurrent writers, each over its own face."""
    each = scenario.events // WRITERS
    async with asyncio.TaskGroup() as group:
        for name in range(WRITERS):
            rng = scenario.rng(f"writer-{name}")
            writer = Writer(name, rng, ledger.tick, ledger.note_write)
            match rng.choice(("http", "grpc", "publish")):
                case "http":
                    group.create_task(writer.write_all(HttpDesk(node, producer), each))
                case "grpc":
                    group.create_task(writer.write_all(GrpcDesk(shared, producer), each))
                case _:
                    group.create_task(writer.publish_all(shared, producer, each))
    ledger.all_written = True


# -- Acknowledging


class Acknowledger:
    """Acknowledges over the two faces alternately."""

    def __init__(self, node: Node, shared: grpc.aio.Channel, consumer: str, ledger: Ledger) -> None:
        self._node = node
        self._stub: ChannelServiceAsyncStub = ChannelServiceStub(shared)
        self._consumer = consumer
        self._ledger = ledger
        self._connection: Connection | None = None
        self._count = 0

    async def acknowledge(self, event_id: str) -> None:
        began = self._ledger.tick()
        self._count += 1
        if self._count % 2:
            await self._over_http(event_id)
        else:
            request = pb.AcknowledgeRequest(consumer_address=self._consumer, event_id=event_id)
            with telling_errors():
                await self._stub.Acknowledge(request, metadata=agent_of(self._consumer))
        answered = self._ledger.tick()
        self._ledger.history.acknowledgements.append(Acknowledgement(event_id, began, answered))

    async def _over_http(self, event_id: str) -> None:
        if self._connection is None:
            self._connection = await Connection.open(self._node)
        await post(self._connection, f"/ack/{segment(self._consumer)}", {"eid": event_id})

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


# -- Reading


@dataclass(slots=True)
class Unsettled:
    """A broken read for which it is not known yet how the broker ended it."""

    read: Read
    window_ends_at: float


@dataclass(slots=True)
class Attempt:
    """An open read."""

    read: Read
    window_ends_at: float
    begun_at: float | None = None
    """When it was certain that the broker had not refused the read."""
    events: int = field(default=0)


class FaultyReader:
    """The one reader of a channel. It goes away and comes back as its scenario says."""

    def __init__(
        self,
        node: Node,
        shared: grpc.aio.Channel,
        consumer: str,
        scenario: Scenario,
        ledger: Ledger,
    ) -> None:
        self._node = node
        self._consumer = consumer
        self._scenario = scenario
        self._ledger = ledger
        self._acknowledger = Acknowledger(node, shared, consumer, ledger)
        self._connection: grpc.aio.Channel | None = None
        self._last_seen: str | None = None
        self._unacknowledged = 0
        self._unsettled: list[Unsettled] = []
        self._abandoned: list[OpenRead] = []

    async def read_until_nothing_comes(self) -> None:
        quiet = number = 0
        while quiet < QUIET_READS and not self._ledger.is_complete:
            was_written = self._ledger.all_written
            cut = self._scenario.cut_of(number, has_cursor=self._last_seen is not None)
            read = await self._read(number, cut)
            is_quiet = was_written and read.ending is Ending.CLEAN and not read.events
            quiet = quiet + 1 if is_quiet else 0
            number += 1
        await self._look_once_more(number)

    async def _look_once_more(self, number: int) -> None:
        """Acknowledge everything, and read again: no event may be left."""
        if self._unacknowledged and self._last_seen is not None:
            await self._acknowledger.acknowledge(self._last_seen)
        await self._read(number, None)

    async def _read(self, number: int, cut: Cut | None) -> Read:
        """Read once, as soon as the broker has noticed the end of the former read."""
        options = replace(
            self._scenario.options_of(number),
            cursor=self._last_seen if self._scenario.kind is Kind.RESUMING else None,
            wait_s=QUIET_S if self._ledger.all_written else None,
        )
        transport = self._scenario.transport_of(number)
        async with asyncio.timeout(BUSY_AT_MOST_S):
            while True:
                try:
                    return await self._try_to_read(transport, options, cut)
                except ReaderBusy:
                    options = replace(options, take_over=self._scenario.takes_over)
                    await asyncio.sleep(0.002)

    async def _try_to_read(self, transport: str, options: ReadOptions, cut: Cut | None) -> Read:
        asked_at = asyncio.get_running_loop().time()
        window_s = min(self._scenario.window_s, options.wait_s or self._scenario.window_s)
        attempt = Attempt(Read(self._ledger.tick(), options.cursor), asked_at + window_s)
        asked = await self._ask(transport, options, cut)
        try:
            await self._follow(asked, attempt, cut)
        finally:
            if cut is not None and cut.how is How.ABANDON:
                self._abandoned.append(asked)
            else:
                asked.close()
        self._settle(attempt)
        self._ledger.history.reads.append(attempt.read)
        return attempt.read

    async def _ask(self, transport: str, options: ReadOptions, cut: Cut | None) -> OpenRead:
        if transport == "grpc":
            if self._connection is None:
                self._connection = grpc_connection(self._node)
            return GrpcRead(self._connection, self._consumer, options)
        return await HttpRead.ask(
            self._node,
            self._consumer,
            options,
            sse=transport == "sse",
            piece_bytes=RECEIVE_BYTES if cut is None else cut.piece_bytes,
        )

    async def _follow(self, asked: OpenRead, attempt: Attempt, cut: Cut | None) -> None:
        """Take events until the broker ends the read, or until it is time to go away."""
        if cut is not None and cut.after_events == BEFORE_ANSWER:
            await self._go(asked, cut)
            return
        await asked.begin()
        begun_at = asyncio.get_running_loop().time()
        attempt.read.answered = self._ledger.tick()
        attempt.read.recovered = asked.recovered
        while cut is None or attempt.events < cut.after_events:
            events = await asked.next()
            attempt.begun_at = begun_at  # over gRPC it is certain only now
            if events is None:
                attempt.read.ending = Ending.CLEAN
                return
            for event in events if cut is None else events[: cut.after_events - attempt.events]:
                await self._take(event, attempt)
            if self._ledger.is_complete:
                return
        await self._go(asked, cut)

    async def _take(self, event: Seen, attempt: Attempt) -> None:
        self._ledger.note_seen(attempt.read, event)
        attempt.events += 1
        self._last_seen = event.event_id
        if self._scenario.kind is Kind.ACKNOWLEDGING:
            self._unacknowledged += 1
            if self._unacknowledged >= self._scenario.acknowledge_every:
                await self._acknowledger.acknowledge(event.event_id)
                self._unacknowledged = 0

    async def _go(self, asked: OpenRead, cut: Cut) -> None:
        await asked.cut(cut)
        if cut.how is How.CLOSE_CHANNEL:
            self._connection = None

    def _settle(self, attempt: Attempt) -> None:
        """Record for earlier broken reads whether the broker may have ended them cleanly."""
        if attempt.begun_at is not None:
            for earlier in self._unsettled:
                if attempt.begun_at >= earlier.window_ends_at:
                    earlier.read.ending = Ending.BROKEN_AT_WINDOW_END
            self._unsettled.clear()
            self._close_abandoned()
        if attempt.read.ending is Ending.BROKEN:
            self._unsettled.append(Unsettled(attempt.read, attempt.window_ends_at))

    def _close_abandoned(self) -> None:
        for read in self._abandoned:
            read.close()
        self._abandoned.clear()

    async def close(self) -> None:
        self._close_abandoned()
        self._acknowledger.close()
        if self._connection is not None:
            await self._connection.close()


# -- Running


async def run(node: Node, shared: grpc.aio.Channel, scenario: Scenario) -> Finished:
    ledger = Ledger(scenario.kind)
    failure = None
    try:
        async with asyncio.timeout(RUN_AT_MOST_S), AsyncExitStack() as stack:
            channel = await post_once(node, "/create", {})
            reader = FaultyReader(node, shared, channel["consumerAddress"], scenario, ledger)
            stack.push_async_callback(reader.close)
            async with asyncio.TaskGroup() as group:
                group.create_task(
                    write_all(node, shared, channel["producerAddress"], scenario, ledger)
                )
                group.create_task(reader.read_until_nothing_comes())
    except Exception as error:
        failure = f"{error!r} {getattr(error, 'exceptions', '')}"
    return Finished(scenario, ledger.history, judge(ledger.history), failure)


async def run_all(node: Node, scenarios: Iterable[Scenario], *, at_once: int) -> list[Finished]:
    """Run scenarios, several at a time, each on its own channel."""
    waiting = iter(scenarios)
    async with grpc_connection(node) as shared:

        async def run_one_after_the_other() -> list[Finished]:
            return [await run(node, shared, scenario) for scenario in waiting]

        async with asyncio.TaskGroup() as group:
            lanes = [group.create_task(run_one_after_the_other()) for _ in range(at_once)]
    return [finished for lane in lanes for finished in lane.result()]
