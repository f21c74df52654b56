"""The tenants of a node."""

import gc

import pytest

from megaphone.core.tenants import DEFAULT, Tenants, checked_tenant
from megaphone.errors import BadRequest


def test_a_name_has_one_tenant() -> None:
    tenants = Tenants()
    shop = tenants.named("shop")
    assert shop.name == "shop"
    assert tenants.named("shop") is shop
    assert tenants.named("bank") is not shop
    assert tenants.named("") is tenants.named("default") is tenants.default is DEFAULT


def test_a_tenant_that_nobody_has_configured_lives_as_long_as_its_channels() -> None:
    tenants = Tenants()
    for number in range(100):
        tenants.named(f"tenant-{number}")
    gc.collect()
    assert len(tenants._others) == 0


@pytest.mark.parametrize("name", ["a b", "a.b", "x" * 65, "a\n", "\N{SNOWMAN}"])
def test_the_name_of_a_tenant_from_another_node_is_checked(name: str) -> None:
    with pytest.raises(BadRequest):
        checked_tenant(name)
    assert checked_tenant("") == ""
