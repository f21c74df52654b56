"""The shares of tenants in the budget of a node."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaphone.core.budget import CHANNEL_BYTES, ENTRY_BYTES, EVENT_BYTES, Budget, Share
from megaphone.core.channel import Channel
from megaphone.errors import LimitExceeded
from megaphone.model import Event, ReadOptions
from tests.support.settings import limits

BODY_BYTES = 10_000
EVENT = ENTRY_BYTES + EVENT_BYTES + BODY_BYTES
LIMITS = limits(capacity=5)


def event(name: str = "e", size: int = BODY_BYTES) -> Event:
    return Event(name, "s", 0, b"1" * size)


def channel(budget: Budget) -> Channel:
    return Channel(LIMITS, 0.0, budget)


def share(whole: Budget, name: str = "shop", limit: int | None = None) -> Share:
    return Share(whole, name, name, limit)


def read(target: Channel) -> None:
    lease = target.lease(ReadOptions(), 0.0)
    while lease.take(100, 10**9, 0.0):
        pass
    lease.release(clean=True, now=0.0)


def written(target: Channel, most: int = 5) -> int:
    """Write until there is no room. Returns: how many events were written."""
    for count in range(most):
        try:
            target.accept(event(f"e{count}"), now=0.0)
        except LimitExceeded:
            return count
    return most


def test_a_tenant_cannot_use_more_than_its_share() -> None:
    whole = Budget(100 * EVENT)
    shop, bank = share(whole, "shop", CHANNEL_BYTES + 3 * EVENT), share(whole, "bank")
    target = channel(shop)
    assert written(target) == 3
    with pytest.raises(LimitExceeded) as refused:
        target.accept(event(), now=0.0)
    assert (refused.value.limit, refused.value.tenant) == ("buffered_bytes", "shop")
    assert str(shop.limit) in str(refused.value)
    assert written(channel(bank)) == 5
    assert written(channel(whole)) == 5
    assert shop.used == CHANNEL_BYTES + 3 * EVENT
    assert whole.used == 3 * CHANNEL_BYTES + 13 * EVENT


def test_a_share_ends_where_the_budget_does() -> None:
    whole = Budget(CHANNEL_BYTES + 3 * EVENT)
    target = channel(share(whole, limit=100 * EVENT))
    assert written(target) == 3
    with pytest.raises(LimitExceeded) as refused:
        target.accept(event(), now=0.0)
    assert refused.value.limit is None


def test_a_tenant_that_comes_near_to_its_limit_loses_its_own_replay_only() -> None:
    whole = Budget(100 * EVENT)
    shop, bank = share(whole, "shop", 2 * CHANNEL_BYTES + 6 * EVENT), share(whole, "bank")
    old, other, new = channel(shop), channel(bank), channel(shop)
    for one in (old, other):
        assert written(one) == 5
        read(one)
    assert written(new) == 5
    assert old.log.dropped == 5
    assert other.log.dropped == 0


@pytest.mark.parametrize("direct_is_larger", [False, True])
def test_a_node_that_comes_near_to_its_limit_drops_the_replay_of_who_uses_most(
    direct_is_larger: bool,
) -> None:
    whole = Budget(4 * CHANNEL_BYTES + 12 * EVENT)
    large, small = share(whole, "large"), share(whole, "small")
    first: Budget = whole if direct_is_larger else large
    hogs, modest = [channel(first), channel(first)], channel(small)
    for one in (modest, hogs[0]):
        assert written(one, 3 if one is modest else 5) == (3 if one is modest else 5)
        read(one)
    assert written(hogs[1]) == 5
    assert modest.log.dropped == 0
    assert hogs[0].log.dropped == 5


def test_an_event_that_two_tenants_hold_counts_for_the_first_until_nobody_holds_it() -> None:
    whole = Budget()
    shop, bank = share(whole, "shop"), share(whole, "bank")
    first, second = channel(shop), channel(bank)
    both = event()
    for one in (first, second):
        one.accept(both, now=0.0)
    line = BODY_BYTES  # which the readers of both share
    assert shop.used == CHANNEL_BYTES + EVENT + line
    assert bank.used == CHANNEL_BYTES + ENTRY_BYTES
    first.close()
    assert shop.used == EVENT_BYTES + BODY_BYTES
    second.close()
    assert shop.used == bank.used == whole.used == 0


def test_another_limit_leaves_what_is_used() -> None:
    whole = Budget()
    shop = share(whole, limit=CHANNEL_BYTES + 2 * EVENT)
    target = channel(shop)
    assert written(target) == 2
    shop.change("shop", CHANNEL_BYTES + 4 * EVENT)
    assert written(target) == 2
    shop.change("shop", 0)
    assert written(target) == 0
    shop.change("shop", None)
    assert written(target, 1) == 1


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("one"), st.integers(0, 5), st.integers(0, 3_000)),
            st.tuples(st.just("wait"), st.integers(0, 5), st.integers(0, 3_000)),
            st.tuples(st.just("all"), st.integers(1, 5), st.integers(0, 3_000)),
            st.tuples(st.just("read"), st.integers(0, 5), st.just(0)),
            st.tuples(st.just("read all"), st.just(0), st.just(0)),
            st.tuples(st.just("close"), st.integers(0, 5), st.just(0)),
        ),
        max_size=60,
    )
)
def test_the_shares_are_parts_of_the_whole_whatever_happens(
    steps: list[tuple[str, int, int]],
) -> None:
    whole = Budget(100_000)
    shares = [share(whole, "shop", 40_000), share(whole, "bank")]
    budgets: list[Budget] = [*shares, whole]
    channels = [channel(budgets[number % 3]) for number in range(6)]
    for step, (kind, number, size) in enumerate(steps):
        match kind:
            case "one":
                with suppress(LimitExceeded):
                    channels[number].accept(event(f"{step}", size), now=0.0)
            case "wait":
                with suppress(LimitExceeded):
                    channels[number].offer(event(f"{step}", size), now=0.0, request_id=f"{step}")
            case "all":
                events = [event(f"{step}.{one}", size) for one in range(number)]
                for target in channels:
                    target.accept_run(events, 0.0)
            case "read":
                read(channels[number])
            case "read all":
                for target in channels:
                    read(target)
            case _:
                channels[number].close()
                channels[number] = channel(budgets[number % 3])
        used = [one.used for one in shares]
        direct = whole.used - sum(used)
        assert direct == whole._account.used
        assert min(*used, direct) >= 2 * CHANNEL_BYTES
    for target in channels:
        target.close()
    assert [one.used for one in budgets] == [0, 0, 0]
