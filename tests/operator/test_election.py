"""Who leads, in virtual time: never two copies at once, and never none for long."""

import asyncio
from copy import deepcopy
from typing import Any

import httpx2
import pytest

from megaphone_operator.election import GIVE_UP_S, LEASE_S, RENEW_S, Election, Lost

pytestmark = pytest.mark.looptime


class Leases:
    """One Lease, as the API server keeps it: who writes an old version fails."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.is_away = False
        self._version = 0

    async def get(self, kind: str, namespace: str, name: str) -> Any:
        await self._call()
        return deepcopy(self.lease)

    async def create(self, manifest: dict[str, Any]) -> bool:
        await self._call()
        if self.lease is not None:
            return False
        self._write(manifest)
        return True

    async def replace(self, manifest: dict[str, Any]) -> bool:
        await self._call()
        assert self.lease is not None
        version = manifest["metadata"]["resourceVersion"]
        if version != self.lease["metadata"]["resourceVersion"]:
            return False
        self._write(manifest)
        return True

    async def _call(self) -> None:
        await asyncio.sleep(0.01)
        if self.is_away:
            raise httpx2.ConnectError("away")

    def _write(self, manifest: dict[str, Any]) -> None:
        self._version += 1
        self.lease = deepcopy(manifest)
        self.lease["metadata"]["resourceVersion"] = str(self._version)

    @property
    def holder(self) -> str:
        assert self.lease is not None
        return str(self.lease["spec"]["holderIdentity"])


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_the_first_copy_leads_at_once_and_goes_on() -> None:
    leases = Leases()
    election = Election(leases, "default", "a")
    await election.win()
    assert leases.holder == "a"
    keeping = asyncio.create_task(election.keep())
    await asyncio.sleep(600)
    assert not keeping.done()
    keeping.cancel()


async def test_of_many_copies_that_start_together_one_leads() -> None:
    leases = Leases()
    copies = [Election(leases, "default", str(number)) for number in range(5)]
    winning = [asyncio.create_task(copy.win()) for copy in copies]
    await asyncio.sleep(1)
    assert sum(task.done() for task in winning) == 1
    for task in winning:
        task.cancel()


async def test_another_copy_leads_some_time_after_the_leader_was_killed() -> None:
    leases = Leases()
    first, second = Election(leases, "default", "a"), Election(leases, "default", "b")
    await first.win()
    keeping = asyncio.create_task(first.keep())
    winning = asyncio.create_task(second.win())
    await asyncio.sleep(100)
    assert not winning.done()
    keeping.cancel()
    killed = now()
    await winning
    assert leases.holder == "b"
    assert LEASE_S - RENEW_S <= now() - killed <= LEASE_S + 2 * RENEW_S


async def test_another_copy_leads_soon_after_the_leader_stopped() -> None:
    leases = Leases()
    first, second = Election(leases, "default", "a"), Election(leases, "default", "b")
    await first.win()
    winning = asyncio.create_task(second.win())
    await asyncio.sleep(5)
    await first.release()
    stopped = now()
    await winning
    assert now() - stopped <= 2 * RENEW_S


async def test_a_leader_without_an_api_server_gives_up_before_another_one_leads() -> None:
    leases = Leases()
    first, second = Election(leases, "default", "a"), Election(leases, "default", "b")
    await first.win()
    keeping = asyncio.create_task(first.keep())
    winning = asyncio.create_task(second.win())
    await asyncio.sleep(20)
    leases.is_away = True
    begun = now()
    await keeping
    assert GIVE_UP_S - RENEW_S - 0.1 <= now() - begun <= GIVE_UP_S
    assert not winning.done()
    leases.is_away = False
    await winning
    assert leases.holder == "b"


async def test_a_leader_whose_calls_hang_gives_up_before_another_one_leads() -> None:
    leases, hanging = Leases(), Leases()
    first, second = Election(hanging, "default", "a"), Election(leases, "default", "b")
    hanging.lease = leases.lease
    await first.win()
    leases.lease = hanging.lease
    begun = now()
    keeping = asyncio.create_task(first.keep())
    winning = asyncio.create_task(second.win())
    hanging._call = lambda: asyncio.sleep(3600)  # type: ignore[method-assign]
    await keeping
    assert now() - begun <= GIVE_UP_S + 0.1
    assert not winning.done()
    await winning


async def test_a_leader_survives_a_short_break() -> None:
    leases = Leases()
    election = Election(leases, "default", "a")
    await election.win()
    keeping = asyncio.create_task(election.keep())
    for _ in range(10):
        leases.is_away = True
        await asyncio.sleep(GIVE_UP_S - 3 * RENEW_S)
        leases.is_away = False
        await asyncio.sleep(2 * RENEW_S)
    assert not keeping.done()
    keeping.cancel()


async def test_a_leader_ends_when_another_copy_has_taken_the_lease() -> None:
    leases = Leases()
    election = Election(leases, "default", "a")
    await election.win()
    keeping = asyncio.create_task(election.keep())
    assert leases.lease is not None
    leases.lease["spec"]["holderIdentity"] = "b"
    begun = now()
    with pytest.raises(Lost, match="another copy"):
        await keeping
    assert now() - begun <= 2 * RENEW_S
    await election.release()
    assert leases.holder == "b"


async def test_the_lease_says_how_often_it_has_changed_hands() -> None:
    leases = Leases()
    for name in ("a", "b"):
        election = Election(leases, "default", name)
        await election.win()
        await election.release()
    await Election(leases, "default", "c").win()
    assert leases.lease is not None
    spec = leases.lease["spec"]
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"]) == ("c", LEASE_S)
    assert spec["acquireTime"] == spec["renewTime"]
    assert spec["leaseTransitions"] >= 3


async def test_a_copy_knows_whether_another_one_led_until_shortly_before() -> None:
    leases = Leases()
    first, second = Election(leases, "default", "a"), Election(leases, "default", "b")
    await first.win()
    assert not first.follows_leader
    keeping = asyncio.create_task(first.keep())
    winning = asyncio.create_task(second.win())
    await asyncio.sleep(60)
    keeping.cancel()
    await winning
    assert second.follows_leader


async def test_a_leader_that_was_not_seen_for_long_did_not_lead_until_shortly() -> None:
    leases = Leases()
    first, second = Election(leases, "default", "a"), Election(leases, "default", "b")
    await first.win()
    winning = asyncio.create_task(second.win())
    await asyncio.sleep(RENEW_S)
    leases.is_away = True
    await asyncio.sleep(600)
    leases.is_away = False
    await winning
    assert not second.follows_leader
