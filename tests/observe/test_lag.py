"""The lag of the event loop is what others make it wait."""

import asyncio
import time

from megaphone.observe.lag import INTERVAL_S, LoopLag

BLOCKED_S = 0.3


async def test_a_loop_that_is_blocked_lags() -> None:
    lag = LoopLag()
    measuring = asyncio.create_task(lag.measure())
    await asyncio.sleep(0)
    time.sleep(INTERVAL_S + BLOCKED_S)  # noqa: ASYNC251, because nothing else may run
    async with asyncio.timeout(20):
        while not lag.last_s:  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.01)
    measuring.cancel()
    assert lag.last_s > BLOCKED_S * 0.9
    assert lag.seconds.total == lag.last_s
    assert sum(lag.seconds.counts) == 1
