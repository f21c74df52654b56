"""The reader of a channel that moves. It goes away as its plan says, and comes back after a while.

It does what a good client does: it finds the node, reads, and looks for the node again after a
refusal. A test may tamper with the connection between reader and node, to check that the judge
notices it.
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import grpc

from megaphone.errors import (
    AgentMoved,
    ChannelNotFound,
    MegaphoneError,
    ReaderBusy,
    ShuttingDown,
    TooSlow,
)
from megaphone.model import ReadOptions
from megaphone_api.v1 import channels_pb2 as pb
from tests.support.checker import START, Acknowledgement, Ending, History, Kind, Read, Seen
from tests.support.cluster import Gone
from tests.support.faces import agent_of, segment
from tests.support.fault_readers import (
    BEFORE_ANSWER,
    GRPC_CUTS,
    HTTP_CUTS,
    Cut,
    GrpcRead,
    How,
    HttpRead,
    OpenRead,
)
from tests.support.move_desks import AGAIN_S, NOT_FOUND_AT_MOST, RECONNECT, Shared, Way, told
from tests.support.raw_http import RECEIVE_BYTES, Broken, Node, post_once

TRANSPORTS = ("ndjson", "sse", "grpc")
QUIET_READS = 3
QUIET_S = 0.1
LARGE_PIECE = 262_144

Tamper = Callable[[OpenRead, History], OpenRead]
"""Replaces the read of a reader by an altered one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a reader behaves."""

    kind: Kind
    name: str
    """The source of all random choices of the reader."""
    window_s: float
    """How long the nodes keep a read open."""
    cuts: int
    """How often the reader may go away. After that it reads to the end."""
    longest_away_s: float
    takes_over: bool
    acknowledge_every: int
    in_flight: int

    def rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.name}-{purpose}")

    def transport_of(self, number: int) -> str:
        return self.rng(f"transport-{number}").choice(TRANSPORTS)

    def away_s(self, number: int) -> float:
        """Return how long the reader stays away after a read."""
        rng = self.rng(f"away-{number}")
        if number >= self.cuts or rng.random() < 0.5:
            return 0.0
        return self.longest_away_s * rng.random()

    def options_of(self, number: int) -> ReadOptions:
        rng = self.rng(f"options-{number}")
        # A limit ends a read cleanly even if the reader has gone away before. A plain reader would
        # lose events.
        may_be_limited = self.kind is not Kind.PLAIN
        return ReadOptions(
            acknowledge=self.kind is Kind.ACKNOWLEDGING,
            in_flight=self.in_flight,
            limit=rng.choice((None, None, None, 1, 7)) if may_be_limited else None,
            heartbeat_s=rng.choice((None, None, 0.1)),
        )

    def cut_of(self, number: int) -> Cut | None:
        rng = self.rng(f"cut-{number}")
        if number >= self.cuts or rng.random() < 0.3:
            return None
        how = rng.choice(GRPC_CUTS if self.transport_of(number) == "grpc" else HTTP_CUTS)
        if how is How.ABANDON and not self.takes_over:
            how = How.STALL  # otherwise the node would need seconds to notice
        return Cut(
            how,
            after_events=rng.choice((BEFORE_ANSWER, 0, 1, rng.randint(2, 10), rng.randint(2, 40))),
            piece_bytes=rng.choice((512, 4_096, RECEIVE_BYTES)),
            stall_s=rng.uniform(0, 0.05),
        )


@dataclass(slots=True)
class Unsettled:
    """A broken read for which it is not known yet how the node ended it."""

    read: Read
    window_ends_at: float
    moves: int
    """How many moves had ended when the reader sent the request."""


class MovesSeen:
    """Counts the moves of the channels. Each move ends every read cleanly."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended = 0

    def overlap(self, ended_before: int) -> bool:
        """Return whether a move was under way at any time after the given number of moves had
        ended."""
        return self.begun > ended_before


