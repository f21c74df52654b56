"""Reads of many channels, up to 100 of them over one connection.

Channels that are asked in the same way, and have the same agent, share a connection. A channel
whose read is done is read again with others that are due at the same time. If the broker is older
than such reads, each channel has a read of its own.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from megaphone_client.errors import MegaphoneError
from megaphone_client.reading import Pump, Silence, Sink, patiently
from megaphone_client.transport import MOST_CHANNELS, NotOffered, Part, Transport, agent_of

TOGETHER_S: Final = 0.02
"""Reads that end within this time begin again together."""

Ended = Callable[[MegaphoneError | None], None]


class Together:
    """The reads of many channels into one sink."""

    def __init__(
        self, transport: Transport, sink: Sink, pumps: Sequence[Pump], ended: Ended
    ) -> None:
        self._transport = transport
        self._sink = sink
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._due = dict.fromkeys(pumps, 0.0)
        """When to read each channel that is not being read."""
        self._is_due = asyncio.Event()

    async def run(self) -> None:
        """Read until each channel has ended for good."""
        reads: set[asyncio.Task[None]] = set()
        try:
            while self._due or reads:
                for group in self._groups():
                    reads.add(self._loop.create_task(self._read(group)))
                await self._wait_for(reads)
                for read in [one for one in reads if one.done()]:
                    reads.discard(read)
                    read.result()
        finally:
            for read in reads:
                read.cancel()
            if reads:
                await asyncio.wait(reads)

    def _groups(self) -> list[list[Pump]]:
        """Return the channels that are due, by connection."""
        now = self._loop.time()
        if not self._due or min(self._due.values()) > now:
            return []
        until = now + TOGETHER_S
        groups: dict[tuple[str, bool], list[Pump]] = {}
        for pump in [pump for pump, at in self._due.items() if at <= until]:
            del self._due[pump]
            ask = pump.state.ask()
            groups.setdefault((agent_of(ask.consumer), ask.takes_over), []).append(pump)
        return [
            group[at : at + MOST_CHANNELS]
            for group in groups.values()
            for at in range(0, len(group), MOST_CHANNELS)
        ]

    async def _wait_for(self, reads: set[asyncio.Task[None]]) -> None:
        """Wait until a channel is due, or a read has ended."""
        self._is_due.clear()
        due = self._loop.create_task(self._is_due.wait())
        timeout_s = None
        if self._due:
            timeout_s = max(0.0, min(self._due.values()) - self._loop.time())
        try:
            await asyncio.wait(
                {due, *reads}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            due.cancel()

    # -- One connection

    async def _read(self, pumps: Sequence[Pump]) -> None:
        """Read some channels by one request, until the read of each is done."""
        reading = dict(enumerate(pumps))
        connection = self._transport.connection
        error: MegaphoneError | None = None
        try:
            await self._read_parts(reading)
        except NotOffered:
            await self._read_apart(list(reading.values()))
            return
        except MegaphoneError as failure:
            error = failure
            if isinstance(failure, Silence):
                self._transport.distrust(connection)
        waits_s = [self._done(pump, error) for pump in reading.values()]
        # All are read again at the same time, so that they share a connection again.
        at = self._loop.time() + max(waits_s, default=0.0)
        for pump in reading.values():
            if pump in self._due:
                self._due[pump] = at
        self._is_due.set()

    async def _read_parts(self, reading: dict[int, Pump]) -> None:
        """Read until all is done. Each channel whose read is done leaves `reading`."""
        silence_s = reading[0].state.silence_s
        asks = [pump.ask() for pump in reading.values()]
        read = await patiently(self._transport.read_many(asks), silence_s)
        try:
            while reading:
                parts = await patiently(read.next(), silence_s)
                if parts is None:
                    return
                for part in parts:
                    self._take(reading, part)
                if not parts:  # a heartbeat
                    for pump in reading.values():
                        pump.state.alive()
                if self._sink.is_full:
                    await self._sink.room()
        finally:
            read.close()

    def _take(self, reading: dict[int, Pump], part: Part) -> None:
        pump = reading.get(part.channel)
        if pump is None:
            return
        if part.has_begun:
            pump.opened(part.recovered, part.position)
            pump.state.alive()
        if part.events:
            pump.take(part.events)
        if part.is_done:
            del reading[part.channel]
            self._done(pump, part.error)
            self._is_due.set()

    def _done(self, pump: Pump, error: MegaphoneError | None) -> float:
        """Note the end of the read of a channel. Returns: how long to wait, if it is read again."""
        wait_s = pump.ended() if error is None else pump.wait_s(error)
        if wait_s is None:
            self._ended(error)
            return 0.0
        # A moment later, because other channels may be done then too.
        self._due[pump] = self._loop.time() + max(wait_s, TOGETHER_S)
        return wait_s

    async def _read_apart(self, pumps: Sequence[Pump]) -> None:
        """Give each channel a read of its own."""

        async def read(pump: Pump) -> None:
            self._ended(await pump.run())

        try:
            async with asyncio.TaskGroup() as group:
                for pump in pumps:
                    group.create_task(read(pump))
        except ExceptionGroup as errors:  # of a function of the app, such as that for headers
            raise errors.exceptions[0] from None
