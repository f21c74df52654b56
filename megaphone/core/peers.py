"""Who is at the other end of a connection, and what callers at one network address may do."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from megaphone.core.quotas import Rates
from megaphone.core.tenants import DEFAULT
from megaphone.errors import RateLimited
from megaphone.settings import Settings

IPV6_PREFIX_BITS: Final = 64
"""One customer of a network usually has a whole IPv6 network of this size."""
MOST_HOPS: Final = 20
"""How many addresses of `X-Forwarded-For` are looked at."""
LONGEST_ADDRESS: Final = 45
"""How many characters an address of IPv6 has at most, without a zone."""
REMEMBERED: Final = 10_000
"""Of how many addresses the networks are remembered."""


@lru_cache(REMEMBERED)
def network_of(ip: str) -> str:
    """Return the network of one customer: an IPv4 address, or the first half of an IPv6 address. A
    text that is no address stays as it is."""
    try:
        address = ip_address(ip)
    except ValueError:
        return ip
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(IPv6Network((int(address) >> IPV6_PREFIX_BITS << IPV6_PREFIX_BITS, 64)))
    return str(address)


class Proxies:
    """The proxies whose word counts for who the client is."""

    def __init__(self, networks: Sequence[str] = ()) -> None:
        """Raises: ValueError, if a text is neither a network nor an address."""
        self._networks: list[IPv4Network | IPv6Network] = []
        for text in networks:
            try:
                self._networks.append(ip_network(text, strict=False))
            except ValueError:
                raise ValueError(f"{text} is neither a network nor an address") from None

    def has(self, ip: str) -> bool:
        """Return whether an address is one of a proxy."""
        try:
            address = ip_address(ip)
        except ValueError:
            return False
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)

    def client_of(self, ip: str, forwarded_for: str | None) -> str:
        """Return the address of a client, from that of the connection and `X-Forwarded-For`.

        Walks from the connection to the client, as long as a proxy says who came before it.
        Nothing of the header is remembered, because strangers write it.
        """
        if not forwarded_for or not self._networks:
            return ip
        hops = forwarded_for.rsplit(",", MOST_HOPS)[-MOST_HOPS:]
        while hops and self.has(ip):
            hop = hops.pop().strip()
            if len(hop) > LONGEST_ADDRESS:
                return ip  # a zone may have any length
            try:
                ip = str(ip_address(hop))
            except ValueError:
                return ip  # what the proxy says is no address, so it may be anything
        return ip


class PeerLimits:
    """The limits of callers at one network address. `now` is the time of the event loop. Fulfils
    `megaphone.reload.Reloadable`."""

    def __init__(self, settings: Settings) -> None:
        self._creates: Rates | None = None
        self._failures: Rates | None = None
        self.proxies = Proxies()
        self.prepare(settings)()

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Prepare for new settings. The counts so far stay."""
        proxies = Proxies(settings.trusted_proxies)

        def take() -> None:
            self.proxies = proxies
            self._creates = changed(self._creates, settings.creates_per_s_per_ip)
            self._failures = changed(self._failures, settings.auth_failures_per_s)

        return take

    # -- Creating

    @property
    def limit_creates(self) -> bool:
        """Whether the creations of callers without a proof are limited, so that their addresses
        must be known."""
        return self._creates is not None

    def take_create(self, ip: str, now: float) -> None:
        """Count a creation of a caller without a proof. An empty address is not limited.

        Raises: RateLimited. Nothing is counted then.
        """
        rates = self._creates
        if rates is None or not ip:
            return
        network = network_of(ip)
        if wait_s := rates.wait_s(network, 1.0, now):
            raise RateLimited(
                f"callers without a token may create {rates.per_s:g} channels a second from one"
                f" address (creates_per_s_per_ip); call again in {max(0.001, wait_s):.3g} s",
                retry_after_s=wait_s,
                limit="creates_per_s_per_ip",
                per_s=rates.per_s,
                tenant=DEFAULT.name,
            )
        rates.take(network, 1.0, now)

    def give_back_create(self, ip: str) -> None:
        """Count a creation less, because it has not happened."""
        if self._creates is not None and ip:
            self._creates.give_back(network_of(ip), 1.0)

    # -- Failures

    def check_failures(self, ip: str, now: float) -> None:
        """Raises: RateLimited, if too many proofs were refused at an address, so that no other one
        may be tried there now."""
        rates = self._failures
        if rates is not None and ip and (wait_s := rates.wait_s(network_of(ip), 1.0, now)):
            raise RateLimited(
                "too many tokens were refused at this address (auth_failures_per_s);"
                f" call again in {max(0.001, wait_s):.3g} s",
                retry_after_s=wait_s,
                limit="auth_failures_per_s",
                per_s=rates.per_s,
                tenant=DEFAULT.name,
            )

    def note_failure(self, ip: str, now: float) -> None:
        """Count a proof that was refused."""
        if self._failures is not None and ip:
            self._failures.take(network_of(ip), 1.0, now)


def changed(rates: Rates | None, per_s: float | None) -> Rates | None:
    """Return rates for another limit. Debts so far stay."""
    if per_s is None:
        return None
    if rates is None:
        return Rates(per_s)
    rates.change(per_s)
    return rates
