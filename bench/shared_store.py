"""What channels of a shared store take of Redis: bytes, and microseconds of its one core.

`python -m bench.shared_store [CHANNELS]` starts Debian's Redis, makes channels through the store of
a node, and prints a row for each kind of thing: how many bytes one more of it takes, and how much
of a core the server needs for each of its calls. The figures in docs/store.md are from it.
"""

import asyncio
import secrets
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from megaphone.core.addresses import ConsumerAddress
from megaphone.core.ports import Append
from megaphone.model import Event, ReadOptions
from megaphone.store.redis.store import RedisStore
from tests.support.redis_server import RedisServer, redis_server
from tests.support.settings import limits

AT_ONCE = 100
BATCH = 1_000
SOME = 10_000
"""How many channels get events, leases and keys."""
BODY = b'"' + b"x" * 198 + b'"'
PREFIX = "megaphone"


class Meter:
    """Prints what a number of calls took of the server."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    async def measure(
        self,
        name: str,
        things: Iterable[Any],
        call: Callable[[Any], Awaitable[Any]],
        at_once: int = AT_ONCE,
    ) -> list[Any]:
        everything = list(things)
        before = await self._used()
        worked = await self._work()
        answers: list[Any] = []
        for start in range(0, len(everything), at_once):
            part = everything[start : start + at_once]
            answers += await asyncio.gather(*(call(one) for one in part))
        work = await self._work() - worked
        taken = await self._used() - before
        count = len(everything)
        print(f"{name:<44} {count:>7} {taken / count:>8.0f} bytes {work / count:>7.1f} us")
        return answers

    async def _used(self) -> float:
        memory = await asyncio.to_thread(self._server.info, "memory")
        return float(memory["used_memory"])

    async def _work(self) -> float:
        """Return how many microseconds of a core the server has used."""
        cpu = await asyncio.to_thread(self._server.info, "cpu")
        return 1e6 * (float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"]))


def event(key: str | None = None) -> Callable[[ConsumerAddress], Append]:
    return lambda one: Append(
        one.channel_id, Event(secrets.token_hex(8), "s", 1_700_000_000_000_000, BODY), key
    )


async def run(channels: int) -> None:
    with redis_server("redis") as server:
        store = RedisStore(
            server.url,
            prefix=PREFIX,
            limits=limits(ttl_s=3600),
            max_channels=channels,
            write_timeout_s=1,
            on_removed=lambda *_: None,
        )
        await store.start()
        meter = Meter(server)

        async def append(write: Append) -> None:
            [result] = await store.append([write], wait=False)
            if isinstance(result, Exception):
                raise result

        async def open_lease(one: ConsumerAddress) -> Any:
            return await store.open(one.channel_id, str(one), ReadOptions())

        made = [ConsumerAddress.mint("node-1-3f9a1c") for _ in range(channels)]
        await meter.measure("an idle channel", made, lambda c: store.create(c.channel_id, str(c)))
        print(f"{channels} idle channels, in all: {int(server.info('memory')['used_memory']):,}")
        some = made[:SOME]
        await meter.measure("its first event of 200 bytes", map(event(), some), append)
        for which in ("second", "third"):
            await meter.measure(f"its {which} event", map(event(), some), append)
        keyed = [event(secrets.token_hex(16))(one) for one in some]
        await meter.measure("an event with a key of 32 characters", keyed, append)
        await meter.measure("the same again", keyed, append)
        leases = await meter.measure("a read that takes four events", some, open_lease)

        async def end(lease: Any) -> None:
            lease.release(clean=True, now=asyncio.get_running_loop().time())
            await store.link.call("PING")  # is answered after it

        await meter.measure("the end of a read", leases, end)
        others = made[SOME : 2 * SOME]
        leases = await meter.measure("an idle read", others, open_lease)
        await meter.measure("an event for a reader that waits", map(event(), others), append)

        async def append_to_all(channels: Sequence[ConsumerAddress]) -> None:
            new = event()(channels[0]).event
            results = await store.append_to_all([one.channel_id for one in channels], [new])
            assert all(one == 1 for one in results)

        batches = [made[start : start + BATCH] for start in range(0, SOME, BATCH)]
        await meter.measure("the same event for 1,000 channels", batches, append_to_all, at_once=1)
        await store.aclose()


if __name__ == "__main__":
    asyncio.run(run(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
