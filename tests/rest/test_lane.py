"""The lane answers as aiohttp would.

The same bytes go to a broker with the lane and to a broker without it. Both must send the same
bytes, keep the connection open as long, and have written the same events.
"""

import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megaphone.access.tokens import digest_of
from megaphone.model import Action
from megaphone.settings import Auth, TenantLimits, Token
from tests.rest.lane import corpus, grammar
from tests.rest.lane.exchange import Exchange
from tests.rest.lane.sides import Pair, both_sides
from tests.support.redis_fixtures import shared_server

AT_ONCE = 150
"""How many exchanges run at the same time."""
SHOWN = 5
"""How many differences a failure shows."""
EXAMPLES = int(os.environ.get("MEGAPHONE_LANE_EXAMPLES", "0"))
"""How many examples hypothesis makes, each time others. By default 200, always the same."""
PREFIXES = itertools.count()
GROUPS = (*corpus.ODD, corpus.half_heads_slowly, corpus.trickled)

pytestmark = pytest.mark.timeout(300)  # some tests are thousands of requests


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with both_sides() as pair:
        yield pair


async def assert_same(pair: Pair, exchanges: Iterable[Exchange]) -> int:
    """Run the exchanges on both sides. Returns: how many there were."""
    left = iter(exchanges)
    found: list[str] = []
    count = 0
    while some := list(islice(left, AT_ONCE)):
        found += await pair.differences(some)
        count += len(some)
    assert not found, f"{len(found)} of {count} differ:\n" + "\n".join(found[:SHOWN])
    assert len(pair.in_other_portions) <= count // 10, "portions rarely matter"
    return count


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
async def test_odd_requests(pair: Pair, group: Callable[[], Iterator[Exchange]]) -> None:
    assert await assert_same(pair, group()) > 0


@pytest.mark.parametrize(
    "group", [corpus.ordinary, corpus.in_turn], ids=lambda group: group.__name__
)
async def test_the_lane_answers_ordinary_requests(
    pair: Pair, group: Callable[[], Iterator[Exchange]]
) -> None:
    exchanges = list(group())
    await assert_same(pair, exchanges)
    assert len(pair.answered) == sum(exchange.by_lane or 0 for exchange in exchanges)


@pytest.mark.parametrize("is_slow", [False, True], ids=["at-once", "slowly"])
@pytest.mark.parametrize("name", corpus.EACH_BYTE)
async def test_requests_that_are_split_at_any_byte(pair: Pair, name: str, is_slow: bool) -> None:
    exchanges = corpus.split(name, is_slow=is_slow)
    assert await assert_same(pair, exchanges) > 0


@pytest.mark.parametrize(
    "changes",
    [
        {"cors_allow_origin": ["*"]},
        {"cors_allow_origin": ["https://example.com"]},
        {"cors_allow_origin": ["https://example.com", "https://example.org"]},
        {"buffer_capacity": 2, "write_timeout_millis": 500},  # each channel is full at the start
        {"legacy_channel_id_writes": True},
        {"max_batch_events": 2, "max_addresses": 1, "max_body_bytes": 100},
        {"tenants": {"default": TenantLimits(reads=1_000, writes_per_s=1e9, bytes_per_s=1e9)}},
    ],
    ids=lambda changes: " ".join(changes),
)
async def test_ordinary_requests_under_other_settings(changes: dict[str, Any]) -> None:
    async with both_sides(**changes) as pair:
        assert await assert_same(pair, corpus.ordinary()) > 0
        assert await assert_same(pair, corpus.in_turn()) > 0
        assert pair.answered


@pytest.mark.parametrize(
    "required",
    [tuple(Action), (Action.CREATE,), ()],
    ids=["everything", "create", "nothing"],
)
async def test_requests_with_proofs(required: tuple[Action, ...]) -> None:
    def token(text: bytes, *actions: Action) -> Token:
        return Token(sha256=digest_of(text.decode()), actions=actions)

    tokens = {
        "right": token(corpus.RIGHT_TOKEN, *Action),
        "few": token(corpus.FEW_RIGHTS_TOKEN, Action.WRITE, Action.EXISTS),
    }
    async with both_sides(auth=Auth(require=required, tokens=tokens)) as pair:
        for _ in range(2):  # since the first time the callers are known
            assert await assert_same(pair, corpus.with_proofs()) > 0
        answered = set(pair.answered)
    assert answered


@pytest.mark.parametrize(
    "changes",
    [{}, {"buffer_capacity": 2, "write_timeout_millis": 500}],
    ids=["with room", "full"],
)
async def test_ordinary_requests_with_a_shared_store(changes: dict[str, Any]) -> None:
    with shared_server() as server:
        store = {"store": server.text_url, "store_prefix": f"lane-{next(PREFIXES)}"}
        async with both_sides(**store, **changes) as pair:
            assert await assert_same(pair, corpus.ordinary()) > 0
            assert await assert_same(pair, corpus.in_turn()) > 0
            assert pair.answered


@pytest.mark.parametrize("budget_bytes", [20_000, 10_000_000], ids=["short", "enough"])
async def test_large_bodies(budget_bytes: int) -> None:
    async with both_sides(budget_bytes=budget_bytes) as pair:
        for exchange in corpus.large():
            assert await pair.differences([exchange]) == []


@pytest.mark.parametrize("name", corpus.HALF_HEADS)
async def test_what_arrives_while_a_write_waits_is_read_once(name: str) -> None:
    write, half = corpus.WRITE_ONE, corpus.HALF_HEADS[name]
    cuts = (len(write), len(write) + len(half))
    exchange = Exchange(name, write + half + corpus.CREATE_ONE, cuts, slow_from=2)
    # The channel is full, and the rest comes after the answer to the write.
    async with both_sides(buffer_capacity=2, write_timeout_millis=1_000) as pair:
        assert await assert_same(pair, [exchange]) == 1


def test_the_corpus_is_large() -> None:
    different = {(one.data, one.cuts) for group in GROUPS for one in group()}
    assert len(different) >= 3_000


@pytest.fixture
async def used_pair(pair: Pair) -> AsyncIterator[Pair]:
    """Two sides, of which the lane must answer some requests."""
    yield pair
    assert len(pair.answered) > 50


@settings(
    max_examples=EXAMPLES or 200,
    derandomize=not EXAMPLES,
    database=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,  # one pair of brokers for all examples
        HealthCheck.too_slow,
    ],
)
@given(st.lists(grammar.exchanges(), min_size=1, max_size=4))
async def test_requests_of_the_grammar(used_pair: Pair, exchanges: list[Exchange]) -> None:
    if await used_pair.differences(exchanges, thoroughly=False):
        assert await used_pair.differences(exchanges) == []
