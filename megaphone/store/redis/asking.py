"""Lets each open read ask the store now and then: messages may be lost without notice."""

import asyncio
from collections.abc import Mapping
from itertools import cycle

from megaphone.store.redis.lease import RemoteLease

ASK_EVERY_S = 20.0
"""How often a read asks, although nothing says that there is more for it. Reads that are over
sooner, as most are, cost nothing."""
PARTS = 100
"""The reads ask in so many parts, one after the other, so that not all ask in one turn."""


async def keep_asking(leases: Mapping[str, RemoteLease]) -> None:
    """Let each lease that has been here for `ASK_EVERY_S` ask, and again as often. Never returns.

    The keys are the handles of the leases, which are numbers.
    """
    former: list[set[str]] = [set() for _ in range(PARTS)]
    for part in cycle(range(PARTS)):
        await asyncio.sleep(ASK_EVERY_S / PARTS)
        here = {handle for handle in leases if int(handle) % PARTS == part}
        for handle in here & former[part]:
            leases[handle].ask()
        former[part] = here
