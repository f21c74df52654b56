"""Takes events from a lease, and waits for them, which a lease itself never does."""

import asyncio

from megaphone.core.log import Batch
from megaphone.core.ports import Lease


async def taken(lease: Lease, limit: int, max_bytes: int, until: float) -> Batch | None:
    """Return the next events. Waits for them until the clock of the event loop reaches `until`.

    Returns None then, and when the lease is over.
    """
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    lease.on_ready = ready.set
    timer = loop.call_at(until, ready.set)
    try:
        while (batch := lease.take(limit, max_bytes, loop.time())) is None:
            if lease.is_over or loop.time() >= until:
                return None
            await ready.wait()
            ready.clear()
        return batch
    finally:
        timer.cancel()


def release(lease: Lease, *, clean: bool) -> None:
    """End a read now."""
    lease.release(clean=clean, now=asyncio.get_running_loop().time())
