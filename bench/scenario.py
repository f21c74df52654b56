"""A scenario: some work that several contestants do in turn. Here is what all scenarios share."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

from bench.contestants import BROKERS, Contestant
from bench.report import Figure, rate
from bench.rounds import Plan, Sample, alternate, in_thread
from bench.servers import Server

P = TypeVar("P")
S = TypeVar("S", bound=Server)


@asynccontextmanager
async def running(
    contestants: Sequence[Contestant],
    who: frozenset[str],
    kind: type,
    prepare: Callable[[S, ExitStack], P],
) -> AsyncIterator[dict[str, P]]:
    """Start those who take part. Yields: for each, by its name, what `prepare` has made.

    `kind` is the class of their servers, and may be abstract. `prepare` makes channels and opens
    connections, which the stack closes.
    """
    async with AsyncExitStack() as servers:
        # The connections are closed before the servers stop, so that nobody waits for them.
        with ExitStack() as connections:
            sides: dict[str, P] = {}
            for contestant in contestants:
                if contestant.name in who:
                    server = await servers.enter_async_context(contestant.start())
                    assert isinstance(server, kind)
                    side = await asyncio.to_thread(prepare, cast("S", server), connections)
                    sides[contestant.name] = side
            yield sides


@dataclass(frozen=True, slots=True)
class RateScenario(Generic[S]):
    """A scenario whose figure is how much work is done in a second."""

    name: str
    what: str
    kind: type
    prepare: Callable[[S, ExitStack], Callable[[float], Sample]]
    """Returns the measurement of a server."""
    who: frozenset[str] = BROKERS
    """The names of the contestants that can do this work."""
    notes: Sequence[str] = ()

    async def measure(self, contestants: Sequence[Contestant], plan: Plan) -> list[Figure]:
        async with running(contestants, self.who, self.kind, self.prepare) as sides:
            samples = await alternate(
                self.name, plan, {name: in_thread(side) for name, side in sides.items()}
            )
        return [rate(self.name, self.what, samples, self.notes)]
