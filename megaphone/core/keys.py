"""The address keys of agents, also of agents that this node does not own."""

from functools import lru_cache
from typing import TYPE_CHECKING

from megaphone.core.addresses import AddressKey

if TYPE_CHECKING:
    from collections.abc import Callable

OPENED_REMEMBERED = 10_000
"""How many producer addresses a ring remembers with what they mean."""


class KeyRing:
    """The address key of each agent that this node knows, by the name of the agent.

    A node needs only the key to encrypt and decrypt producer addresses. `core.agents` knows whether
    the node owns the agent.
    """

    def __init__(self) -> None:
        self._keys: dict[str, AddressKey] = {}
        self._remembering = lru_cache(OPENED_REMEMBERED)(self._open)
        self.open: Callable[[str], tuple[str, bytes]] = self._remembering
        """Return the name of the agent and the channel id in a producer address.

        Raises: KeyError, when the ring has no key of the agent; BadRequest, when the text is not a
        producer address, or was sealed with another key, or was changed later.
        """

    def add(self, name: str, key: AddressKey) -> None:
        """Set the key of an agent. It replaces the key that the agent had before."""
        self._keys[name] = key
        self._remembering.cache_clear()

    def of(self, name: str) -> AddressKey:
        """Return the key of an agent. Raises: KeyError, when the ring has none."""
        return self._keys[name]

    def drop(self, name: str) -> None:
        """Remove the key of an agent, if the ring has it."""
        self._keys.pop(name, None)
        self._remembering.cache_clear()

    def _open(self, address: str) -> tuple[str, bytes]:
        name, _, sealed = address.partition(".")
        return name, self._keys[name].open(sealed)
