"""Seeded runs that mix faults."""

import os

import pytest

from tests.clients.conftest import Drivers
from tests.clients.drivers.kinds import BUN, DENO, HTTP, KINDS, PAGE, SYNC_GRPC, WORKER, Kind
from tests.clients.runs import Scenario, run_all, summary
from tests.support.settings import IS_LONG

pytestmark = pytest.mark.asyncio(loop_scope="session")

RUNS = 80 if IS_LONG else 4
AT_ONCE = 4
EVERY = (*KINDS, SYNC_GRPC, PAGE, WORKER, DENO, BUN) if IS_LONG else KINDS
SEED = os.environ.get("CLIENTS_SEED")
"""Such as `http-17`: do only this run."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.group(f"clients {kind}"), id=kind.name)
        for kind in EVERY
    ],
)
async def test_seeded_runs_are_as_promised(drivers: Drivers, kind: Kind) -> None:
    if kind.lacks is not None:
        pytest.skip(kind.lacks)
    scenarios = [Scenario.draw(kind, seed) for seed in range(RUNS)]
    if SEED is not None:
        name, _, seed = SEED.rpartition("-")
        scenarios = [Scenario.draw(kind, int(seed))] if name == kind.name else []
    writing = await drivers(kind if kind.may_write else HTTP)
    finished = await run_all(await drivers(kind), writing, scenarios, at_once=AT_ONCE)
    print(f"\n{kind}: {summary(finished)}")
    wrong = [one.explanation() for one in finished if one.faults]
    assert not wrong, "\n".join(wrong[:3])
