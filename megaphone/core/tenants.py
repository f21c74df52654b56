"""The tenants of a node: who has a share of it."""

from typing import final


@final
class Tenant:
    """One who has a share of the node. There is one object for each tenant, and callers and
    channels of the same tenant refer to the same object."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


DEFAULT = Tenant("default")
"""The tenant of callers for whom no other one is configured."""
