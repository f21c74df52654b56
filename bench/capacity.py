"""What a call of a channel costs when the channel is large, beside one of the default capacity.

Both channels are full: as many events are kept for replay as wait for their reader. No server takes
part. The calls are made here, block by block, and only the time of the calls themselves counts.
"""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from bench.contestants import OURS, Contestant
from bench.report import PER_SECOND, Figure
from bench.rounds import Measure, Plan, Sample, alternate, progress
from megaphone.core.budget import Budget
from megaphone.core.channel import Channel, Lease
from megaphone.model import Event, ReadOptions
from megaphone.settings import Settings

USUAL = 100
CAPACITIES = (10_000, 100_000)
BLOCK = 50
ROUND_S = 0.05
BODY = b'{"price": 12.5, "quantity": 3, "side": "buy"}'
READER = ReadOptions(acknowledge=True, in_flight=2 * BLOCK)


class FullChannel:
    """A channel that stays full. Each method makes a block of calls, and returns their time."""

    def __init__(self, capacity: int) -> None:
        self._count = 0
        limits = Settings(buffer_capacity=capacity).channel_limits()
        self._channel = Channel(limits, 0.0, Budget())
        for event in self._events(capacity):
            self._channel.offer(event, now=0.0)
        self._lease = self._lease_of(READER)
        self._channel.acknowledge(self._take_all(capacity), 0.0)
        for event in self._events(capacity - BLOCK):
            self._channel.offer(event, now=0.0)

    def append(self) -> float:
        taken_s, _, _ = self._turn()
        return taken_s

    def take(self) -> float:
        _, taken_s, _ = self._turn()
        return taken_s

    def acknowledge(self) -> float:
        _, _, taken_s = self._turn()
        return taken_s

    def resume(self) -> float:
        """Start a read in the middle of the replay, and one where it was before."""
        log = self._channel.log
        here, middle = log.delivered, (log.dropped + log.delivered) // 2
        options = [
            ReadOptions(log.id_at(offset), acknowledge=True, take_over=True)
            for offset in (middle, here)
        ]
        began = time.thread_time()
        for _ in range(BLOCK // 2):
            for one in options:
                self._channel.lease(one, 0.0)
        return time.thread_time() - began

    def apply(self) -> float:
        """Apply replicated events; each evicts one."""
        events = list(self._events(BLOCK))
        began = time.thread_time()
        for event in events:
            self._channel.apply(event, 0.0)
        return time.thread_time() - began

    # -- Inside

    def _turn(self) -> tuple[float, float, float]:
        """Append, take and acknowledge a block of events, one by one. Returns: the time of each."""
        events, ids = list(self._events(BLOCK)), list[str]()
        times = [time.thread_time()]
        for event in events:
            self._channel.offer(event, now=0.0)
        times.append(time.thread_time())
        for _ in events:
            if batch := self._lease.take(1, len(BODY), 0.0):
                ids.append(batch.events[0].id)
        times.append(time.thread_time())
        for event_id in ids:
            self._channel.acknowledge(event_id, 0.0)
        times.append(time.thread_time())
        appended, taken, acknowledged = (after - before for before, after in pairwise(times))
        return appended, taken, acknowledged

    def _events(self, count: int) -> Iterator[Event]:
        for _ in range(count):
            self._count += 1
            yield Event(f"{self._count:023}", "bench", 0, BODY)

    def _lease_of(self, options: ReadOptions) -> Lease:
        return self._channel.lease(options, 0.0)

    def _take_all(self, count: int) -> str:
        """Return the id of the last of some events, which were all taken."""
        last = ""
        while count and (batch := self._lease.take(count, count * 1_000, 0.0)):
            last = batch.events[-1].id
            self._channel.acknowledge(last, 0.0)
            count -= len(batch.events)
        return last


Call = Callable[[FullChannel], float]
CALLS: dict[str, Call] = {
    "apply": FullChannel.apply,
    "append": FullChannel.append,
    "take": FullChannel.take,
    "acknowledge": FullChannel.acknowledge,
    "resume": FullChannel.resume,
}


async def measure(_contestants: Sequence[Contestant], plan: Plan) -> list[Figure]:
    progress(f"capacity: filling channels of {', '.join(f'{c:,}' for c in CAPACITIES)} events")
    gc.disable()
    try:
        return [await figure(plan, call, capacity) for call in CALLS for capacity in CAPACITIES]
    finally:
        gc.enable()


async def figure(plan: Plan, call: str, capacity: int) -> Figure:
    name = f"capacity {call} {capacity}"
    sides = {
        OURS: measured(CALLS[call], FullChannel(capacity)),
        f"capacity {USUAL}": measured(CALLS[call], FullChannel(USUAL)),
    }
    samples = await alternate(name, plan, sides)
    return Figure(
        name=name,
        what=f"{call} at a capacity of {capacity:,}",
        unit=PER_SECOND,
        rounds={side: [one.per_core_second for one in all_] for side, all_ in samples.items()},
    )


def measured(call: Call, channel: FullChannel) -> Measure:
    call(channel)  # the first one may make the index of ids

    async def one_round(seconds: float) -> Sample:
        """Call for a part of a round: blocks are alike, and there are many lines."""
        await asyncio.sleep(0)
        count, core_s, began = 0, 0.0, time.monotonic()
        while core_s < min(seconds, ROUND_S):
            core_s += call(channel)
            count += BLOCK
        return Sample(count, time.monotonic() - began, core_s)

    return one_round