class Reader:
    def __init__(
        self,
        shared: Shared,
        channel: int,
        plan: Plan,
        moves: MovesSeen,
        tamper: Tamper = lambda read, history: read,
    ) -> None:
        self._shared = shared
        self._ledger = shared.ledger
        self._channel = channel
        self._consumer = shared.channels[channel].consumer
        self._plan = plan
        self._moves = moves
        self._tamper = tamper
        self._history = shared.ledger.histories[channel]
        self._way = Way(shared)
        self._acknowledger = Acknowledger(shared, self._consumer, self._history)
        self._cursor = START
        self._unacknowledged: str | None = None
        self._count = 0
        self._unsettled: list[Unsettled] = []
        self._abandoned: list[OpenRead] = []
        self._connection: tuple[Node, grpc.aio.Channel] | None = None

    async def read_until_nothing_comes(self, calm: asyncio.Event) -> None:
        """Read until all events have come, or until no more come although nothing disturbs the
        nodes."""
        number = quiet = 0
        try:
            while quiet < QUIET_READS and not self._is_complete(calm):
                was_calm = calm.is_set() and self._ledger.all_written
                read = await self._read(number, self._plan.cut_of(number), calm)
                is_quiet = was_calm and read.ending is Ending.CLEAN and not read.events
                quiet = quiet + 1 if is_quiet else 0
                if not calm.is_set():
                    await asyncio.sleep(self._plan.away_s(number))
                number += 1
            if self._unacknowledged is not None:
                await self._acknowledger.acknowledge(self._unacknowledged)
            await self._read(number, None, calm)  # no event may be left
        except Gone:
            return

    def _is_complete(self, calm: asyncio.Event) -> bool:
        return calm.is_set() and self._ledger.has_all(self._channel)

    async def _read(self, number: int, cut: Cut | None, calm: asyncio.Event) -> Read:
        """Read once, as soon as a node allows it."""
        options = self._plan.options_of(number)
        if self._plan.kind is Kind.RESUMING:
            options = replace(options, cursor=self._cursor)
        if calm.is_set() and self._ledger.all_written:
            options, cut = replace(options, wait_s=QUIET_S), None
        missing = 0
        while True:
            node = await self._way.node()
            try:
                return await self._try_to_read(node, self._plan.transport_of(number), options, cut)
            except ReaderBusy:
                options = replace(options, take_over=self._plan.takes_over)
            except ChannelNotFound:
                missing += 1
                if missing == NOT_FOUND_AT_MOST:
                    raise
            except (MegaphoneError, Broken):
                pass  # before any event could come
            await asyncio.sleep(AGAIN_S)

    async def _try_to_read(
        self, node: Node, transport: str, options: ReadOptions, cut: Cut | None
    ) -> Read:
        clock = asyncio.get_running_loop().time
        asked_at = clock()
        window_s = min(self._plan.window_s, options.wait_s or self._plan.window_s)
        read = Read(self._ledger.tick(), options.cursor, asked_at=asked_at)
        moves = self._moves.ended
        asked = await self._ask(node, transport, options, cut)
        try:
            begun_at = await self._follow(asked, read, cut)
        finally:
            if cut is not None and cut.how is How.ABANDON:
                self._abandoned.append(asked)
            else:
                asked.close()
        self._settle(begun_at)
        if read.ending is Ending.BROKEN:
            self._unsettled.append(Unsettled(read, asked_at + window_s, moves))
        self._history.reads.append(read)
        return read

    async def _ask(
        self, node: Node, transport: str, options: ReadOptions, cut: Cut | None
    ) -> OpenRead:
        recognize = self._ledger.recognizer(self._channel)
        asked: OpenRead
        if transport == "grpc":
            if self._connection is None or self._connection[0] != node:
                await self._hang_up()
                made = grpc.aio.insecure_channel(node.grpc_target, options=RECONNECT)
                self._connection = (node, made)
            asked = MovedGrpcRead(self._connection[1], self._consumer, options, recognize)
        else:
            try:
                asked = await HttpRead.ask(
                    node,
                    self._consumer,
                    options,
                    sse=transport == "sse",
                    piece_bytes=LARGE_PIECE if cut is None else cut.piece_bytes,
                    recognize=recognize,
                )
            except OSError as error:
                raise Broken from error
        return self._tamper(asked, self._history)

    async def _follow(self, asked: OpenRead, read: Read, cut: Cut | None) -> float | None:
        """Take events until the node ends the read, or until it is time to go away.

        Returns: when it was certain that the node had not refused the read; None if it never was.
        Raises: MegaphoneError, for a refusal; Broken, if no answer came.
        """
        if cut is not None and cut.after_events == BEFORE_ANSWER:
            await self._go(asked, cut)
            return None
        begun_at = None
        try:
            await asked.begin()
            begun_at = asyncio.get_running_loop().time()
            read.answered = self._ledger.tick()
            read.recovered = asked.recovered
            while cut is None or len(read.events) < cut.after_events:
                events = await asked.next()
                if events is None:
                    read.ending, read.is_torn = Ending.CLEAN, asked.is_torn
                    return begun_at
                left = len(events) if cut is None else cut.after_events - len(read.events)
                for event in events[:left]:
                    await self._take(event, read)
        except Broken:
            return begun_at  # the node may have sent it events
        except TooSlow:
            return begun_at
        except MegaphoneError:
            if not read.events:
                raise  # over gRPC a refusal comes only now
            return begun_at
        await self._go(asked, cut)
        return begun_at

    async def _take(self, event: Seen, read: Read) -> None:
        self._ledger.note_seen(self._channel, read, event)
        self._cursor = event.event_id
        if self._plan.kind is Kind.ACKNOWLEDGING:
            self._unacknowledged = event.event_id
            self._count += 1
            if self._count % self._plan.acknowledge_every == 0:
                self._unacknowledged = None
                await self._acknowledger.acknowledge(event.event_id)

    async def _go(self, asked: OpenRead, cut: Cut | None) -> None:
        if cut is not None:
            with suppress(Broken):
                await asked.cut(cut)
            if cut.how is How.CLOSE_CHANNEL:
                self._connection = None

    def _settle(self, begun_at: float | None) -> None:
        """Record for earlier broken reads whether a node may have ended them cleanly."""
        if begun_at is None:
            return
        for earlier in self._unsettled:
            if begun_at >= earlier.window_ends_at or self._moves.overlap(earlier.moves):
                earlier.read.ending = Ending.BROKEN_AT_WINDOW_END
        self._unsettled.clear()
        for read in self._abandoned:
            read.close()
        self._abandoned.clear()

    async def _hang_up(self) -> None:
        if self._connection is not None:
            await self._connection[1].close()
            self._connection = None

    async def aclose(self) -> None:
        for read in self._abandoned:
            read.close()
        await self._hang_up()


