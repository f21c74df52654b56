"""Seeded runs that mix faults: one client library writes and reads a channel while its way breaks.

Every random choice comes from the seed. The timing of the sockets does not. So a seed repeats a
scenario, but not the same interleaving.
"""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from megaphone.app import App
from megaphone.model import ReadOptions
from tests.clients.driver import Client, ClientError, Driver, Reading
from tests.clients.drivers.kinds import Kind
from tests.clients.records import Records
from tests.clients.roads import PIECE_BYTES, Weather
from tests.clients.stages import Stage, allowing, other_node, stage
from tests.clients.troubles import Plan
from tests.support.faces import http_face

WRITERS = 3
STREAM = "s"
RUN_AT_MOST_S = 60.0
MOVES_WITHIN_S = 0.15
"""How long a proxy takes to learn that an agent has moved."""
SENTINEL = -1
"""The writer of the event that ends a run."""
MAY_FAIL_TO_ACK = ("ConnectionFailed", "Unavailable")
"""The errors of an acknowledgement whose time limit passes while its connection is silent."""
BATCH = 8
PIECES_AND_SIZES = (
    (PIECE_BYTES, (0,)),
    (PIECE_BYTES, (0, 100, 3_000)),
    (PIECE_BYTES, (40, 30_000)),
    (7, (0, 20)),
    (100, (0, 100)),
    (2_000, (0, 3_000)),
)
"""In how small pieces answers arrive, and the sizes of events, so that no run takes long."""
SLOW_PIECE = 100
"""Larger pieces than this may have pauses between them over gRPC, for which a broker expects
20 kB a second."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """The scenario of a seed."""

    kind: Kind
    seed: int
    ack: str
    each: bool
    gaps: str
    events: int
    """How many each writer writes."""
    ways: tuple[str, ...]
    """How each writer writes."""
    sizes: tuple[int, ...]
    heartbeat_s: float
    poll_s: float
    cuts: int
    mean_life_bytes: int
    largest_piece: int
    longest_pause_s: float
    troubles: int
    chance: float
    busy_s: float
    """For how long the application is busy with each event."""
    busy_once_s: float
    """For how long it is busy with one of the first events."""
    moves: bool
    """Whether the channel moves to another node meanwhile."""
    is_disposed: bool
    """Whether an operator disposes of the channel at the end."""

    @classmethod
    def draw(cls, kind: Kind, seed: int) -> "Scenario":
        rng = random.Random(f"{kind}-{seed}")
        largest_piece, sizes = rng.choice(PIECES_AND_SIZES)
        longest_pause_s = rng.choice((0.0, 0.0, 0.003))
        may_be_slow = kind.scheme == "http" or largest_piece > SLOW_PIECE
        return cls(
            kind=kind,
            seed=seed,
            ack=rng.choice(("auto", "auto", "manual", "none")),
            each=rng.random() < 0.7,
            gaps=rng.choice(("raise", "call")),
            events=rng.choice((12, 20, 40)),
            ways=tuple(rng.choice(("one", "one", "batch", "publish")) for _ in range(WRITERS)),
            sizes=sizes,
            heartbeat_s=rng.choice((0.2, 0.4)),
            poll_s=rng.choice((0.3, 0.7, 5.0)),
            cuts=rng.choice((0, 2, 4, 8)),
            mean_life_bytes=rng.choice((300, 1_000, 5_000)),
            largest_piece=largest_piece,
            longest_pause_s=longest_pause_s if may_be_slow else 0.0,
            troubles=rng.choice((0, 3, 6, 10)),
            chance=rng.choice((0.1, 0.3)),
            busy_s=rng.choice((0.0, 0.0, 0.004)),
            busy_once_s=rng.choice((0.0, 0.0, 0.5)),
            moves=rng.random() < 0.25,
            is_disposed=rng.random() < 0.2,
        )

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.seed}"

    def rng(self, purpose: str) -> random.Random:
        return random.Random(f"{self.name}-{purpose}")

    def weather(self) -> Weather:
        return Weather(
            self.rng("weather"),
            largest_piece=self.largest_piece,
            longest_pause_s=self.longest_pause_s,
            cuts=self.cuts,
            mean_life_bytes=self.mean_life_bytes,
        )

    def plan(self) -> Plan:
        return Plan(self.rng("plan"), chance=self.chance, left=self.troubles)

    def options(self) -> dict[str, Any]:
        """Return the options of the read."""
        busy_at = str(self.rng("busy").randint(1, 10))
        return {
            "ack": self.ack,
            "each": self.each,
            "gaps": self.gaps,
            "heartbeat_s": self.heartbeat_s,
            "pauses": {"*": self.busy_s, busy_at: self.busy_once_s or self.busy_s},
        }


@dataclass(slots=True)
class Finished:
    """A finished run."""

    scenario: Scenario
    records: Records
    reading: Reading | None = None
    faults: list[str] = field(default_factory=list)
    happened: Counter[str] = field(default_factory=Counter)

    def explanation(self) -> str:
        """Describe what went wrong, and how to repeat it."""
        lines = [f"CLIENTS_SEED={self.scenario.name} {self.scenario}", *self.faults]
        lines.append(f"happened: {dict(self.happened)}")
        lines.append(f"errors of writers: {self.records.errors}")
        if self.reading is not None:
            lines.append(f"shown: {[body[:2] for body in self.reading.bodies]}")
            lines.append(f"gaps: {self.reading.gaps}, error: {self.reading.error!r}")
            lines.append(f"acknowledgements that failed: {self.reading.unacked}")
        return "\n  ".join(lines)


async def run(driver: Driver, writing: Driver, scenario: Scenario) -> Finished:
    """Do a run and judge it. `writing` is the driver that writes."""
    finished = Finished(scenario, Records(scenario.rng("bodies")))
    try:
        async with asyncio.timeout(RUN_AT_MOST_S), AsyncExitStack() as stack:
            place = await stack.enter_async_context(place_of(scenario))
            client, writer = [
                await stack.enter_async_context(one.client(place.stage.url, timeout_s=4.0))
                for one in (driver, writing)
            ]
            await Run(finished, place, client, writer).do()
    except Exception as error:
        finished.faults.append(f"did not finish: {error!r} {getattr(error, 'exceptions', '')}")
    return finished


@dataclass(slots=True)
class Place:
    """Where the channel of a run is."""

    stage: Stage
    app: App
    """The node that has the channel now."""
    other: App | None
    """A node to which it may move."""

    async def move(self) -> None:
        """Move the channel to the other node. Meanwhile the first one says that it has moved."""
        assert self.other is not None
        await self.stage.drain_to(self.other)
        await asyncio.sleep(MOVES_WITHIN_S)
        self.app = self.other
        self.stage.turn_to(self.other)


@asynccontextmanager
async def place_of(scenario: Scenario) -> AsyncIterator[Place]:
    settings = {"poll_duration_millis": round(scenario.poll_s * 1000)}
    async with AsyncExitStack() as stack:
        other = None
        if scenario.moves:
            node = other_node(**allowing(scenario.kind), **settings)
            other = await stack.enter_async_context(node)
        way = stage(scenario.kind, scenario.plan(), scenario.weather(), **settings)
        here = await stack.enter_async_context(way)
        yield Place(here, here.app, other)


class Run:
    """A run that is going on."""

    def __init__(self, finished: Finished, place: Place, client: Client, writer: Client) -> None:
        self._scenario = finished.scenario
        self._finished = finished
        self._records = finished.records
        self._place = place
        self._client = client
        self._writer = writer
        self._written = 0
        self._half_written = asyncio.Event()

    async def do(self) -> None:
        made = await self._place.stage.face.create()
        producer, consumer = made.producer, made.consumer
        reading = self._client.read(consumer, **self._scenario.options())
        self._finished.reading = reading
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write_all(producer))
                if self._scenario.moves:
                    group.create_task(self._move())
            await reading.until(lambda: self._records.are_all_in(reading) or reading.gaps > 0)
            self._note_what_happened()
            self._place.stage.clear_up()
            await self._end(producer, consumer, reading)
        finally:
            if not reading.is_over:
                await self._client.stop(reading)
        self._finished.faults += self._records.faults_of_life(reading)

    # -- Writing

    async def _write_all(self, producer: str) -> None:
        async with asyncio.TaskGroup() as group:
            for writer, way in enumerate(self._scenario.ways):
                group.create_task(self._write(writer, way, producer))
        self._half_written.set()

    async def _write(self, writer: int, way: str, producer: str) -> None:
        sizes = self._scenario.rng(f"writer-{writer}")
        numbers = range(self._scenario.events)
        for first in range(0, len(numbers), 1 if way == "one" else BATCH):
            some = numbers[first : first + (1 if way == "one" else BATCH)]
            bodies = [
                self._records.body(writer, number, sizes.choice(self._scenario.sizes))
                for number in some
            ]
            began = self._records.tick()
            results = await self._results(way, producer, bodies)
            for number, result in zip(some, results, strict=True):
                self._records.settle(writer, number, began, result)
            self._written += len(some)
            if self._written * 2 >= self._scenario.events * WRITERS:
                self._half_written.set()

    async def _results(
        self, way: str, producer: str, bodies: Sequence[Any]
    ) -> list[str | ClientError | None]:
        try:
            match way:
                case "one":
                    return [await self._writer.write(producer, STREAM, bodies[0])]
                case "batch":
                    return await self._results_of_batch(producer, bodies)
                case _:
                    told = await self._writer.publish([(producer, STREAM, b) for b in bodies])
                    return [one["id"] if "id" in one else ClientError(one) for one in told]
        except ClientError as error:
            return [error] * len(bodies)

    async def _results_of_batch(
        self, producer: str, bodies: Sequence[Any]
    ) -> list[str | ClientError | None]:
        failed = await self._writer.batch([producer], [(STREAM, body) for body in bodies])
        results: list[str | ClientError | None] = [None] * len(bodies)
        for _, index, reason in failed:
            name = "OutcomeUnknown" if reason == "OUTCOME_UNKNOWN" else "Failure"
            results[index] = ClientError({"class": name, "code": reason, "message": ""})
        return results

    async def _move(self) -> None:
        await self._half_written.wait()
        await self._place.move()

    # -- The end

    async def _end(self, producer: str, consumer: str, reading: Reading) -> None:
        """Write one last event, and look what is left once it was shown."""
        async with http_face(self._place.app) as face:
            body = self._records.body(SENTINEL, 0)
            began = self._records.tick()
            event_id = await face.write(producer, STREAM, json.dumps(body).encode())
            self._records.settle(SENTINEL, 0, began, event_id)
            await reading.until(lambda: bool(reading.events) and reading.events[-1].id == event_id)
            if self._scenario.is_disposed:
                await self._place.app.admin.dispose(consumer)
                await self._expect_not_found(reading)
                return
            await self._client.stop(reading)
            self._expect(reading.error is None, f"the read failed: {reading.error}")
            self._expect(reading.cursor == event_id, "the cursor is not the last event")
            for error in reading.unacked:
                self._expect(error.name in MAY_FAIL_TO_ACK, f"acknowledging failed: {error}")
            if self._scenario.ack != "none":
                options = ReadOptions(acknowledge=True, take_over=True, wait_s=0.0)
                async with face.read(consumer, options) as rest:
                    left = [event async for event in rest]
                self._expect(not left, f"{len(left)} events were not acknowledged")

    async def _expect_not_found(self, reading: Reading) -> None:
        error = await reading.fails()
        self._expect(error.name == "ChannelNotFound", f"disposed of, and the client got {error}")

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self._finished.faults.append(otherwise)

    def _note_what_happened(self) -> None:
        happened = self._finished.happened
        happened.update(f"cut: {end.value}" for end in self._place.stage.weather.happened)
        happened.update(
            f"{call}: {type(trouble).__name__}" for call, trouble in self._place.stage.plan.happened
        )
        happened["moved"] += self._scenario.moves
        happened["disposed of"] += self._scenario.is_disposed


async def run_all(
    driver: Driver, writing: Driver, scenarios: Iterable[Scenario], *, at_once: int
) -> list[Finished]:
    """Do runs of one driver, several at a time; another one may write."""
    waiting = iter(scenarios)
    done: list[Finished] = []

    async def run_one_after_the_other() -> None:
        for scenario in waiting:
            done.append(await run(driver, writing, scenario))  # noqa: PERF401

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(run_one_after_the_other())
    return done


def summary(runs: Sequence[Finished]) -> str:
    """Return one line that sums up some runs."""
    happened = sum((one.happened for one in runs), Counter[str]())
    shown = sum(len(one.reading.events) for one in runs if one.reading is not None)
    gaps = sum(one.reading.gaps for one in runs if one.reading is not None)
    wrong = sum(bool(one.faults) for one in runs)
    return (
        f"{len(runs)} runs, {wrong} wrong; {shown} events shown, {gaps} gaps told;"
        f" {dict(sorted(happened.items()))}"
    )
