"""Logs the channels of this node in which something does not go on: writers who wait for a place,
and readers who leave their events.

A line has the short id of the channel, never its address, and says no more than once a minute the
same of a channel. If very many channels are stuck, a few lines stand for all of them.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Final

from megaphone.core.blocked import Blocked
from megaphone.core.reader import Reader
from megaphone.model import short_id

log = logging.getLogger(__name__)

STUCK_S: Final = 5.0
"""How long a writer must wait, or a reader leave its events, before a line says so."""
CHECK_S: Final = 5.0
"""How often the node looks."""
AGAIN_S: Final = 60.0
"""The shortest time between two lines that say the same of a channel."""
MOST_LINES: Final = 20
"""How many lines a look has at most. One more says how many channels have none."""
LOOKED_AT_ONCE: Final = 1_000
"""At how many channels or readers a look looks before other tasks get a turn."""

BLOCKED: Final = "writers wait for a place in a channel"
LEFT: Final = "a reader leaves the events of its channel"
CUT_OFF: Final = "a read was broken, because its client took nothing"


class Lookout:
    """Looks at the writers that wait and the reads that are open. Belongs to one event loop."""

    def __init__(
        self,
        blocked: Callable[[float], Iterable[Blocked]],
        readers: Callable[[], Collection[Reader]],
    ) -> None:
        """`blocked` returns the channels whose writers wait since a time or longer, and `readers`
        the open reads."""
        self._blocked = blocked
        self._readers = readers
        self._leaving: dict[Reader, float | None] = {}
        """The readers that left events at the last look, and when each had taken events last."""
        self._said: dict[tuple[str, bytes], float] = {}
        """By message and channel id: when the last such line was logged."""
        self._lines = 0
        self._unsaid = 0

    async def run(self) -> None:
        """Look now and then. Never returns."""
        while True:
            await asyncio.sleep(CHECK_S)
            await self.look(asyncio.get_running_loop().time())

    async def look(self, now: float) -> None:
        """Log what does not go on."""
        self._lines = 0
        self._said = {key: at for key, at in self._said.items() if now - at < AGAIN_S}
        for number, one in enumerate(self._blocked(now - STUCK_S), 1):
            self._say(
                BLOCKED,
                one.channel_id,
                now,
                agent=one.agent,
                writers=one.writers,
                seconds=round(now - one.since, 1),
            )
            if number % LOOKED_AT_ONCE == 0:
                await asyncio.sleep(0)
        await self._look_at_readers(now)
        if self._unsaid:  # also since the look before
            log.warning("more channels are stuck", extra={"channels": self._unsaid})
            self._unsaid = 0

    async def _look_at_readers(self, now: float) -> None:
        """Log the readers that left events at the last look, and have taken none since."""
        before, self._leaving = self._leaving, {}
        for number, reader in enumerate(tuple(self._readers()), 1):
            if reader.backlog:
                self._leaving[reader] = reader.taken_at
                if reader in before and before[reader] == reader.taken_at:
                    self._say(
                        LEFT,
                        reader.channel_id,
                        now,
                        agent=reader.agent,
                        events=reader.backlog,
                        caller=reader.caller.name,
                    )
            if number % LOOKED_AT_ONCE == 0:
                await asyncio.sleep(0)

    def cut_off(self, reader: Reader) -> None:
        """Log that a read was broken, because its client had stalled."""
        now = asyncio.get_running_loop().time()
        self._say(CUT_OFF, reader.channel_id, now, agent=reader.agent, caller=reader.caller.name)

    def _say(self, message: str, channel_id: bytes, now: float, **fields: object) -> None:
        key = message, channel_id
        if now - self._said.get(key, -AGAIN_S) < AGAIN_S:
            return
        if self._lines >= MOST_LINES:
            self._unsaid += 1
            return
        self._lines += 1
        self._said[key] = now
        said = {name: value for name, value in fields.items() if value not in (None, "")}
        log.warning(message, extra={"channel": short_id(channel_id), **said})
