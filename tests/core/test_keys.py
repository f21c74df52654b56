"""A key ring opens producer addresses, and forgets what it knew of them when its keys change."""

import pytest

from megaphone.core.addresses import AddressKey
from megaphone.core.keys import KeyRing
from megaphone.errors import BadRequest

CHANNEL_ID = bytes(range(16))
KEY, OTHER_KEY = AddressKey(bytes(32)), AddressKey(bytes(31) + b"\x01")
ADDRESS = f"a.{KEY.seal(CHANNEL_ID)}"


@pytest.fixture
def ring() -> KeyRing:
    ring = KeyRing()
    ring.add("a", KEY)
    return ring


def test_a_ring_opens_the_addresses_of_its_agents(ring: KeyRing) -> None:
    assert [ring.open(ADDRESS) for _ in range(2)] == [("a", CHANNEL_ID)] * 2


def test_a_ring_opens_no_address_of_another_agent(ring: KeyRing) -> None:
    with pytest.raises(KeyError):
        ring.open(f"b.{KEY.seal(CHANNEL_ID)}")


@pytest.mark.parametrize(
    "address",
    ["a", "a.", ADDRESS + "A", f"a.{OTHER_KEY.seal(CHANNEL_ID)}"],
    ids=["name", "nothing sealed", "too long", "another key"],
)
def test_a_ring_refuses_what_the_key_has_not_sealed(ring: KeyRing, address: str) -> None:
    with pytest.raises(BadRequest):
        ring.open(address)


def test_a_ring_forgets_an_address_with_the_key_of_its_agent(ring: KeyRing) -> None:
    ring.open(ADDRESS)
    ring.drop("a")
    with pytest.raises(KeyError):
        ring.open(ADDRESS)


def test_a_ring_opens_an_address_with_the_newest_key_only(ring: KeyRing) -> None:
    ring.open(ADDRESS)
    ring.add("a", OTHER_KEY)
    with pytest.raises(BadRequest):
        ring.open(ADDRESS)