class MovedGrpcRead(GrpcRead):
    """A read over gRPC during which its node may go away."""

    async def begin(self) -> None:
        try:
            await super().begin()
        except grpc.aio.AioRpcError as failed:
            raise told(failed) from failed

    async def next(self) -> list[Seen] | None:
        try:
            return await self.next_or_error()
        except grpc.aio.AioRpcError as failed:
            raise told(failed) from failed


class Acknowledger:
    """Acknowledges over the two faces alternately, until an answer comes."""

    def __init__(self, shared: Shared, consumer: str, history: History) -> None:
        self._shared = shared
        self._consumer = consumer
        self._history = history
        self._way = Way(shared)
        self._count = 0

    async def acknowledge(self, event_id: str) -> None:
        """Acknowledge. Return without an answer if the channel is lost; the reader notices it by
        reading."""
        began = self._shared.ledger.tick()
        answered = None
        missing = 0
        with suppress(Gone):
            while answered is None and missing < NOT_FOUND_AT_MOST:
                self._count += 1
                node = await self._way.node()
                try:
                    await (self._over_http if self._count % 2 else self._over_grpc)(node, event_id)
                    answered = self._shared.ledger.tick()
                    continue
                except (Broken, AgentMoved, ShuttingDown):
                    pass
                except ChannelNotFound:
                    missing += 1
                await asyncio.sleep(AGAIN_S)
        self._history.acknowledgements.append(Acknowledgement(event_id, began, answered))

    async def _over_http(self, node: Node, event_id: str) -> None:
        try:
            await post_once(node, f"/ack/{segment(self._consumer)}", {"eid": event_id})
        except OSError as error:
            raise Broken from error

    async def _over_grpc(self, node: Node, event_id: str) -> None:
        request = pb.AcknowledgeRequest(consumer_address=self._consumer, event_id=event_id)
        stub = self._shared.lines.stub(node)
        try:
            await stub.Acknowledge(request, metadata=agent_of(self._consumer))
        except grpc.aio.AioRpcError as failed:
            raise told(failed) from failed
