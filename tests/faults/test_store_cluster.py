"""Seeded runs against nodes that share a cluster, whose slots move and whose masters are killed."""

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from megaphone.store.redis.slots import slot_of
from tests.faults.test_shared_store import MORE, blame, fleet_of
from tests.support.redis_cluster import (
    RedisCluster,
    eventually,
    is_ready,
    redis_cluster,
    role_of,
)
from tests.support.settings import IS_LONG
from tests.support.shared_runs import run_under

SEEDS = range(2 if MORE == 1 else 4)
PAUSE_S = 0.002
"""How long a slot is between two masters for each of its keys."""


def slots_in_use(cluster: RedisCluster) -> Sequence[int]:
    """Return the slots that have keys of the nodes."""
    keys = [key.decode() for server in cluster.masters for key in server.call("KEYS", "*")]
    return sorted({slot_of(key) for key in keys})


async def test_slots_that_move_lose_nothing(tmp_path: Path) -> None:
    """All slots that have keys move to another master, those of channels and all others."""
    rng = random.Random(1)
    with redis_cluster() as cluster, fleet_of(tmp_path, cluster.text_url, 2) as fleet:
        moved = 0

        def move_all() -> int:
            slots = slots_in_use(cluster)
            for slot in slots:
                others = [one for one in cluster.masters if one is not cluster.owner_of(slot)]
                cluster.move(slot, rng.choice(others), PAUSE_S)
            return len(slots)

        async def reshard() -> None:
            nonlocal moved
            for _ in range(2 * MORE):
                await asyncio.sleep(0.5)
                moved += await asyncio.to_thread(move_all)

        results = await run_under(reshard, fleet, SEEDS)
    assert moved > 20
    assert not blame(results), blame(results)
    assert not any(one.ended for one in results)


@pytest.mark.parametrize("wait_replicas", [0, 1] if IS_LONG or MORE > 1 else [1])
async def test_no_loss_at_a_master_that_is_killed_is_untold(
    tmp_path: Path, wait_replicas: int
) -> None:
    rng = random.Random(2)
    settings = {"store_wait_replicas": wait_replicas}
    with (
        redis_cluster(replicas=3) as cluster,
        fleet_of(tmp_path, cluster.text_url, 2, **settings) as fleet,
    ):

        def replace_a_master() -> None:
            killed = rng.choice(cluster.masters)
            killed.kill()
            eventually(lambda: len(cluster.masters) == 3)
            killed.start()
            eventually(lambda: all(is_ready(one) for one in cluster.servers))

        async def kill_masters() -> None:
            for _ in range(MORE):
                await asyncio.sleep(1)
                await asyncio.to_thread(replace_a_master)
            await asyncio.sleep(1)

        results = await run_under(kill_masters, fleet, SEEDS, store_may_go_back=True)
    assert not blame(results), blame(results)
    if wait_replicas:
        assert not any(one.verdict.lost_told or one.ended for one in results)


@pytest.mark.skipif(not IS_LONG and MORE == 1, reason="takes long")
async def test_no_loss_at_a_master_that_stands_still_is_untold(tmp_path: Path) -> None:
    """A master goes on when its replica has taken over, and may take events that are lost."""
    rng = random.Random(3)
    with redis_cluster(replicas=3) as cluster, fleet_of(tmp_path, cluster.text_url, 2) as fleet:

        def freeze_a_master() -> None:
            frozen = rng.choice(cluster.masters)
            others = [one for one in cluster.servers if one is not frozen]
            frozen.freeze()
            try:
                eventually(lambda: [role_of(one) for one in others].count("master") == 3)
            finally:
                frozen.thaw()
            eventually(lambda: all(is_ready(one) for one in cluster.servers))

        async def freeze_masters() -> None:
            for _ in range(2 * MORE):
                await asyncio.sleep(1)
                await asyncio.to_thread(freeze_a_master)
            await asyncio.sleep(1)

        results = await run_under(freeze_masters, fleet, SEEDS, store_may_go_back=True)
    assert not blame(results), blame(results)
