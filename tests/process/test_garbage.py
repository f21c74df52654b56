"""Objects that survive a collection are frozen, and cycles are still collected."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from megaphone.core.access import ANYONE
from megaphone.model import ReadOptions
from megaphone.process.garbage import BYTES_AN_OBJECT, Freezer
from tests.core.test_slices import ROOMY, Node


class Linked:
    """An object that refers to itself."""

    def __init__(self) -> None:
        self.itself = self


def ring() -> "weakref.ref[Linked]":
    return weakref.ref(Linked())


@pytest.fixture(autouse=True)
def no_search_but_ours() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


def is_searched(wanted: object) -> bool:
    return any(one is wanted for one in gc.get_objects())


def test_objects_that_exist_or_survive_a_collection_are_frozen() -> None:
    old = Linked()
    with Freezer(1 << 40):
        assert not is_searched(old)
        new = Linked()
        assert is_searched(new)
        gc.collect(1)
        assert is_searched(new)
        gc.collect()
        assert not is_searched(new)
    assert is_searched(old)
    assert is_searched(new)


@pytest.mark.parametrize("generation", [0, 1, 2])
def test_cycles_are_found_while_they_are_young(generation: int) -> None:
    with Freezer(1 << 40):
        lost = ring()
        gc.collect(generation)
        assert lost() is None


def test_frozen_cycles_are_found_once_twice_as_much_is_frozen() -> None:
    with Freezer(1_000 * BYTES_AN_OBJECT):
        frozen = gc.get_freeze_count()
        kept = Linked()
        lost = weakref.ref(kept)
        gc.collect()
        del kept
        gc.collect()
        assert lost() is not None
        growth = [[number] for number in range(frozen + 10_000)]
        gc.collect()
        assert lost() is not None  # this collection still looks at new objects only
        gc.collect()
        assert lost() is None
        assert not is_searched(growth[0])


def test_objects_that_are_freed_within_a_turn_begin_no_collection() -> None:
    with Freezer(1 << 40):
        before = gc.get_stats()[0]["collections"]
        gc.enable()
        for _ in range(100):
            of_a_turn = [[number] for number in range(4_000)]
            del of_a_turn
        gc.disable()
        assert gc.get_stats()[0]["collections"] - before <= 2  # pytest has objects of its own


def test_a_collection_never_has_to_look_at_many_objects() -> None:
    most = 0

    def count(phase: str, _info: dict[str, int]) -> None:
        nonlocal most
        if phase == "start":
            most = max(most, sum(len(gc.get_objects(generation=one)) for one in range(3)))

    with Freezer(1 << 40):
        gc.callbacks.insert(0, count)
        gc.enable()
        kept = [[number] for number in range(100_000)]
        gc.disable()
        gc.callbacks.remove(count)
    assert len(kept) == 100_000
    assert 5_000 <= most <= 20_000


def test_everything_is_as_it_was_afterwards() -> None:
    thresholds, callbacks = gc.get_threshold(), list(gc.callbacks)
    with Freezer(1 << 40):
        pass
    assert gc.get_threshold() == thresholds
    assert gc.callbacks == callbacks
    assert gc.get_freeze_count() == 0


def leases() -> list[object]:
    return [one for one in gc.get_objects() if type(one).__name__ in ("MemoryLease", "Lease")]


@pytest.mark.looptime
@pytest.mark.parametrize("is_cut", [False, True])
async def test_a_read_leaves_no_cycle_behind(is_cut: bool) -> None:
    """A long cycle would be frozen while it is in use."""
    others = leases()  # of other tests in this process
    node = Node(ROOMY)
    (channel,) = await node.create(1)
    for _ in range(3):
        reader = node.broker.read(ANYONE, channel.consumer_address, ReadOptions(wait_s=1))
        async with reader:
            if not is_cut:
                assert [batch async for batch in reader] == []
    del reader
    assert [one for one in leases() if not any(one is other for other in others)] == []
