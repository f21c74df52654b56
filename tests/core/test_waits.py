"""The waits of one request are the time in which any of its writers waits."""

import asyncio

from megaphone.core.waits import Waits, current, measure


def test_waits_that_overlap_count_once() -> None:
    waits = Waits()
    waits.begin(1.0)
    waits.begin(2.0)
    waits.end(3.0)
    waits.end(5.0)
    waits.begin(10.0)
    waits.end(10.5)
    assert waits.seconds == 4.5


async def test_the_tasks_of_a_request_share_its_waits_and_others_do_not() -> None:
    async def waits_of_request() -> tuple[Waits, Waits | None]:
        return measure(), await asyncio.create_task(waits_of_task())

    async def waits_of_task() -> Waits | None:
        return current()

    (one, of_its_task), (other, _) = await asyncio.gather(
        asyncio.create_task(waits_of_request()), asyncio.create_task(waits_of_request())
    )
    assert one is of_its_task
    assert one is not other
    assert current() is None
