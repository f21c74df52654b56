"""Resolves names for requests that may go only to allowed addresses."""

import socket

from aiohttp import ThreadedResolver
from aiohttp.abc import ResolveResult

from megaphone.core.destinations import Destinations


class AddressRefused(Exception):
    """A host has no address that the node may call."""


class CheckedResolver(ThreadedResolver):
    """A resolver that returns only addresses which the node may call.

    The connection goes to an address that was returned, so a name that changes after the check
    leads nowhere else. aiohttp does not ask a resolver for a host that is an address.
    """

    def __init__(self, destinations: Destinations) -> None:
        super().__init__()
        self._destinations = destinations

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises: AddressRefused, if no address of the host is allowed; OSError, if the name cannot
        be resolved."""
        resolved = await super().resolve(host, port, family)
        allowed = [one for one in resolved if self._destinations.allows(host, one["host"])]
        if not allowed:
            raise AddressRefused
        return allowed
