"""The address keys of agents, also of agents that this node does not own."""

from megaphone.core.addresses import AddressKey


class KeyRing:
    """The address key of each agent that this node knows, by the name of the agent.

    A node needs only the key to encrypt and decrypt producer addresses. `core.agents` knows whether
    the node owns the agent.
    """

    def __init__(self) -> None:
        self._keys: dict[str, AddressKey] = {}

    def add(self, name: str, key: AddressKey) -> None:
        """Set the key of an agent. It replaces the key that the agent had before."""
        self._keys[name] = key

    def of(self, name: str) -> AddressKey:
        """Return the key of an agent. Raises: KeyError, when the ring has none."""
        return self._keys[name]

    def drop(self, name: str) -> None:
        """Remove the key of an agent, if the ring has it."""
        self._keys.pop(name, None)
