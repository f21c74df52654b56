"""Who is at the other end of a connection, and what callers at one address may do."""

import tracemalloc

import pytest

from megaphone.core.peers import PeerLimits, Proxies, network_of
from megaphone.errors import RateLimited
from megaphone.settings import Settings


@pytest.mark.parametrize(
    ("one", "other", "are_alike"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("", "x", False),
    ],
)
def test_the_network_of_a_customer(one: str, other: str, are_alike: bool) -> None:
    assert (network_of(one) == network_of(other)) is are_alike


@pytest.mark.parametrize(
    ("ip", "forwarded_for", "client"),
    [
        ("192.0.2.1", None, "192.0.2.1"),
        ("192.0.2.1", "198.51.100.1", "192.0.2.1"),  # no proxy of ours says so
        ("10.0.0.1", None, "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("::ffff:10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.1", "198.51.100.1"),  # the client made that up
        ("10.0.0.1", "203.0.113.9, 198.51.100.1, 10.0.0.2,fd00::1", "198.51.100.1"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1, ", "10.0.0.1"),
        ("10.0.0.1", "2001:DB8::1", "2001:db8::1"),
        ("10.0.0.1", ",".join(["10.0.0.2"] * 1_000 + ["198.51.100.1"]), "198.51.100.1"),
        ("10.0.0.1", "fe80::1%" + "x" * 100, "10.0.0.1"),
        ("", "198.51.100.1", ""),
    ],
)
def test_the_client_behind_proxies(ip: str, forwarded_for: str | None, client: str) -> None:
    proxies = Proxies(["10.0.0.0/8", "fd00::1"])
    assert proxies.client_of(ip, forwarded_for) == client


@pytest.mark.parametrize("ip", ["192.0.2.1", "10.0.0.1"])
def test_nothing_of_a_forwarded_header_is_remembered(ip: str) -> None:
    proxies = Proxies(["10.0.0.0/8"])
    tracemalloc.start()
    try:
        for number in range(200):
            proxies.client_of(ip, f"{number}{'x' * 30_000}, 198.51.100.{number}")
            proxies.client_of(ip, f"fe80::1%{number}{'x' * 30_000}")
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 100_000


def test_a_text_that_is_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"10\.0\.0\.0/99 is neither"):
        Proxies(["10.0.0.0/99"])


def test_each_address_creates_as_often_as_it_may() -> None:
    peers = PeerLimits(Settings(creates_per_s_per_ip=0.5))
    for ip in ("192.0.2.1", "2001:db8::1", "", ""):
        peers.take_create(ip, 0.0)
    for ip in ("192.0.2.1", "2001:db8::2"):
        with pytest.raises(RateLimited) as refused:
            peers.take_create(ip, 0.0)
        assert refused.value.limit == "creates_per_s_per_ip"
        assert refused.value.retry_after_s == pytest.approx(2.0)
        assert ip not in str(refused.value)
    peers.give_back_create("192.0.2.1")
    peers.take_create("192.0.2.1", 0.0)


def test_refused_proofs_count_at_their_address() -> None:
    peers = PeerLimits(Settings(auth_failures_per_s=2))
    for _ in range(2):
        peers.check_failures("192.0.2.1", 0.0)
        peers.note_failure("192.0.2.1", 0.0)
    with pytest.raises(RateLimited, match="auth_failures_per_s"):
        peers.check_failures("192.0.2.1", 0.0)
    peers.check_failures("192.0.2.2", 0.0)
    peers.check_failures("192.0.2.1", 0.5)


def test_a_reload_changes_the_limits() -> None:
    peers = PeerLimits(Settings())
    seen = [peers.limit_creates]
    apply = peers.prepare(Settings(creates_per_s_per_ip=1, trusted_proxies=("10.0.0.1",)))
    seen.append(peers.proxies.has("10.0.0.1"))
    apply()
    seen += [peers.limit_creates, peers.proxies.has("10.0.0.1")]
    peers.prepare(Settings())()
    seen.append(peers.limit_creates)
    assert seen == [False, False, True, True, False]
