"""How fast a store is: round trips, and writes to channels that are removed again."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

from megaphone.errors import MegaphoneError
from megaphone.model import Event
from megaphone.store.redis.cluster_link import AnyLink, link_of
from megaphone.store.redis.confirmation import Confirmation
from megaphone.store.redis.encoding import encoded
from megaphone.store.redis.errors import ReplyError
from megaphone.store.redis.functions import name_of, source
from megaphone.store.redis.keys import Names
from megaphone.store.redis.link import Greeted, Link
from megaphone.store.redis.requirements import Facts, examine, together
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
async def looking_at(url: StoreUrl, prefix: str) -> AsyncIterator[tuple[AnyLink, Facts]]:
    """Connect to a store, and see whether it will do.

    Raises: UnusableStore; StoreUnavailable.
    """
    found: dict[object, Facts] = {}
    """By the places of the masters."""

    async def greet(new: Greeted) -> None:
        found[new.place] = await examine(new.calls, new.server, prefix)

    link = link_of(url, name="megaphone-check", greet=greet)
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
        yield link, together(list(found.values()))


async def measure(link: AnyLink, prefix: str, wait_replicas: int) -> Speed:
    """Measure a store. What this writes is removed again, but for the library of functions, and a
    key that Redis removes within a minute.

    Raises: StoreUnavailable; LimitExceeded; ReplyError.
    """
    for master in link.masters():
        with suppress(ReplyError):  # it is there: nodes may use it, so it stays as it is
            await master.call("FUNCTION", "LOAD", source())
    names = Names(f"{prefix}:check-{secrets.token_hex(4)}")
    confirmation = Confirmation(names, wait_replicas)
    [master, *_] = link.masters()
    round_trips = sorted([await _timed(_ping(master)) for _ in range(ROUND_TRIPS)])
    channels = [names.channel(secrets.token_bytes(16)) for _ in range(CHANNELS)]
    try:
        for keys in channels:
            await link.call(*_function("create", keys, "check.check", EVENTS, TTL_MS, 0))
        first = channels[0]
        alone = sorted(
            [await _timed(_append(link, confirmation, first)) for _ in range(ROUND_TRIPS)]
        )
        begun = time.perf_counter()
        await asyncio.gather(*(_write(link, confirmation, channels) for _ in range(AT_ONCE)))
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


async def _write(
    link: AnyLink, confirmation: Confirmation, channels: Sequence[Sequence[str]]
) -> None:
    for number in range(EVENTS // AT_ONCE):
        await _append(link, confirmation, channels[number % CHANNELS])


async def _timed(call: Coroutine[Any, Any, None]) -> float:
    """Return how many milliseconds a call took."""
    begun = time.perf_counter()
    await call
    return (time.perf_counter() - begun) * 1000


async def _ping(master: Link) -> None:
    await master.call("PING")


async def _append(link: AnyLink, confirmation: Confirmation, keys: Sequence[str]) -> None:
    """Append an event, and wait until enough replicas have it."""
    event = Event(secrets.token_hex(8), "s", 0, b'"' + b"x" * (BODY_BYTES - 2) + b'"')
    command = _function("append", keys, 0, "check", event.id, "", encoded(event))
    stored = link.call(*command)
    if confirmation.is_needed:
        await asyncio.shield(confirmation.ask(link.master_of(keys[0])))
    await stored


def _function(
    name: str, keys: Sequence[str], *arguments: str | bytes | int
) -> tuple[str | bytes | int, ...]:
    return ("FCALL", name_of(name), len(keys), *keys, "0", *arguments)


def _median(times: list[float]) -> float:
    return times[len(times) // 2]
