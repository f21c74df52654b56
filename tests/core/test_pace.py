"""What is freed in slices is freed wholly, and other tasks run meanwhile."""

import asyncio

import pytest

from megaphone.core.pace import FREED_AT_ONCE, free_in_slices

pytestmark = pytest.mark.looptime


async def left_after_each_turn(entries: int) -> list[int]:
    """How many entries are left after each turn of the loop, until none is."""
    mapping = dict.fromkeys(range(entries))
    free_in_slices(mapping)
    left = [len(mapping)]
    while left[-1]:
        await asyncio.sleep(0)
        left.append(len(mapping))
    return left


async def test_a_small_mapping_is_freed_at_once() -> None:
    assert await left_after_each_turn(FREED_AT_ONCE) == [0]


async def test_a_large_mapping_is_freed_in_slices() -> None:
    turns = await left_after_each_turn(2 * FREED_AT_ONCE + 1)
    assert turns == [FREED_AT_ONCE + 1, 1, 0]
