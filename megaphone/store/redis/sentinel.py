"""Finding the master by Sentinels, and learning at once when another server becomes it."""

import asyncio
import logging
import ssl
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from megaphone.errors import StoreUnavailable
from megaphone.model import Endpoint
from megaphone.store.redis.connection import (
    CALL_S,
    Connection,
    IsReplaced,
    Place,
    dial,
    say_hello,
)
from megaphone.store.redis.counts import StoreCounts
from megaphone.store.redis.errors import ReplyError, UnusableStore
from megaphone.store.redis.keeper import Keeper
from megaphone.store.redis.opinions import opinions_of
from megaphone.store.redis.url import StoreUrl

log = logging.getLogger(__name__)

REPLACING = "failover_in_progress"
"""What a Sentinel says of a master that it is replacing."""
SWITCH = "+switch-master"
"""The channel in which a Sentinel tells of a new master."""
NAME = "megaphone"


class _Opinion(NamedTuple):
    """What a Sentinel says of the master."""

    epoch: int
    """The number of the failover that made it the master. The highest is the newest."""
    place: Endpoint
    is_replacing: bool = False
    """Whether the Sentinel is replacing it now: another server may be a master already, though no
    Sentinel names it."""


class Sentinels:
    """Knows the master of a service, because it asks all Sentinels and listens to each of them.

    A Sentinel that was cut off may name an old master, so the newest failover counts.
    """

    def __init__(self, url: StoreUrl, tls: ssl.SSLContext | None) -> None:
        assert url.service is not None
        self.on_switch: Callable[[], None] | None = None
        self.name = f"the store {url}"
        self._url = url
        self._tls = tls
        self._service = url.service
        self._newest: _Opinion | None = None
        self._told: Endpoint | None = None
        """The master as far as this node knows."""
        self._switches = 0
        """How often a Sentinel told of a new master."""
        self._keepers = [
            Keeper(
                f"the Sentinel {endpoint}",
                partial(self._listen, endpoint),
                on_up=lambda _: None,
                on_down=lambda: None,
            )
            for endpoint in url.endpoints
        ]

    async def start(self) -> None:
        for keeper in self._keepers:
            keeper.start_behind()

    async def aclose(self) -> None:
        for keeper in self._keepers:
            await keeper.aclose()

    def is_master(self, place: Place) -> bool:
        return self._told is None or place == self._told

    def question_about(self, place: Place) -> IsReplaced:
        return partial(self._is_replaced, place)

    async def _is_replaced(self, place: Place) -> bool:
        try:
            newest = await self._newest_opinion()
        except (StoreUnavailable, UnusableStore):
            return not self.is_master(place)
        return newest.is_replacing or newest.place != place

    async def find(self) -> Place:
        """Ask all Sentinels, and return the master of the newest failover that any of them knows.

        Raises: StoreUnavailable, when none answers; UnusableStore, when none knows the service, or
            none lets this node in.
        """
        return (await self._newest_opinion()).place

    async def _newest_opinion(self) -> _Opinion:
        switches = self._switches
        opinions, errors = await opinions_of(map(self._ask, self._url.endpoints))
        if not opinions:
            raise next((e for e in errors if isinstance(e, UnusableStore)), errors[0])
        newest = max(opinions)
        if self._is_outdated(newest) and len(opinions) <= len(self._url.endpoints) // 2:
            raise StoreUnavailable("only Sentinels that know an old master answer")
        self._newest = newest
        if switches == self._switches:  # else what a Sentinel told meanwhile is newer
            self._told = newest.place
        return newest

    def _is_outdated(self, opinion: _Opinion) -> bool:
        """Whether this node knows of a later failover. If most Sentinels have this opinion, they
        were set up anew, and count from 0 again."""
        return self._newest is not None and opinion.epoch < self._newest.epoch

    async def _ask(self, endpoint: Endpoint) -> _Opinion:
        connection = await self._connect(endpoint, None)
        try:
            async with asyncio.timeout(CALL_S):
                return await self._opinion(connection)
        except TimeoutError:
            raise StoreUnavailable(f"the Sentinel {endpoint} does not answer") from None
        finally:
            connection.end("it has answered")

    async def _connect(
        self, endpoint: Endpoint, on_push: Callable[[list[Any]], None] | None
    ) -> Connection:
        connection = await dial(endpoint, self._tls, lambda: Connection(StoreCounts(), on_push))
        try:
            server = await say_hello(
                connection,
                name=NAME,
                username=self._url.sentinel_username,
                password=self._url.sentinel_password,
            )
            if server.mode != "sentinel":
                raise UnusableStore(f"{endpoint} is no Sentinel: its URL is redis://host:6379")
        except BaseException:
            connection.end("this node cannot use it")
            raise
        return connection

    async def _opinion(self, connection: Connection) -> _Opinion:
        address, known = await asyncio.gather(
            connection.call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service),
            connection.call("SENTINEL", "MASTER", self._service),
            return_exceptions=True,
        )
        if isinstance(address, BaseException):
            raise address
        if address is None:
            raise UnusableStore(f"the Sentinels know no service {self._service}")
        epoch, is_replacing = 0, False
        if isinstance(known, ReplyError):  # the user of the Sentinel may not ask this
            log.debug("a Sentinel does not tell its epoch: %s", known)
        elif isinstance(known, BaseException):
            raise known
        else:
            epoch = int(known[b"config-epoch"])
            is_replacing = REPLACING in known[b"flags"].decode().split(",")
        host, port = address
        return _Opinion(epoch, Endpoint(host.decode(), int(port)), is_replacing)

    async def _listen(self, endpoint: Endpoint) -> Connection:
        """Return a connection on which a Sentinel tells of new masters."""
        connection = await self._connect(endpoint, self._take)
        try:
            connection.tell("SUBSCRIBE", SWITCH)
            # It may have told of one while nobody listened.
            opinion = await self._opinion(connection)
        except BaseException:
            connection.end("this node cannot use it")
            raise
        if self._newest is not None and opinion.epoch > self._newest.epoch:
            self._note_switch(opinion.place)
        return connection

    def _take(self, push: list[Any]) -> None:
        if push[0] != b"message":
            return
        service, _, _, host, port = push[2].decode().split(" ")
        if service == self._service:
            self._note_switch(Endpoint(host, int(port)))

    def _note_switch(self, place: Endpoint) -> None:
        log.info("a Sentinel tells that %s is the master of %s", place, self._service)
        self._told = place
        self._switches += 1
        if self.on_switch is not None:
            self.on_switch()
