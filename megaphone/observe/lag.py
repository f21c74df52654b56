"""Measures how late the event loop is: the time that every call waits while others compute."""

import asyncio
from time import monotonic
from typing import Final, final

from megaphone.core.histogram import Histogram

INTERVAL_S: Final = 0.5


@final
class LoopLag:
    """How much too late a timer of `INTERVAL_S` was called."""

    def __init__(self) -> None:
        self.seconds = Histogram()
        self.last_s = 0.0
        """The lag at the last look."""

    async def measure(self) -> None:
        """Look again and again, for ever."""
        # Not the clock of the loop: that of uvloop counts in milliseconds, and may be late itself.
        while True:
            due = monotonic() + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)
            self.last_s = max(0.0, monotonic() - due)
            self.seconds.add(self.last_s)
