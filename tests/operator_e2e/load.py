"""Clients of a cluster, while a scenario does something to it; and the judge of what they saw."""

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from itertools import cycle, islice, product
from pathlib import Path

from tests.operator_e2e.report import LINES
from tests.support.checker import Kind, Verdict
from tests.support.cluster_load import Channel, Clients, clients

KINDS = [
    (kind, protocol)
    for kind, protocol in product(Kind, ("ndjson", "grpc", "sse"))
    if (kind, protocol) != (Kind.ACKNOWLEDGING, "sse")  # nothing a browser can do
]
CHANNELS = 40
EVERY_S = 0.5
SETTLES_S = 2.0
"""How long clients write before a scenario begins, and after it has ended."""

ENDS_WITHIN_S = 40.0
"""How long readers may need for what is left when the writers have finished. The reads that are
open then may last for the 20 seconds that a read may take."""


class Load:
    """Channels of each kind, each with a writer and a reader."""

    def __init__(self, shared: Clients, channels: Sequence[Channel]) -> None:
        self.channels = channels
        self._shared = shared
        self._began = time.monotonic()
        self._took_s = 0.0
        self.gone = 0
        """How many channels nobody could read to the end."""

    def begin(self) -> None:
        """Note that the scenario begins now."""
        self._began = time.monotonic()

    def end(self) -> None:
        """Note that the scenario has ended now."""
        self._took_s = time.monotonic() - self._began

    def judge(
        self,
        what: str,
        *,
        dead: Collection[str] = (),
        is_orderly: bool = True,
    ) -> None:
        """Report what happened. `dead` are agents that ended with their node, and may lose events.

        If the scenario is orderly, every write must have been accepted. Raises: AssertionError, if
        an event was lost, out of order or stored twice.
        """
        alive = [channel for channel in self.channels if agent_of(channel) not in dead]
        verdicts = [channel.verdict() for channel in alive]
        LINES.append(f"{what}: {self._took_s:.1f} s; {told(verdicts)}; {self._met()}")
        print(LINES[-1])
        assert [str(one) for verdict in verdicts for one in verdict.anomalies] == []
        assert sum(lost(verdict) for verdict in verdicts) == 0, LINES[-1]
        assert self.gone <= len(self.channels) - len(alive), f"{self.gone} channels are gone"
        for channel in alive:
            taken = channel.verdict().taken
            assert taken > 0
            assert taken == len(channel.history.writes) or not is_orderly, LINES[-1]

    def _met(self) -> str:
        met = [f"{count} {what}" for what, count in sorted(self._shared.trouble.items())]
        return f"clients met {', '.join(met)}" if met else "clients met no error"


async def unfinished(reads: Sequence[asyncio.Task[None]]) -> int:
    """Wait for the last reads. Returns: how many did not end, because their channel is gone."""
    _, pending = await asyncio.wait(reads, timeout=ENDS_WITHIN_S)
    for read in pending:
        read.cancel()
    return len(pending)


def agent_of(channel: Channel) -> str:
    return channel.consumer.partition(".")[0]


def lost(verdict: Verdict) -> int:
    return verdict.taken - verdict.once - verdict.repeated


def told(verdicts: Sequence[Verdict]) -> str:
    taken = sum(one.taken for one in verdicts)
    repeated = sum(one.repeated for one in verdicts)
    gone = sum(lost(one) for one in verdicts)
    return f"{taken} events, {gone} lost, {repeated} read again"


@asynccontextmanager
async def load(
    url: str, grpc_target: str, count: int = CHANNELS, authority: Path | None = None
) -> AsyncIterator[Load]:
    """Write to channels and read them within this context, and finish both at its end. With the
    file of an authority, over TLS."""
    async with clients(url, grpc_target, authority) as shared:
        channels = [Channel(shared, *one) for one in islice(cycle(KINDS), count)]
        for channel in channels:
            await channel.create()
        over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            writes = [group.create_task(channel.write(EVERY_S, over)) for channel in channels]
            reads = [group.create_task(channel.read()) for channel in channels]
            await asyncio.sleep(SETTLES_S)
            one = Load(shared, channels)
            yield one
            one.end()
            await asyncio.sleep(SETTLES_S)
            over.set()
            await asyncio.wait(writes)
            shared.writing_is_over.set()
            one.gone = await unfinished(reads)
