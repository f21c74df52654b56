"""When the keys of an issuer are fetched, and how long they are valid."""

import asyncio
import logging
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from megaphone.access.fetching import VALID_S, FetchedKeys
from megaphone.access.jwks import FetchFailed
from megaphone.access.keys import KeySet, keys_of_set
from megaphone.errors import KeysUnavailable
from tests.support.issuer import ec, public

pytestmark = pytest.mark.looptime
ALGORITHM = "ES256"


class Publisher:
    """An issuer whose answers take a while, as a function that fetches them."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.kids = ["k1"]
        self.takes_s = 1.0
        self.is_away = False
        self.withdrawals: list[float] = []

    def note_withdrawal(self) -> None:
        self.withdrawals.append(round(asyncio.get_running_loop().time(), 3))

    async def __call__(self) -> KeySet:
        self.times.append(round(asyncio.get_running_loop().time(), 3))
        await asyncio.sleep(self.takes_s)
        if self.is_away:
            raise FetchFailed("it is away")
        return keys_of_set({"keys": [public(ec(kid), kid=kid) for kid in self.kids]})


@pytest.fixture
def publisher() -> Publisher:
    return Publisher()


@pytest.fixture
async def keys(publisher: Publisher) -> AsyncIterator[FetchedKeys]:
    keys = FetchedKeys("main", publisher)
    keys.start(publisher.note_withdrawal)
    yield keys
    keys.close()
    await asyncio.sleep(0)


async def has(keys: FetchedKeys, kid: str | None) -> bool:
    return bool(await keys.find(ALGORITHM, kid))


async def test_a_first_call_waits_for_the_fetch_of_the_start(
    keys: FetchedKeys, publisher: Publisher
) -> None:
    assert await has(keys, "k1")
    assert publisher.times == [0.0]
    assert keys.fetched_at > 0


async def test_keys_are_fetched_every_five_minutes(keys: FetchedKeys, publisher: Publisher) -> None:
    await asyncio.sleep(700)
    assert publisher.times == [0.0, 301.0, 602.0]


async def test_a_new_key_is_valid_at_its_first_use(keys: FetchedKeys, publisher: Publisher) -> None:
    assert await has(keys, "k1")
    publisher.kids = ["k1", "k2"]
    assert await has(keys, "k2")
    assert len(publisher.times) == 2


async def test_a_key_that_the_issuer_takes_back_is_not_valid_any_more(
    keys: FetchedKeys, publisher: Publisher
) -> None:
    assert await has(keys, "k1")
    publisher.kids = ["k1", "k2"]
    await asyncio.sleep(310)
    assert publisher.withdrawals == []
    thumbprints = [ec(kid).thumbprint() for kid in publisher.kids]
    assert [keys.has_key(thumbprint) for thumbprint in thumbprints] == [True, True]
    publisher.kids = ["k2"]
    await asyncio.sleep(310)
    assert not await has(keys, "k1")
    assert publisher.withdrawals == [603.0]
    assert [keys.has_key(thumbprint) for thumbprint in thumbprints] == [False, True]


async def test_the_keys_of_an_issuer_that_is_away_are_withdrawn_after_a_day(
    keys: FetchedKeys, publisher: Publisher
) -> None:
    assert await has(keys, "k1")
    publisher.is_away = True
    await asyncio.sleep(VALID_S - 40)
    assert publisher.withdrawals == []
    await asyncio.sleep(80)
    assert len(publisher.withdrawals) == 1
    assert not keys.has_key(ec("k1").thumbprint())


async def test_a_thousand_unknown_keys_cause_one_fetch(
    keys: FetchedKeys, publisher: Publisher
) -> None:
    assert await has(keys, "k1")
    found = await asyncio.gather(*(has(keys, f"unknown-{number}") for number in range(1_000)))
    assert not any(found)
    assert publisher.times == [0.0, 1.0]


async def test_unknown_keys_cause_at_most_one_fetch_in_30_s(
    keys: FetchedKeys, publisher: Publisher
) -> None:
    assert await has(keys, "k1")
    for number in range(600):
        await has(keys, f"unknown-{number}")
        await asyncio.sleep(0.1)
    asked = publisher.times[1:]
    assert len(asked) == 3
    assert all(later - earlier >= 30 for earlier, later in pairwise(asked))


async def test_known_keys_do_not_wait_for_a_fetch(keys: FetchedKeys, publisher: Publisher) -> None:
    assert await has(keys, "k1")
    publisher.takes_s = 5.0
    unknown = asyncio.create_task(has(keys, "unknown"))
    await asyncio.sleep(0)
    begin = asyncio.get_running_loop().time()
    assert await has(keys, "k1")
    assert await has(keys, None)
    assert asyncio.get_running_loop().time() == begin
    assert not await unknown


async def test_a_caller_who_goes_away_does_not_end_the_fetch_of_others(
    keys: FetchedKeys, publisher: Publisher
) -> None:
    impatient, patient = (asyncio.create_task(has(keys, "k1")) for _ in range(2))
    await asyncio.sleep(0.5)
    impatient.cancel()
    assert await patient
    assert publisher.times == [0.0]


async def test_old_keys_are_valid_for_a_day_while_the_issuer_is_away(
    keys: FetchedKeys, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    assert await has(keys, "k1")
    publisher.is_away = True
    with caplog.at_level(logging.INFO):
        await asyncio.sleep(86_390)
        assert await has(keys, "k1")
        assert caplog.messages == ["keys cannot be fetched: it is away"]
        await asyncio.sleep(20)
        with pytest.raises(KeysUnavailable):
            await keys.find(ALGORITHM, "k1")
        publisher.is_away = False
        await asyncio.sleep(35)
        assert await has(keys, "k1")
        assert caplog.messages[-1] == "keys can be fetched again"
        assert caplog.records[-1].__dict__["issuer"] == "main"


async def test_an_unknown_key_of_an_issuer_that_is_away_cannot_be_judged(
    keys: FetchedKeys, publisher: Publisher
) -> None:
    assert await has(keys, "k1")
    publisher.is_away = True
    for _ in range(3):
        with pytest.raises(KeysUnavailable):
            await keys.find(ALGORITHM, "unknown")
    assert len(publisher.times) == 2


async def test_without_any_keys_the_fetch_is_repeated_soon(publisher: Publisher) -> None:
    publisher.is_away = True
    keys = FetchedKeys("main", publisher)
    keys.start(publisher.note_withdrawal)
    with pytest.raises(KeysUnavailable):
        await keys.find(ALGORITHM, "k1")
    publisher.is_away = False
    await asyncio.sleep(33)
    assert publisher.times == [0.0, 31.0]
    assert await has(keys, "k1")
    keys.close()


async def test_after_the_close_waiting_calls_end(publisher: Publisher) -> None:
    keys = FetchedKeys("main", publisher)
    keys.start(publisher.note_withdrawal)
    waiting = asyncio.create_task(keys.find(ALGORITHM, "k1"))
    await asyncio.sleep(0.5)
    keys.close()
    with pytest.raises(KeysUnavailable):
        await waiting
    assert asyncio.get_running_loop().time() < 1


async def test_a_mistake_of_ours_does_not_end_the_fetching(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries = 0

    async def fetch() -> KeySet:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise RuntimeError("a mistake")
        return keys_of_set({"keys": [public(ec(), kid="k1")]})

    keys = FetchedKeys("main", fetch)
    keys.start(lambda: None)
    await asyncio.sleep(31)
    assert await has(keys, "k1")
    assert "a mistake" in caplog.text
    keys.close()
