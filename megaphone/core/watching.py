"""What operators see of a node while it runs: a view of it at each tick, for as long as they watch.

A view is made once for all watchers who ask for the same, and only while somebody watches. The node
keeps no history. To find the first of many channels, all are looked through in slices, and so
seldom that it takes a small share of a core, however many there are. Until the next time, a view
has the same channels, as they are by then.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from megaphone.core.listing import Heaviest, weight_by
from megaphone.core.ports import Counts, Drains, Pipes, Store, Surveyed
from megaphone.errors import BadRequest
from megaphone.model import AgentInfo, NodeView, WatchedChannel

SHORTEST_INTERVAL_S = 0.1
LONGEST_INTERVAL_S = 3_600.0
DEFAULT_INTERVAL_S = 1.0
MOST_CHANNELS = 1_000
DEFAULT_CHANNELS = 50
SORTS = ("depth", "unsent", "bytes", "waiting", "age", "rate")
DEFAULT_SORT = "depth"
NOTABLE = ("messages_lost", "messages_unroutable", "writes_timed_out", "reads_cut_off")
"""The counts of what an operator should look at."""
SURVEY_SHARE = 0.01
"""The largest share of a core for looking through all channels."""
PARTS = 64
RENDERED_AT_ONCE = 200
"""How many channels of a view are put together before other tasks get a turn."""


class Asked(NamedTuple):
    """What a watcher asks for."""

    interval_s: float
    limit: int
    sort: str


def asked(interval_s: float | None, limit: int | None, sort: str | None) -> Asked:
    """Return what a watcher asks for; None stands for the default. Raises: BadRequest."""
    interval_s = DEFAULT_INTERVAL_S if interval_s is None else interval_s
    if not SHORTEST_INTERVAL_S <= interval_s <= LONGEST_INTERVAL_S:
        shortest, longest = round(SHORTEST_INTERVAL_S * 1000), round(LONGEST_INTERVAL_S * 1000)
        raise BadRequest(f"the interval must be {shortest} to {longest} ms")
    limit = DEFAULT_CHANNELS if limit is None else limit
    if limit > MOST_CHANNELS:
        raise BadRequest(f"at most {MOST_CHANNELS} channels can be watched, not {limit}")
    if sort is not None and sort not in SORTS:
        raise BadRequest(f"channels can be sorted by {', '.join(SORTS)}")
    return Asked(interval_s, limit, sort or DEFAULT_SORT)


class Watching:
    """All watchers of a node."""

    def __init__(
        self,
        *,
        store: Store,
        pipes: Pipes,
        drains: Drains,
        counts: Counts,
        list_agents: Callable[[], Awaitable[Sequence[AgentInfo]]],
    ) -> None:
        self.store = store
        self.pipes = pipes
        self.drains = drains
        self.counts = counts
        self.list_agents = list_agents
        self._series: dict[Asked, Series] = {}

    async def watch(self, what: Asked) -> AsyncGenerator[NodeView, None]:
        """Yield a view at each tick, the first one soon, until the caller closes the generator.

        A caller who is slower than the ticks gets the next view after its call, and misses others.
        """
        series = self._series.get(what)
        if series is None:
            series = self._series[what] = Series(self, what)
        series.watchers += 1
        try:
            while True:
                yield await asyncio.shield(series.next)
        finally:
            series.watchers -= 1
            if not series.watchers:
                series.stop()
                del self._series[what]


class Series:
    """The views for those watchers who ask for the same."""

    def __init__(self, watching: Watching, what: Asked) -> None:
        self._watching = watching
        self._what = what
        self.watchers = 0
        self._loop = asyncio.get_running_loop()
        self.next: asyncio.Future[NodeView] = self._loop.create_future()
        """The view of the next tick."""
        self._counts = watching.counts.counts()
        """The counts of the last view."""
        self._first: Sequence[Surveyed] = []
        """The first channels, at the last survey."""
        self._next_survey = self._surveyed = self._loop.time()
        """When to look through all channels again, and when that was done last."""
        self._ends: list[dict[bytes, int]] = [{} for _ in range(PARTS)]
        """By channel id: how many events the channel had accepted at the last survey, if channels
        are sorted by that. In parts, because to fill or to free one large dictionary would hold the
        event loop."""
        self._before: dict[bytes, tuple[int, float]] = {}
        """By channel id: how many events the channel had accepted when, for its next rate."""
        self._task = self._loop.create_task(self._run())

    def stop(self) -> None:
        self._task.cancel()
        self.next.cancel()

    def _resolve(self) -> "asyncio.Future[NodeView]":
        """Return the future of this view, and let the watchers wait for the next one."""
        present, self.next = self.next, self._loop.create_future()
        return present

    async def _run(self) -> None:
        try:
            await self._make_views()
        finally:
            while self._ends:
                self._ends.pop()
                await asyncio.sleep(0)

    async def _make_views(self) -> None:
        while True:
            due = self._loop.time() + self._what.interval_s
            try:
                view = await self._view()
            except Exception as error:  # of any kind, or its watchers would wait for ever
                failed = self._resolve()
                failed.set_exception(error)
                failed.exception()  # which counts as read, even if nobody waits for this view
            else:
                self._resolve().set_result(view)
            await asyncio.sleep(max(0.0, due - self._loop.time()))

    async def _view(self) -> NodeView:
        watching = self._watching
        channels = await self._channels()
        agents = await watching.list_agents()
        before, self._counts = self._counts, watching.counts.counts()
        notable = {name: self._counts[name] - before[name] for name in NOTABLE}
        return NodeView(
            at=datetime.now(UTC),
            counts=self._counts,
            levels=watching.counts.levels(),
            notable={name: count for name, count in notable.items() if count},
            agents=agents,
            pipes=watching.pipes.described(),
            drain=watching.drains.progress,
            channels=channels,
        )

    async def _channels(self) -> list[WatchedChannel]:
        """Return the first channels, by what they are sorted by."""
        store = self._watching.store
        now = self._loop.time()
        if now >= self._next_survey:
            await self._survey(now)
        self._first = await store.look_again(self._first)
        watched: list[WatchedChannel] = []
        for one in self._first:
            watched.append(self._watched(one, now))
            if len(watched) % RENDERED_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._before = {one.channel_id: (one.accepted, now) for one in self._first}
        return sorted(watched, key=self._rank, reverse=True)

    async def _survey(self, now: float) -> None:
        """Find the first channels. Of those that weigh the same, the older ones come first, if the
        store yields them so."""
        by_rate = self._what.sort == "rate"
        ends: list[dict[bytes, int]] = [{} for _ in range(PARTS)]
        first = Heaviest(self._what.limit)
        used_s, began_s = 0.0, time.thread_time()
        async for some in self._watching.store.survey(with_size=self._what.sort == "bytes"):
            first.add(some, self._weight)
            for one in some if by_rate else ():
                ends[part_of(one)][one.channel_id] = one.accepted
            used_s += time.thread_time() - began_s
            await asyncio.sleep(0)
            began_s = time.thread_time()
        self._first = first.members()
        for one in self._first if by_rate else ():
            end = self._ends[part_of(one)].get(one.channel_id)
            if end is not None:
                self._before.setdefault(one.channel_id, (end, self._surveyed))
        for number, part in enumerate(ends):
            self._ends[number] = part
            await asyncio.sleep(0)
        self._surveyed, self._next_survey = now, now + used_s / SURVEY_SHARE

    def _weight(self, one: Surveyed) -> float:
        """Return by what a channel is chosen: the largest comes first."""
        if self._what.sort == "rate":
            return one.accepted - self._ends[part_of(one)].get(one.channel_id, 0)
        return weight_by(self._what.sort, one)

    def _rank(self, one: WatchedChannel) -> float:
        """Return by what the channels of a view are sorted, as they are by then."""
        by = {
            "unsent": one.unsent,
            "bytes": one.bytes,
            "waiting": one.waiting_writers,
            "age": one.age_s,
            "rate": one.rate,
        }
        return by.get(self._what.sort, one.depth) or 0

    def _watched(self, one: Surveyed, now: float) -> WatchedChannel:
        oldest_us = one.oldest_us
        return WatchedChannel(
            one.consumer_address,
            depth=one.depth,
            unsent=one.unsent,
            bytes=one.size if self._what.sort == "bytes" else None,
            in_flight=one.in_flight,
            waiting_writers=one.waiting_writers,
            is_read=one.is_read,
            age_s=now - one.created_at,
            oldest_s=None if oldest_us is None else max(0.0, time.time() - oldest_us / 1_000_000),
            rate=self._rate(one, now),
            label=one.label or None,
            tenant=one.tenant_name,
            channel_id=one.channel_id,
        )

    def _rate(self, one: Surveyed, now: float) -> float | None:
        accepted, at = self._before.get(one.channel_id, (0, now))
        return None if at >= now else (one.accepted - accepted) / (now - at)


def part_of(one: Surveyed) -> int:
    return one.channel_id[0] % PARTS
