"""The tenants of a node: their names, and their limits in virtual time."""

import gc

import pytest

from megaphone.core import tenants as core_tenants
from megaphone.core.budget import Budget
from megaphone.core.creation import AllowedOptions
from megaphone.core.tenants import (
    DEFAULT,
    MOST_LABELS,
    OTHER,
    Tenant,
    Tenants,
    checked_tenant,
)
from megaphone.errors import BadRequest, LimitExceeded, RateLimited
from megaphone.model import NO_OPTIONS, ChannelOptions
from megaphone.settings import Settings, TenantLimits

NODE = AllowedOptions(max_ttl_s=100.0, max_capacity=10)


def test_a_name_has_one_tenant() -> None:
    tenants = Tenants({"shop": TenantLimits(reads=1)})
    shop, bank = tenants.named("shop"), tenants.named("bank")
    assert shop.name == "shop"
    assert tenants.named("shop") is shop
    assert tenants.named("bank") is bank is not shop
    assert tenants.named("") is tenants.named("default") is tenants.own(DEFAULT) is tenants.default
    assert tenants.own(shop) is shop


def test_a_tenant_without_a_table_has_the_limits_of_the_default_for_itself() -> None:
    tenants = Tenants({"default": TenantLimits(writes_per_s=1), "shop": TenantLimits()})
    shop, bank, club = tenants.named("shop"), tenants.named("bank"), tenants.named("club")
    assert not shop.is_limited
    bank.take_writes(1, 1, 0.0)
    club.take_writes(1, 1, 0.0)
    with pytest.raises(RateLimited):
        bank.take_writes(1, 1, 0.0)
    assert (shop.label, bank.label, tenants.default.label) == ("shop", "other", "default")


def test_a_tenant_that_nobody_has_configured_lives_as_long_as_its_channels() -> None:
    tenants = Tenants()
    for number in range(100):
        tenants.named(f"tenant-{number}")
    gc.collect()
    assert len(tenants._others) == 0


def test_a_tenant_with_rates_owes_what_it_owes_when_nobody_refers_to_it() -> None:
    limits = {"default": TenantLimits(writes_per_s=1), "old": TenantLimits(writes_per_s=1)}
    tenants = Tenants(limits)
    tenants.named("bank").take_writes(1, 0, 0.0)
    tenants.named("old").take_writes(1, 0, 0.0)
    gc.collect()
    del limits["old"]
    for again in (limits, limits):
        tenants.prepare(Settings(tenants=again))()
        gc.collect()
        for name in ("bank", "old"):
            with pytest.raises(RateLimited):
                tenants.named(name).take_writes(1, 0, 0.5)
    tenants.prepare(Settings())()
    gc.collect()
    assert len(tenants._held) == 0


def test_the_tenant_that_was_asked_for_longest_ago_is_forgotten_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(core_tenants, "MOST_HELD", 2)
    tenants = Tenants({"default": TenantLimits(writes_per_s=1)})
    for name in ("a", "b", "a", "c"):
        tenants.named(name)
    gc.collect()
    assert list(tenants._held) == ["a", "c"] == sorted(tenants._others)


@pytest.mark.parametrize("name", ["a b", "a.b", "x" * 65, "a\n", "\N{SNOWMAN}"])
def test_the_name_of_a_tenant_from_another_node_is_checked(name: str) -> None:
    with pytest.raises(BadRequest):
        checked_tenant(name)
    assert checked_tenant("") == ""


def test_a_reload_changes_the_limits_and_keeps_the_counts() -> None:
    tenants = Tenants({"shop": TenantLimits(writes_per_s=1, reads=2), "old": TenantLimits(reads=1)})
    shop, old, other = tenants.named("shop"), tenants.named("old"), tenants.named("other")
    shop.reads = 2
    shop.take_writes(1, 0, 0.0)
    limits = {
        "shop": TenantLimits(writes_per_s=2, reads=3),
        "default": TenantLimits(reads=0),
        "other": TenantLimits(reads=7),
    }
    apply = tenants.prepare(Settings(tenants=limits))
    assert shop.limits.reads == 2
    apply()
    assert [tenants.named(name) for name in ("shop", "old", "other")] == [shop, old, other]
    shop.begin_read()
    with pytest.raises(LimitExceeded):
        shop.begin_read()
    shop.end_read()
    with pytest.raises(RateLimited) as refused:
        shop.take_writes(2, 0, 0.0)
    assert refused.value.retry_after_s == pytest.approx(1.0)
    for tenant, most in ((old, 0), (tenants.default, 0), (other, 7)):
        assert tenant.limits.reads == most
    assert (old.label, tenants.default.label) == ("other", "default")


