"""Which server is the master of the store."""

import ssl
from collections.abc import Callable
from typing import Protocol

from megaphone.store.redis.connection import IsReplaced, Place
from megaphone.store.redis.sentinel import Sentinels
from megaphone.store.redis.url import StoreUrl, Topology


class Masters(Protocol):
    """Knows where the master is."""

    on_switch: Callable[[], None] | None
    """Called when the master may be another one than `find` returned."""
    name: str
    """What to call the master in messages."""

    async def start(self) -> None: ...

    async def find(self) -> Place:
        """Raises: StoreUnavailable, UnusableStore."""

    def is_master(self, place: Place) -> bool:
        """Return False if the server at a place is known not to be the master any more."""

    def question_about(self, place: Place) -> IsReplaced | None:
        """Return what asks whether the server at a place was replaced; None if it cannot be."""

    async def aclose(self) -> None: ...


class OneServer:
    """The only server there is, for one link."""

    def __init__(self, place: Place, name: str, is_replaced: IsReplaced | None = None) -> None:
        self.on_switch: Callable[[], None] | None = None
        self.name = name
        self._place = place
        self._is_replaced = is_replaced

    async def start(self) -> None:
        pass

    async def find(self) -> Place:
        return self._place

    def is_master(self, place: Place) -> bool:
        return place == self._place

    def question_about(self, place: Place) -> IsReplaced | None:
        return self._is_replaced

    async def aclose(self) -> None:
        pass


def masters_of(url: StoreUrl, tls: ssl.SSLContext | None) -> Masters:
    """Return where the master of a store is that has one."""
    if url.topology is Topology.SENTINEL:
        return Sentinels(url, tls)
    return OneServer(url.socket_path or url.endpoints[0], f"the store {url}")
