"""A scenario: some work that several contestants do in turn. Here is what all scenarios share."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from bench.contestants import BEFORE, ORIGINAL, OURS, Contestant, Server
from bench.report import Figure, rate
from bench.rounds import Plan, Sample, alternate, in_thread

BROKERS = frozenset({OURS, BEFORE, ORIGINAL})

P = TypeVar("P")

Prepare = Callable[[Server, ExitStack], Callable[[float], Sample]]
"""Makes channels and opens connections, which the stack closes. Returns: the measurement."""


@asynccontextmanager
async def running(
    contestants: Sequence[Contestant],
    who: frozenset[str],
    prepare: Callable[[Server, ExitStack], P],
    settings: Mapping[str, object] = MappingProxyType({}),
) -> AsyncIterator[dict[str, P]]:
    """Start those who take part. Yields: for each, by its name, what `prepare` has made."""
    async with AsyncExitStack() as servers:
        # The connections are closed before the servers stop, so that nobody waits for them.
        with ExitStack() as connections:
            sides: dict[str, P] = {}
            for contestant in contestants:
                if contestant.name in who:
                    server = await servers.enter_async_context(contestant.start(**settings))
                    sides[contestant.name] = await asyncio.to_thread(prepare, server, connections)
            yield sides


@dataclass(frozen=True, slots=True)
class RateScenario:
    """A scenario whose figure is how much work is done in a second."""

    name: str
    what: str
    prepare: Prepare
    who: frozenset[str] = BROKERS
    """The names of the contestants that can do this work."""
    notes: Sequence[str] = ()

    async def measure(self, contestants: Sequence[Contestant], plan: Plan) -> list[Figure]:
        async with running(contestants, self.who, self.prepare) as sides:
            samples = await alternate(
                self.name, plan, {name: in_thread(side) for name, side in sides.items()}
            )
        return [rate(self.name, self.what, samples, self.notes)]
