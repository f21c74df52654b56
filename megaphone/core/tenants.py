"""The tenants of a node: who has a share of it."""

import re
from typing import final
from weakref import WeakValueDictionary

from megaphone.errors import BadRequest
from megaphone.model import MAX_TENANT_LENGTH

_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_TENANT_LENGTH}}}")


@final
class Tenant:
    """One who has a share of the node. There is one object for each tenant, and callers and
    channels of the same tenant refer to the same object."""

    __slots__ = ("__weakref__", "name")

    def __init__(self, name: str) -> None:
        self.name = name


DEFAULT = Tenant("default")
"""The tenant of callers for whom no other one is configured."""


def checked_tenant(name: str) -> str:
    """Check and return the name of a tenant from another node; an empty one means `default`.

    Raises: BadRequest.
    """
    if name and not _NAME.fullmatch(name):
        raise BadRequest(
            f"the tenant must be 1 to {MAX_TENANT_LENGTH} letters, digits, underscores and hyphens"
        )
    return name


class Tenants:
    """The tenants of one node, by their names."""

    def __init__(self) -> None:
        self.default = DEFAULT
        """The tenant of callers for whom no other one is configured."""
        self._others: WeakValueDictionary[str, Tenant] = WeakValueDictionary()
        """Tenants that only other nodes have configured. They live as long as their channels."""

    def named(self, name: str) -> Tenant:
        """Return the tenant with a name. An empty name means `default`.

        A tenant that is not configured here has no limits here, but its channels are its own.
        """
        if not name or name == self.default.name:
            return self.default
        tenant = self._others.get(name)
        if tenant is None:
            tenant = self._others[name] = Tenant(name)
        return tenant
