"""The load of `megaphone bench`: channels, a reader for each, and writers.

An event has its number and the time at which it should have been written, so that its reader knows
how long it took, and whether one is missing. Writers that keep a rate count from the time at which
it was an event's turn, not from when they came to write it: otherwise a broker that stops for a
second would look as if it had been slow for one event only.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec

from megaphone.cli.plan import Kind, Plan
from megaphone.cli.tally import Deliveries, Times
from megaphone_client import Channel, ChannelNotFound, Megaphone, MegaphoneError

STREAM: Final = "bench"
CREATED_AT_ONCE: Final = 50
SETTLES_WITHIN_S: Final = 15.0
"""How long an event may take to arrive after the last write."""
STEP_S: Final = 0.1
READ_AT_ONCE: Final = 1_000
NS: Final = 1_000_000_000
BODY: Final = msgspec.json.Decoder(tuple[int, int, str])


@dataclass(slots=True)
class Target:
    """One channel of the load."""

    channel: Channel
    deliveries: Deliveries
    arrived: asyncio.Event

    async def until_complete(self) -> None:
        while not self.deliveries.is_complete:
            self.arrived.clear()
            await self.arrived.wait()


class Load:
    """Runs a plan. Its counts and times leave the warm-up out; what was lost, repeated or out of
    order is of the warm-up too."""

    def __init__(self, plan: Plan, on_step: Callable[[float], None]) -> None:
        """`on_step` is called often with the seconds since the warm-up began."""
        self._plan = plan
        self._on_step = on_step
        self._is_measured = False
        self._stop = asyncio.Event()
        self.targets: list[Target] = []
        self.write_times = Times()
        self.delivery_times = Times()
        self.written = 0
        self.read = 0
        self.gaps = 0
        self.failed: Counter[str] = Counter()
        """How many events were not written, and reads not finished, by the code of the error."""
        self.duration_s = 0.0
        self.cpu_s = 0.0
        """The time that this process computed."""

    async def run(self, megaphone: Megaphone) -> None:
        """Raises: MegaphoneError, if the channels cannot be made."""
        at_once = asyncio.Semaphore(CREATED_AT_ONCE)

        async def create() -> Target:
            async with at_once:
                return Target(await megaphone.create(), Deliveries(), asyncio.Event())

        self.targets = await asyncio.gather(*(create() for _ in range(self._plan.channels)))
        readers = [asyncio.create_task(self._read(megaphone, one)) for one in self.targets]
        try:
            await self._write_for_a_time(megaphone)
            await self._settle()
        finally:
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)

    async def _write_for_a_time(self, megaphone: Megaphone) -> None:
        groups = (
            [self.targets] if self._plan.kind is Kind.FANOUT else [[one] for one in self.targets]
        )
        async with asyncio.TaskGroup() as writers:
            for number, group in enumerate(groups):
                writers.create_task(self._write(megaphone, group, number / len(groups)))
            await self._pass(0.0, self._plan.warm_up_s)
            begun, cpu = time.perf_counter(), time.process_time()
            self._is_measured = True
            await self._pass(self._plan.warm_up_s, self._plan.duration_s)
            self._is_measured = False
            self.duration_s = time.perf_counter() - begun
            self.cpu_s = time.process_time() - cpu
            self._stop.set()

    async def _pass(self, passed_s: float, duration_s: float) -> None:
        """Let a time pass, after another one has passed already, and show how far the load is."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while (now := loop.time() - begun) < duration_s:
            self._on_step(passed_s + now)
            await asyncio.sleep(min(STEP_S, duration_s - now))

    async def _settle(self) -> None:
        """Wait until everything is read, but not for what is lost."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLES_WITHIN_S):
                for target in self.targets:
                    await target.until_complete()

    async def _write(self, megaphone: Megaphone, group: Sequence[Target], phase: float) -> None:
        """Write batches to a group of channels. At a rate, the writers' turns alternate."""
        interval_ns = self._interval_ns(len(group))
        due = time.perf_counter_ns() + int(phase * interval_ns)
        number = 0
        while not self._stop.is_set():
            if interval_ns:
                await self._until(due)
                if self._stop.is_set():
                    return
            else:
                due = time.perf_counter_ns()
            numbers = range(number + 1, number + self._plan.batch + 1)
            try:
                refused = await self._call(megaphone, group, numbers, due)
            except MegaphoneError as error:
                refused = [(target, one, error.code) for target in group for one in numbers]
            self._note(group, numbers, refused, time.perf_counter_ns() - due)
            if any(code == "NOT_FOUND" for _, _, code in refused):
                return
            number += self._plan.batch
            due += interval_ns

    async def _until(self, due: int) -> None:
        """Wait for a time, or for the end of the load."""
        wait_s = (due - time.perf_counter_ns()) / NS
        if wait_s > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._stop.wait()

    def _interval_ns(self, group: int) -> int:
        """Return the time from one call of a writer to the next."""
        if self._plan.rate is None:
            return 0
        writers = self._plan.channels // group
        return int(NS * self._plan.batch * group * writers / self._plan.rate)

    async def _call(
        self, megaphone: Megaphone, group: Sequence[Target], numbers: range, due: int
    ) -> list[tuple[Target, int, str]]:
        """Write events. Returns: those that a channel did not take, with the reason."""
        bodies = [self._body(number, due) for number in numbers]
        if len(bodies) == len(group) == 1:
            await megaphone.write(group[0].channel.producer, STREAM, bodies[0])
            return []
        by_producer = {target.channel.producer: target for target in group}
        failures = await megaphone.write_batch(by_producer, [(STREAM, body) for body in bodies])
        return [(by_producer[one.producer], numbers[one.index], one.reason) for one in failures]

    def _body(self, number: int, due: int) -> bytes:
        start = b'[%d,%d,"' % (number, due)
        return start.ljust(self._plan.size - 2, b".") + b'"]'

    def _note(
        self,
        group: Sequence[Target],
        numbers: range,
        refused: Sequence[tuple[Target, int, str]],
        took_ns: int,
    ) -> None:
        for target, number, code in refused:
            target.deliveries.not_written(number)
            self.failed[code] += 1
        for target in group:
            target.deliveries.written(numbers[-1])
        taken = len(group) * len(numbers) - len(refused)
        if self._is_measured and taken:
            self.written += taken
            self.write_times.add(took_ns)

    async def _read(self, megaphone: Megaphone, target: Target) -> None:
        try:
            async with megaphone.read(target.channel.consumer, on_gap=self._note_gap) as reader:
                while events := await reader.batch(READ_AT_ONCE):
                    now = time.perf_counter_ns()
                    for event in events:
                        number, due, _ = BODY.decode(event.raw)
                        target.deliveries.read(number)
                        if self._is_measured:
                            self.read += 1
                            self.delivery_times.add(now - due)
                    target.arrived.set()
        except ChannelNotFound as error:  # what is lost with it is counted
            self.failed[error.code] += 1

    def _note_gap(self) -> None:
        self.gaps += 1
