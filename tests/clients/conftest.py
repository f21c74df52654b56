"""The drivers of all tests: each kind is started once, when a test first asks for it."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from _pytest.mark.structures import ParameterSet

from tests.clients.driver import Driver, driver_of
from tests.clients.drivers.kinds import KINDS, Kind

Drivers = Callable[[Kind], Awaitable[Driver]]


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def drivers() -> AsyncIterator[Drivers]:
    """Give a driver of a kind that other tests use too."""
    async with AsyncExitStack() as stack:
        started: dict[Kind, Driver] = {}

        async def driver(kind: Kind) -> Driver:
            if kind not in started or started[kind].process.returncode is not None:
                started[kind] = await stack.enter_async_context(driver_of(kind))
            return started[kind]

        yield driver


def params_of(kinds: Iterable[Kind]) -> list[ParameterSet]:
    """Return kinds as parameters. The tests of a kind run in one process, with one driver."""
    return [
        pytest.param(kind, marks=pytest.mark.group(f"clients {kind}"), id=kind.name)
        for kind in kinds
    ]


@pytest.fixture(params=params_of(KINDS))
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each client library with each protocol."""
    return chosen_kind(request)


def chosen_kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    if chosen.lacks is not None:
        pytest.skip(chosen.lacks)
    return chosen


@pytest_asyncio.fixture(loop_scope="session")
async def driver(kind: Kind, drivers: Drivers) -> Driver:
    return await drivers(kind)
