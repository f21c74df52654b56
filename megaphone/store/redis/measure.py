"""How fast a store is: round trips, and writes to channels that are removed again."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from statistics import quantiles

from megaphone.errors import MegaphoneError
from megaphone.model import Event
from megaphone.store.redis.connection import Calls
from megaphone.store.redis.encoding import encoded
from megaphone.store.redis.errors import ReplyError
from megaphone.store.redis.functions import name_of, source
from megaphone.store.redis.keys import Names
from megaphone.store.redis.link import Link
from megaphone.store.redis.requirements import Facts, examine
from megaphone.store.redis.subscription import Subscription
from megaphone.store.redis.url import StoreUrl

ROUND_TRIPS = 200
CHANNELS = 64
EVENTS = 4_000
AT_ONCE = 200
"""How many writes are under way at a time."""
BODY_BYTES = 200
TTL_MS = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What was measured."""

    round_trip_ms: float
    """The median."""
    slow_round_trip_ms: float
    """99 of 100 were faster."""
    write_ms: float
    """The median of a write that comes alone, with what it waits for."""
    writes_per_s: float
    """Writes of `BODY_BYTES`, `AT_ONCE` at a time."""


@asynccontextmanager
async def looking_at(url: StoreUrl, prefix: str) -> AsyncIterator[tuple[Link, Facts]]:
    """Connect to a store, and see whether it will do.

    Raises: UnusableStore; StoreUnavailable.
    """
    found: list[Facts] = []

    async def greet(calls: Calls) -> None:
        assert link.server is not None
        found.append(await examine(calls, link.server, prefix))

    link = Link(url, name="megaphone-check", greet=greet)
    messages = Subscription(
        link,
        [f"{prefix}:check"],
        on_message=lambda _: None,
        on_subscribed=lambda: None,
        on_lost=lambda: None,
    )
    async with AsyncExitStack() as stack:
        await link.start()
        stack.push_async_callback(link.aclose)
        await messages.start()
        stack.push_async_callback(messages.aclose)
        yield link, found[-1]


async def measure(link: Link, prefix: str, wait_replicas: int) -> Speed:
    """Measure a store. What this writes is removed again, but for the library of functions.

    Raises: StoreUnavailable; LimitExceeded; ReplyError.
    """
    with suppress(ReplyError):  # it is there: nodes may use it, so it stays as it is
        await link.call("FUNCTION", "LOAD", source())
    names = Names(f"{prefix}:check-{secrets.token_hex(4)}")
    round_trips = sorted([await _timed(link, ("PING",), 0) for _ in range(ROUND_TRIPS)])
    channels = [names.channel(secrets.token_bytes(16)) for _ in range(CHANNELS)]
    try:
        for keys in channels:
            await link.call(*_function("create", keys, "check.check", EVENTS, TTL_MS, 0))
        alone = sorted(
            [await _timed(link, _append(channels[0]), wait_replicas) for _ in range(ROUND_TRIPS)]
        )
        begun = time.perf_counter()
        await asyncio.gather(*(_write(link, channels, wait_replicas) for _ in range(AT_ONCE)))
        seconds = time.perf_counter() - begun
    finally:
        for keys in channels:
            with suppress(MegaphoneError):
                await link.call(*_function("remove", keys))
    return Speed(
        round_trip_ms=_median(round_trips),
        slow_round_trip_ms=quantiles(round_trips, n=100)[-1],
        write_ms=_median(alone),
        writes_per_s=EVENTS / seconds,
    )


async def _write(link: Link, channels: list[tuple[str, ...]], wait_replicas: int) -> None:
    for number in range(EVENTS // AT_ONCE):
        await _stored(link, _append(channels[number % CHANNELS]), wait_replicas)


async def _timed(link: Link, command: tuple[str | bytes | int, ...], wait_replicas: int) -> float:
    """Return how many milliseconds a call took."""
    begun = time.perf_counter()
    await _stored(link, command, wait_replicas)
    return (time.perf_counter() - begun) * 1000


async def _stored(link: Link, command: tuple[str | bytes | int, ...], wait_replicas: int) -> None:
    stored = link.call(*command)
    if wait_replicas:
        await link.call("WAIT", wait_replicas, 1_000)
    await stored


def _append(keys: tuple[str, ...]) -> tuple[str | bytes | int, ...]:
    event = Event(secrets.token_hex(8), "s", 0, b'"' + b"x" * (BODY_BYTES - 2) + b'"')
    return _function("append", keys, 0, "check", event.id, "", encoded(event))


def _function(
    name: str, keys: tuple[str, ...], *arguments: str | bytes | int
) -> tuple[str | bytes | int, ...]:
    return ("FCALL", name_of(name), len(keys), *keys, "0", *arguments)


def _median(times: list[float]) -> float:
    return times[len(times) // 2]
