"""Which network addresses a node may call because its settings name them.

A webhook's endpoint is often chosen by somebody who may not reach the network of the node: a team
that registers it, or whoever controls the name server of its name. So a node calls only public
addresses, and those that the operator has listed. A name is checked by the addresses that it has at
the moment of the call, and only they are called.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

SPECIAL_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
    )
)
"""The networks of the IANA registry of special addresses, with multicast and everything above it.
The standard library has such a list too, but it differs from one version of Python to another."""
PUBLIC_IPV6 = IPv6Network("2000::/3")
SPECIAL_IPV6 = tuple(
    IPv6Network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
"""What is special within the public addresses. 2002::/16 contains IPv4 addresses of any kind."""
NAT64 = IPv6Network("64:ff9b::/96")
"""Each of its addresses leads to the IPv4 address in its last 32 bits."""
ENDS_IN_NUMBER = re.compile(r"(^|\.)([0-9]+|0[xX][0-9A-Fa-f]*)\.?\Z")
"""A host of this form is an IPv4 address, as the URL standard says: `2130706433`, `0x7f.1`."""
LOCALHOST = re.compile(r"(^|\.)localhost\.?\Z", re.IGNORECASE)
"""Names that always mean this machine (RFC 6761)."""


@dataclass(frozen=True, slots=True)
class Destinations:
    """The addresses that a node may call: public ones, some networks, and all of some hosts."""

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()
    """Names in small letters, whose addresses may be any."""

    @classmethod
    def parse(cls, entries: Iterable[str]) -> Self:
        """Return the destinations of a list of networks, addresses and names of hosts.

        Raises: ValueError, whose text says which entry is wrong and why.
        """
        networks, hosts = [], []
        for entry in entries:
            if "/" in entry or may_be_address(entry):
                networks.append(ip_network(entry))
            else:
                hosts.append(normalized(entry))
        return cls(tuple(networks), frozenset(hosts))

    def allows(self, host: str, address: str) -> bool:
        """Return whether the node may call an address that a host has. An address that is not in
        its usual form is never allowed."""
        try:
            called = ip_address(address)
        except ValueError:
            return False
        if normalized(host) in self.hosts:
            return True
        reached = reached_by(called)
        if any(called in network or reached in network for network in self.networks):
            return True
        return is_public(reached)

    def may_allow(self, host: str) -> bool:
        """Return whether the node may call a host. For a name, its addresses decide that later."""
        if may_be_address(host):
            return self.allows(host, host)
        if LOCALHOST.search(host):
            return normalized(host) in self.hosts or any(
                self.allows(host, address) for address in ("127.0.0.1", "::1")
            )
        return True


def may_be_address(host: str) -> bool:
    """Return whether a host is an address in whatever form, and not a name."""
    return ":" in host or ENDS_IN_NUMBER.search(host) is not None


def normalized(host: str) -> str:
    return host.lower().removesuffix(".")


def reached_by(address: Address) -> Address:
    """Return where a connection to an address leads: some IPv6 addresses stand for IPv4 ones."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in NAT64:
            return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address


def is_public(address: Address) -> bool:
    """Return whether an address belongs to one host of the internet."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in SPECIAL_IPV4)
    return address in PUBLIC_IPV6 and not any(address in network for network in SPECIAL_IPV6)