def test_a_refusal_says_what_the_limit_is_and_when_it_is_over() -> None:
    shop = Tenant("shop", TenantLimits(writes_per_s=500, bytes_per_s=1_000))
    shop.take_writes(500, 0, 0.0)
    with pytest.raises(RateLimited) as refused:
        shop.take_writes(1, 1, 0.0)
    assert str(refused.value) == (
        "tenant shop may write 500 events a second (writes_per_s); call again in 0.002 s"
    )
    assert refused.value.retry_after_s == pytest.approx(0.002)
    assert (refused.value.limit, refused.value.per_s) == ("writes_per_s", 500)
    shop.take_writes(1, 2_500, 1.0)  # more than a second has, so that it is paid off
    with pytest.raises(RateLimited) as refused:
        shop.take_writes(1, 1, 2.0)
    assert refused.value.limit == "bytes_per_s"
    assert refused.value.retry_after_s == pytest.approx(0.501)


def test_what_is_refused_by_one_rate_is_not_counted_by_the_other() -> None:
    shop = Tenant("shop", TenantLimits(writes_per_s=2, bytes_per_s=10))
    shop.take_writes(1, 10, 0.0)
    for _ in range(5):
        with pytest.raises(RateLimited):
            shop.take_writes(1, 10, 0.0)
    shop.give_back_writes(0, 10)
    shop.take_writes(1, 10, 0.0)
    with pytest.raises(RateLimited) as refused:
        shop.take_writes(1, 0, 0.0)
    assert refused.value.limit == "writes_per_s"


def test_creations_are_counted_in_a_second_and_altogether() -> None:
    shop = Tenant("shop", TenantLimits(creates_per_s=2, channels=3))
    for _ in range(2):
        shop.take_create(0.0)
    with pytest.raises(RateLimited) as rate:
        shop.take_create(0.0)
    assert rate.value.limit == "creates_per_s"
    assert rate.value.retry_after_s == pytest.approx(0.5)
    shop.give_back_create()
    shop.take_create(0.0)
    shop.channels = 3
    with pytest.raises(LimitExceeded) as count:
        shop.take_create(10.0)
    assert (count.value.limit, count.value.most) == ("channels", 3)


def test_a_tenant_has_defaults_and_maxima_for_its_channels() -> None:
    plain = Tenant("plain")
    assert plain.options_of(NO_OPTIONS, NODE) == NO_OPTIONS
    shop = Tenant("shop", TenantLimits(channel_ttl_secs=7, max_buffer_capacity=5))
    assert shop.options_of(NO_OPTIONS, NODE) == ChannelOptions(None, 7)
    assert shop.options_of(ChannelOptions(5, 100, "x"), NODE) == ChannelOptions(5, 100, "x")
    with pytest.raises(BadRequest, match="1 to 5 events"):
        shop.options_of(ChannelOptions(6), NODE)
    large = Tenant("large", TenantLimits(channel_ttl_secs=500, buffer_capacity=50))
    assert large.options_of(NO_OPTIONS, NODE) == ChannelOptions(50, 500)
    assert large.options_of(ChannelOptions(50, 500), NODE) == ChannelOptions(50, 500)
    with pytest.raises(BadRequest, match="to 500 seconds"):
        large.options_of(ChannelOptions(None, 501), NODE)


def test_metrics_name_no_more_than_the_first_hundred_tenants() -> None:
    names = [f"t{number}" for number in range(MOST_LABELS + 2)]
    tenants = Tenants(dict.fromkeys(names, TenantLimits()))
    labels = [tenants.named(name).label for name in names]
    assert labels == [*names[:MOST_LABELS], OTHER, OTHER]
    budget = Budget()
    assert (
        tenants.named(names[-1]).budget_in(budget) is not budget
    )  # which has a table all the same
    assert tenants.named("unknown").budget_in(budget) is budget
