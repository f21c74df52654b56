"""Alarms wake each sleeper once, at its time, with one timer for all."""

import asyncio
import random
import time
import tracemalloc
import weakref
from collections.abc import Callable
from functools import partial

import pytest

from megaphone.core.alarms import TICKS_PER_S, Alarms

pytestmark = pytest.mark.looptime
TICK_S = 1 / TICKS_PER_S


class Sleeper:
    def __init__(self, then: Callable[[], object] | None = None) -> None:
        self.woken_at: list[float] = []
        self._then = then

    def on_alarm(self) -> None:
        self.woken_at.append(asyncio.get_running_loop().time())
        if self._then is not None:
            self._then()


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_each_sleeper_is_woken_once_within_a_tick() -> None:
    alarms, chance = Alarms(), random.Random(1)
    dues = [now() + chance.uniform(0.001, 30) for _ in range(500)]
    sleepers = [Sleeper() for _ in dues]
    for due, sleeper in zip(dues, sleepers, strict=True):
        alarms.set(due, sleeper)
    await asyncio.sleep(31)
    for due, sleeper in zip(dues, sleepers, strict=True):
        [woken_at] = sleeper.woken_at
        assert -0.001 <= woken_at - due <= TICK_S + 0.001


async def test_those_of_one_time_are_woken_in_the_order_of_their_alarms() -> None:
    alarms, woken = Alarms(), list[int]()
    due = now() + 1
    for number in range(100):
        alarms.set(due, Sleeper(partial(woken.append, number)))
    await asyncio.sleep(2)
    assert woken == list(range(100))


async def test_an_alarm_that_was_cancelled_does_not_ring() -> None:
    alarms, kept, cancelled = Alarms(), Sleeper(), Sleeper()
    alarms.set(now() + 1, kept)
    alarms.cancel(alarms.set(now() + 1, cancelled), cancelled)
    alarms.cancel(alarms.set(now() + 2, cancelled), cancelled)
    await asyncio.sleep(3)
    assert len(kept.woken_at) == 1
    assert cancelled.woken_at == []


async def test_an_earlier_alarm_does_not_wait_for_a_later_one() -> None:
    alarms, early, late = Alarms(), Sleeper(), Sleeper()
    alarms.set(now() + 20, late)
    alarms.set(now() + 1, early)
    await asyncio.sleep(2)
    assert len(early.woken_at) == 1
    await asyncio.sleep(20)
    assert len(late.woken_at) == 1


async def test_one_who_wakes_may_set_the_next_alarm() -> None:
    alarms = Alarms()
    again = Sleeper(lambda: alarms.set(now() + 5, again))
    soon = Sleeper()
    alarms.set(now() + 1, again)
    alarms.set(now() + 2, soon)
    await asyncio.sleep(12)
    assert [round(at - again.woken_at[0]) for at in again.woken_at] == [0, 5, 10]
    assert round(soon.woken_at[0] - again.woken_at[0]) == 1


@pytest.mark.looptime(False)
async def test_an_event_loop_that_is_late_wakes_all_whose_time_has_come() -> None:
    alarms, sleepers = Alarms(), [Sleeper() for _ in range(3)]
    for number, sleeper in enumerate(sleepers, 1):
        alarms.set(now() + number * 2 * TICK_S, sleeper)
    time.sleep(8 * TICK_S)  # noqa: ASYNC251 - holds the event loop up
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [len(one.woken_at) for one in sleepers] == [1, 1, 1]


async def test_sleepers_that_cancelled_are_not_kept() -> None:
    alarms, due = Alarms(), now() + 3_600
    sleeper = Sleeper()
    gone = weakref.ref(sleeper)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(20_000):
        alarms.cancel(alarms.set(due + number, sleeper), sleeper)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del sleeper
    assert gone() is None
    assert after - before < 50_000
