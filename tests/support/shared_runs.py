"""Runs against nodes that share a store: clients that keep at it, while nodes or the store fail.

A writer repeats a write with the same key until it has an answer that is one. A reader reads again
until it has everything. Each call goes to any node that lives. Every random choice comes from the
seed; the timing does not.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Self

import grpc

from megaphone.errors import ChannelNotFound, MegaphoneError
from megaphone.model import ReadOptions
from tests.support.checker import (
    Acknowledgement,
    Ending,
    History,
    Kind,
    Outcome,
    Read,
    Verdict,
    Write,
    judge,
)
from tests.support.fault_readers import GrpcRead, HttpRead, OpenRead, grpc_connection
from tests.support.fault_runs import Ledger
from tests.support.fault_writers import GrpcDesk, HttpDesk
from tests.support.process import BrokerProcess, broker_process
from tests.support.raw_http import Broken, Node, post_once

WINDOW_S = 0.4
WRITERS = 2
WRITES_EVERY_S = 0.04
PAUSE_S = 0.02
"""How long a client waits before it tries again."""
QUIET_READS = 3
PATIENCE_S = 20.0
"""How long a client waits for an answer. A write may wait for a place."""
ENDS_WITHIN_S = 60.0
"""How long a run may take after the last trouble."""
AWAY = (OSError, Broken, grpc.aio.AioRpcError, grpc.aio.UsageError, TimeoutError)
"""What a client sees of a node that is not there."""


@contextmanager
def gone_is_broken() -> Iterator[None]:
    """Raise Broken for an error of gRPC that no node has sent."""
    try:
        yield
    except AssertionError as error:
        if isinstance(error.__context__, grpc.aio.AioRpcError):
            raise Broken from error
        raise


class Fleet:
    """Broker processes with one store, which are killed and started."""

    is_proxied = False
    """Whether calls go to a proxy, and not to a node."""

    def __init__(self, directory: Path, store: str, rng: random.Random, **settings: object) -> None:
        self._directory = directory
        self._settings: dict[str, Any] = {
            "store": store,
            "poll_duration_millis": round(WINDOW_S * 1000),
            **settings,
        }
        self._rng = rng
        self._numbers = count()
        self._stack = ExitStack()
        self.nodes: list[Node] = []
        self._processes: dict[Node, BrokerProcess] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        """Start one more node, and wait until it serves."""
        home = self._directory / f"node-{next(self._numbers)}"
        home.mkdir()
        process = self._stack.enter_context(broker_process(home, **self._settings))
        node = Node(process.http_port, process.grpc_port)
        self._processes[node] = process
        self.nodes.append(node)

    def any(self) -> Node:
        return self._rng.choice(self.nodes)

    def kill(self) -> None:
        """Kill any node at once."""
        node = self.any()
        self.nodes.remove(node)
        self._processes[node].process.kill()

    def process_of(self, node: Node) -> BrokerProcess:
        return self._processes[node]


@dataclass(slots=True)
class Result:
    """How a run went."""

    name: str
    history: History
    verdict: Verdict
    ended: bool
    """Whether the channel was gone before the end."""
    longest_write_s: float = 0.0
    """The longest time from the first try of a write until it was accepted."""
    longest_read_s: float = 0.0
    """The longest time from the answer to a write until the reader had its event."""

    @property
    def is_as_promised(self) -> bool:
        return not self.verdict.anomalies

    def explanation(self) -> str:
        lines = [f"{self.name}: {'the channel is gone' if self.ended else ''}"]
        lines += [f"  {anomaly}" for anomaly in self.verdict.anomalies]
        for number, one in enumerate(self.history.reads):
            events = " ".join(f"{seen.writer}/{seen.number}" for seen in one.events)
            where = f"after {one.cursor}" if one.cursor else "no cursor"
            lines.append(f"  read {number}, {where}, {one.recovered}, {one.ending.value}: {events}")
        return "\n".join(lines)


class Run:
    """Writers and one reader of one channel."""

    def __init__(
        self,
        fleet: Fleet,
        kind: Kind,
        seed: int,
        *,
        store_may_go_back: bool = False,
        writes_every_s: float = WRITES_EVERY_S,
    ) -> None:
        """`writes_every_s` is the mean time from a write to the next one of the same writer."""
        self._fleet = fleet
        self._writes_every_s = writes_every_s
        self._store_may_go_back = store_may_go_back
        self._kind = kind
        self._name = f"{kind.value}-{seed}"
        self._rng = random.Random(self._name)
        self._ledger = Ledger(kind)
        self._is_over = asyncio.Event()
        """Set when no more trouble comes."""
        self._is_gone = False
        self._longest_write_s = self._longest_read_s = 0.0
        self._accepted_at: dict[str, float] = {}
        """When writers got the answers for events that the reader has not seen yet."""
        self._seen: set[str] = set()
        self._producer = self._consumer = ""

    async def run(self, trouble_is_over: asyncio.Event) -> Result:
        self._is_over = trouble_is_over
        addresses = await self._insist(lambda: post_once(self._fleet.any(), "/create", {}))
        self._producer = addresses["producerAddress"]
        self._consumer = addresses["consumerAddress"]
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read_all())
            async with asyncio.TaskGroup() as writers:
                for name in range(WRITERS):
                    writers.create_task(self._write_all(name))
            self._ledger.all_written = True
            await reading
        history = self._ledger.history
        history.may_go_back = self._store_may_go_back
        history.may_repeat = True
        return Result(
            self._name,
            history,
            judge(history),
            self._is_gone,
            self._longest_write_s,
            self._longest_read_s,
        )

    async def _insist(self, call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Repeat a call until a node answers it. Raises: ChannelNotFound."""
        while True:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    with gone_is_broken():
                        return await call()
            except ChannelNotFound:
                raise
            except (MegaphoneError, *AWAY):
                await asyncio.sleep(PAUSE_S)

    # -- Writing

    async def _write_all(self, name: int) -> None:
        loop = asyncio.get_running_loop()
        padding = "x" * self._rng.choice((0, 0, 100, 1_000))
        for number in count():
            if self._is_over.is_set() and number > 20:
                return
            body = f'[{name},{number},"{padding}"]'.encode()
            began, begun_at = self._ledger.tick(), loop.time()
            write = self._over_grpc if self._rng.random() < 0.5 else self._over_http
            try:
                event_id = await self._insist(lambda w=write, b=body, n=number: w(b, f"{name}-{n}"))  # type: ignore[misc]
            except ChannelNotFound:
                self._is_gone = True
                return
            accepted_at = loop.time()
            self._longest_write_s = max(self._longest_write_s, accepted_at - begun_at)
            if event_id not in self._seen:
                self._accepted_at[event_id] = accepted_at
            ended = self._ledger.tick()
            self._ledger.note_write(Write(name, number, Outcome.TAKEN, event_id, began, ended))
            await asyncio.sleep(self._rng.uniform(0, 2 * self._writes_every_s))

    async def _over_http(self, body: bytes, key: str) -> str:
        desk = HttpDesk(self._fleet.any(), self._producer)
        try:
            return await desk.write(body, key)
        finally:
            desk.close()

    async def _over_grpc(self, body: bytes, key: str) -> str:
        async with grpc_connection(self._fleet.any()) as connection:
            return await GrpcDesk(connection, self._producer).write(body, key)

    # -- Reading

    async def _read_all(self) -> None:
        quiet, last_seen = 0, None
        while quiet < QUIET_READS and not self._is_gone:
            was_written = self._ledger.all_written
            read = Read(self._ledger.tick(), last_seen if self._kind is Kind.RESUMING else None)
            read.asked_at = asyncio.get_running_loop().time()
            try:
                with gone_is_broken():
                    await self._read(read)
            except ChannelNotFound:
                self._is_gone = True
                return
            except (MegaphoneError, *AWAY):
                await asyncio.sleep(PAUSE_S)
            if read.answered is None and not read.events:
                continue
            self._ledger.history.reads.append(read)
            if read.events:
                last_seen = read.events[-1].event_id
                await self._acknowledge(last_seen)
            is_quiet = was_written and read.ending is Ending.CLEAN and not read.events
            quiet = quiet + 1 if is_quiet else 0

    async def _read(self, read: Read) -> None:
        options = ReadOptions(cursor=read.cursor, acknowledge=self._kind is Kind.ACKNOWLEDGING)
        async with AsyncExitStack() as stack:
            asked = await self._ask(stack, options)
            await asked.begin()
            read.recovered = asked.recovered
            while (events := await asked.next()) is not None:
                read.answered = read.answered or self._ledger.tick()
                for seen in events:
                    self._ledger.note_seen(read, seen)
                    self._measure(seen.event_id)
            read.answered = read.answered or self._ledger.tick()
            read.ending = Ending.CLEAN

    def _measure(self, event_id: str) -> None:
        self._seen.add(event_id)
        if (accepted_at := self._accepted_at.pop(event_id, None)) is not None:
            waited_s = asyncio.get_running_loop().time() - accepted_at
            self._longest_read_s = max(self._longest_read_s, waited_s)

    async def _ask(self, stack: AsyncExitStack, options: ReadOptions) -> OpenRead:
        node = self._fleet.any()
        if self._rng.random() < 0.4:
            connection = await stack.enter_async_context(grpc_connection(node))
            over_grpc = GrpcRead(connection, self._consumer, options)
            stack.callback(over_grpc.close)
            return over_grpc
        over_http = await HttpRead.ask(node, self._consumer, options, sse=self._rng.random() < 0.5)
        over_http.is_proxied = self._fleet.is_proxied
        stack.callback(over_http.close)
        return over_http

    async def _acknowledge(self, event_id: str) -> None:
        if self._kind is not Kind.ACKNOWLEDGING:
            return
        began = self._ledger.tick()
        with suppress(ChannelNotFound):
            path = f"/ack/{self._consumer}"
            await self._insist(lambda: post_once(self._fleet.any(), path, {"eid": event_id}))
        one = Acknowledgement(event_id, began, self._ledger.tick())
        self._ledger.history.acknowledgements.append(one)


async def run_under(
    trouble: Callable[[], Coroutine[Any, Any, None]],
    fleet: Fleet,
    seeds: range,
    *,
    store_may_go_back: bool = False,
    writes_every_s: float = WRITES_EVERY_S,
) -> list[Result]:
    """Run a channel of each kind for each seed, all at once, while there is trouble."""
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        runs = [
            group.create_task(
                Run(
                    fleet,
                    kind,
                    seed,
                    store_may_go_back=store_may_go_back,
                    writes_every_s=writes_every_s,
                ).run(over)
            )
            for seed in seeds
            for kind in Kind
        ]
        await trouble()
        over.set()
        async with asyncio.timeout(ENDS_WITHIN_S):
            await asyncio.wait(runs)
    return [run.result() for run in runs]
