"""A node calls public addresses and those that are listed, however an address is written."""

from ipaddress import ip_address

import pytest

from megaphone.core.destinations import Destinations

ANY = Destinations.parse([])


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "99.255.255.255", "172.32.0.1", "223.255.255.255", "2606:4700::1111"]
)
def test_public_addresses_are_allowed(address: str) -> None:
    assert ANY.allows("example.com", address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "127.255.255.255",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.1",
        "192.168.1.1",
        "198.18.0.1",
        "203.0.113.7",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:a9fe:a9fe",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "3fff::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_special_addresses_are_allowed_only_if_they_are_listed(address: str) -> None:
    assert not ANY.allows("example.com", address)
    ip = ip_address(address)
    width = 32 if ip.version == 4 else 128
    listed = Destinations.parse([f"{address.partition('%')[0]}/{width}", "192.168.77.0/24"])
    assert listed.allows("example.com", address)
    assert not listed.allows("example.com", "192.168.78.1")


@pytest.mark.parametrize("address", ["127.1", "2130706433", "0177.0.0.1", "0x7f.0.0.1", "", "a"])
def test_an_address_in_an_odd_form_is_never_allowed(address: str) -> None:
    assert not Destinations.parse(["0.0.0.0/0", "::/0"]).allows("example.com", address)


def test_a_network_also_allows_its_addresses_within_ipv6() -> None:
    listed = Destinations.parse(["10.0.0.0/8"])
    assert listed.allows("x", "::ffff:10.1.2.3")
    assert listed.allows("x", "64:ff9b::10.1.2.3")
    assert not listed.allows("x", "::ffff:11.1.2.3") or ANY.allows("x", "11.1.2.3")
    assert not listed.allows("x", "::ffff:127.0.0.1")


def test_the_name_of_a_host_allows_all_of_its_addresses_and_those_of_no_other_name() -> None:
    listed = Destinations.parse(["Billing.internal.", "localhost"])
    assert listed.allows("billing.internal", "10.0.0.1")
    assert listed.allows("BILLING.INTERNAL.", "127.0.0.1")
    assert not listed.allows("a.billing.internal", "10.0.0.1")
    assert not listed.allows("billing.internal.evil.example", "10.0.0.1")
    assert listed.may_allow("localhost")
    assert not listed.may_allow("a.localhost")


@pytest.mark.parametrize(
    ("host", "may"),
    [
        ("example.com", True),
        ("billing", True),
        ("1.1.1.1", True),
        ("2606:4700::1111", True),
        ("localhost", False),
        ("LOCALHOST.", False),
        ("a.localhost", False),
        ("127.0.0.1", False),
        ("127.0.0.1.", False),
        ("2130706433", False),
        ("16843009", False),
        ("0x1010101", False),
        ("1.1.1", False),
        ("01.1.1.1", False),
        ("example.0x1", False),
        ("fe80::1", False),
        ("12", False),
    ],
)
def test_what_is_known_of_a_host_before_it_is_called(host: str, may: bool) -> None:
    assert ANY.may_allow(host) is may


def test_localhost_is_allowed_by_its_networks() -> None:
    assert Destinations.parse(["127.0.0.0/8"]).may_allow("localhost")
    assert Destinations.parse(["::1"]).may_allow("localhost")
    assert not Destinations.parse(["10.0.0.0/8"]).may_allow("localhost")


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "10.0.0.0/33", "10/8", "300.1.1.1", "::g", "a/8"])
def test_a_wrong_entry_is_refused_by_its_name(entry: str) -> None:
    with pytest.raises(ValueError, match=entry.partition("/")[0]):
        Destinations.parse([entry])
