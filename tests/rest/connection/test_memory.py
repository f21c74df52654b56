"""A closed connection is freed at once. An idle process collects no garbage, so what refers to
itself would keep the bodies of its requests until the next calls come."""

import gc
from collections.abc import Awaitable, Callable, Iterator

import pytest

from megaphone.app import App
from megaphone.rest.connection.guest import Guest
from megaphone.rest.connection.protocol import Connection
from tests.support.connections import answer_of, connected
from tests.support.raw_http import JSON, request_of
from tests.support.scenes import UNKNOWN_ADDRESS, eventually

PART = 100_000


Freed = Callable[[], Awaitable[bool]]


@pytest.fixture
def all_are_freed() -> Iterator[Freed]:
    """Whether all connections of this test are freed. An earlier test that failed may keep its
    own."""
    gc.collect()
    gc.disable()
    older = {id(one) for one in connections()}

    async def all_are_freed() -> bool:
        return not [one for one in connections() if id(one) not in older]

    yield all_are_freed
    gc.enable()


def connections() -> Iterator[object]:
    return (one for one in gc.get_objects() if isinstance(one, (Connection, Guest)))


async def test_after_a_refused_request(app: App, all_are_freed: Freed) -> None:
    async with connected(app) as [connection]:
        head, _ = await answer_of(
            connection, request_of("POST", f"/write/{UNKNOWN_ADDRESS}/s", b"1", JSON)
        )
        assert head.status == 404
    await eventually(all_are_freed)


@pytest.mark.settings(max_body_bytes=2 * PART)
async def test_after_a_body_that_is_refused_before_it_has_arrived(
    app: App, all_are_freed: Freed
) -> None:
    request = request_of("POST", f"/write/{UNKNOWN_ADDRESS}/s", bytes(3 * PART), JSON)
    async with connected(app) as [connection]:
        head, _ = await answer_of(connection, request[:-PART])
        assert head.status == 413
    await eventually(all_are_freed)
