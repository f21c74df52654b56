"""The keys of agents: what addresses are sealed and opened with, whoever owns the agent."""

from megaphone.core.addresses import AddressKey


class KeyRing:
    """The key of each agent that this node knows, by the name of the agent.

    A node makes and opens producer addresses with the key alone. Whether it owns the agent, and
    what the agent does, is for `core.agents` to say.
    """

    def __init__(self) -> None:
        self._keys: dict[str, AddressKey] = {}

    def add(self, name: str, key: AddressKey) -> None:
        """Use a key for an agent, in place of the one that it had."""
        self._keys[name] = key

    def of(self, name: str) -> AddressKey:
        """Return the key of an agent. Raises: KeyError, when the ring has none."""
        return self._keys[name]

    def drop(self, name: str) -> None:
        """Forget the key of an agent, if there is one."""
        self._keys.pop(name, None)
