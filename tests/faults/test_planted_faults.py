"""The judge finds every fault that is planted in a run in which channels move.

Each run has real nodes, real clients, two drains, and one planted fault: in the nodes, or between a
node and a reader.
"""

import asyncio
from dataclasses import replace

import pytest

from tests.support.checker import Fault, Kind
from tests.support.move_runs import Finished, run
from tests.support.move_scenarios import Act, Scenario
from tests.support.planted import (
    Between,
    ChangesBodies,
    CountsTooMany,
    DeliversAgain,
    EndsInMidEvent,
    LosesInDrains,
    Plant,
    RenamesWhatComesAgain,
    SkipsAfterCursor,
    StoresTwice,
    TakesAndRefuses,
    WritesElsewhere,
    lose_one,
    swap_two,
)

pytestmark = pytest.mark.group("heavy load")  # one fixture makes all runs at once

PLANTED: dict[str, tuple[Plant, Fault]] = {
    "an event is lost": (Between(lose_one), Fault.LOST),
    "an event is lost in a drain": (LosesInDrains(), Fault.LOST),
    "a read that resumes passes over an event": (SkipsAfterCursor(), Fault.LOST),
    "a single write is stored twice under its key": (StoresTwice(0, 1), Fault.STORED_TWICE),
    "a batch is stored twice under its key": (StoresTwice(2), Fault.STORED_TWICE),
    "a published event is stored twice under its key": (StoresTwice(3), Fault.STORED_TWICE),
    "an event that comes again has another id": (RenamesWhatComesAgain(), Fault.STORED_TWICE),
    "two events are swapped": (Between(swap_two), Fault.OUT_OF_ORDER),
    "an event comes again to a plain reader, after a clean end": (
        DeliversAgain(Kind.PLAIN),
        Fault.REPEATED,
    ),
    "an event comes again to a reader that resumes after it": (
        DeliversAgain(Kind.RESUMING),
        Fault.REPEATED,
    ),
    "an event comes again that was acknowledged": (
        DeliversAgain(Kind.ACKNOWLEDGING),
        Fault.REPEATED,
    ),
    "an event is delivered that was refused": (TakesAndRefuses(), Fault.UNASKED),
    "an event is delivered in another channel": (WritesElsewhere(), Fault.FOREIGN),
    "a body is changed by one byte": (ChangesBodies(), Fault.CHANGED),
    "a read ends cleanly in the middle of an event": (EndsInMidEvent(), Fault.TORN),
    "events are counted as lost that were read": (CountsTooMany(), Fault.MISCOUNTED),
}
TRIES = 4
"""How many seeds the test tries until the fault has happened."""
AT_ONCE = 4
"""More runs at once would be so slow that nodes and clients give up on each other."""


def scenario(seed: int) -> Scenario:
    return replace(
        Scenario.draw(seed),
        is_slow=False,
        capacities=(50, 50, 50),
        events=12,
        largest_bytes=65_536,
        with_keys=(True,) * 4,
        acts=(Act.DRAIN, Act.DRAIN),
        write_timeout_s=0.3,
    )


async def run_with(plant: Plant) -> Finished:
    for seed in range(TRIES):
        finished = await run(scenario(seed), sabotage=plant.sabotage, tamper=plant.tamper)
        if plant.times:
            break
    return finished


async def run_each() -> dict[str, Finished]:
    places = asyncio.Semaphore(AT_ONCE)

    async def run_in_turn(plant: Plant) -> Finished:
        async with places:
            return await run_with(plant)

    runs = await asyncio.gather(*(run_in_turn(plant) for plant, _ in PLANTED.values()))
    return dict(zip(PLANTED, runs, strict=True))


@pytest.fixture(scope="module")
def runs() -> dict[str, Finished]:
    return asyncio.run(run_each())


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_seen(name: str, runs: dict[str, Finished]) -> None:
    plant, expected = PLANTED[name]
    assert plant.times, "the fault did not come about"
    assert runs[name].found()[expected], runs[name].explanation()
