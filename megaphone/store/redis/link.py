"""The link of this node to the master of the store: calls that survive the loss of a connection."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from megaphone.errors import StoreUnavailable
from megaphone.store.redis.connection import (
    Argument,
    Calls,
    Connection,
    Pending,
    Place,
    Reply,
    RoundTrips,
    Server,
    dial,
    fail,
    pack,
    say_hello,
)
from megaphone.store.redis.errors import UnusableStore
from megaphone.store.redis.keeper import Keeper
from megaphone.store.redis.masters import masters_of
from megaphone.store.redis.url import StoreUrl

WAIT_S = 2.0
"""How long a call waits for a connection."""
MAX_WAITING_CALLS = 20_000
MAX_WAITING_BYTES = 33_554_432


class _Waiting(NamedTuple):
    packed: bytes
    pending: Pending
    deadline: float


class Link:
    """A connection to the master of the store that is made again whenever it ends.

    Calls of one turn of the loop leave in one write, and are carried out and answered in the order
    in which they were made. A call ends within 4.5 seconds, whatever happens: WAIT_S for a
    connection, CALL_S for the answer, CHECK_S twice for the check of it.

    `greet` is called with each new connection before any other call is sent on it. If it raises,
    the connection is given up.
    """

    def __init__(
        self,
        url: StoreUrl,
        *,
        name: str,
        greet: Callable[[Calls], Awaitable[None]] | None = None,
        max_waiting_calls: int = MAX_WAITING_CALLS,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        """`name` is the name of the connection at the server, without spaces.

        Raises: UnusableStore.
        """
        try:
            self._tls = url.make_tls()
        except ValueError as error:
            raise UnusableStore(str(error)) from None
        self.url = url
        self.server: Server | None = None
        """What the server said of itself when the link last connected."""
        self.connections = 0
        """How many connections the link has made."""
        self.round_trips = RoundTrips()
        self._name = name
        self._greet = greet
        self._masters = masters_of(url, self._tls)
        self._masters.on_switch = self._leave_old_master
        self.place: Place | None = None
        """The server to which the link connected last."""
        self._keeper = Keeper(
            f"the store {url}", self._connect, on_up=self._go_on, on_down=lambda: None
        )
        self._open: Connection | None = None
        """The connection if calls can go to it at once."""
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._max_waiting_calls = max_waiting_calls
        self._max_waiting_bytes = max_waiting_bytes
        self._timer: asyncio.TimerHandle | None = None
        self._followers: list[Callable[[Place], None]] = []
        self._is_closed = False

    async def start(self) -> None:
        """Connect for the first time.

        Raises: StoreUnavailable, when the store does not answer or cannot serve now; UnusableStore,
            when that is not going to change; what `greet` raises.
        """
        await self._masters.start()
        try:
            await self._keeper.start()
        except BaseException:
            await self._masters.aclose()
            raise

    @property
    def is_up(self) -> bool:
        connection = self._keeper.connection
        return connection is not None and not connection.is_over

    @property
    def down_since(self) -> float | None:
        """The loop time since which there is no connection; None while there is one."""
        return self._keeper.down_since

    def call(self, *args: Argument) -> asyncio.Future[Reply]:
        """Send a command. Never waits. If the future is cancelled, the command may still be sent.

        The future fails with StoreUnavailable: with `may_have_happened`, if the connection ended or
        CALL_S went by before the answer; without, if there was no connection for WAIT_S, or if too
        many calls wait. It fails with an exception of `megaphone.store.redis.errors` if the store
        answers an error.
        """
        future = asyncio.get_running_loop().create_future()
        self.send(pack(args), future)
        return future

    def send(self, packed: bytes, pending: Pending) -> None:
        """Do the same as `call` for a command that is packed already. `pending` gets the answer, or
        the exception, in a later turn of the loop."""
        connection = self._open
        if connection is not None:
            connection.send(packed, pending)
        else:
            self._wait(packed, pending)

    def reconnect(self, reason: str) -> None:
        """End the connection, and make another one."""
        if (connection := self._keeper.connection) is not None:
            connection.end(reason)
        self._keeper.hurry()

    async def aclose(self) -> None:
        """End the connection now. Calls without an answer fail."""
        self._is_closed = True
        await self._keeper.aclose()
        await self._masters.aclose()
        self._open = None
        while self._waiting:
            fail(self._waiting.popleft().pending, "this node closes its store", False)
        if self._timer is not None:
            self._timer.cancel()

    # Connections.

    async def _connect(self) -> Connection:
        connection, place = await self.connect_to_master(self.round_trips)
        try:
            if self._greet is not None:
                await self._greet(connection)
            self._refuse_old_master(place)
        except BaseException:
            connection.end("this node cannot use it")
            raise
        self.place = place
        for follow in self._followers:
            follow(place)
        return connection

    def add_follower(self, follow: Callable[[Place], None]) -> None:
        """Call something with the place of the master whenever the link has connected to it."""
        self._followers.append(follow)

    def remove_follower(self, follow: Callable[[Place], None]) -> None:
        if follow in self._followers:
            self._followers.remove(follow)

    async def connect_to_master(
        self, round_trips: RoundTrips, on_push: Callable[[list[Any]], None] | None = None
    ) -> tuple[Connection, Place]:
        """Return a connection that is logged in at the master, and the place of it.

        Raises: StoreUnavailable; UnusableStore.
        """
        place = await self._masters.find()
        connection = await dial(place, self._tls, lambda: Connection(round_trips, on_push))
        try:
            self.server = await say_hello(
                connection,
                name=self._name,
                username=self.url.username,
                password=self.url.password,
                database=self.url.database,
            )
            _refuse_other_kinds(self.server)
            if not self.server.is_master:
                raise StoreUnavailable(
                    f"the store at {place} is a replica: name its master, or its Sentinels by"
                    " redis+sentinel://host:26379/SERVICE"
                )
            self._refuse_old_master(place)
        except BaseException:
            connection.end("this node cannot use it")
            raise
        return connection, place

    def _refuse_old_master(self, place: Place) -> None:
        if not self._masters.is_master(place):
            raise StoreUnavailable(f"the store at {place} is not the master any more")

    def _leave_old_master(self) -> None:
        if self.place is not None and not self._masters.is_master(self.place):
            self.reconnect("there is another master")
        self._keeper.hurry()

    def _go_on(self, connection: Connection) -> None:
        self.connections += 1
        connection.on_change = self._look
        self._look()

    def _look(self) -> None:
        """Note whether the connection takes calls, and give it those that wait."""
        connection = self._keeper.connection
        if connection is None or connection.is_over:
            self._open = None
            self._keeper.note_down()
            if connection is not None:
                self._take_back(connection)
            return
        while self._waiting and connection.can_take:
            waiting = self._waiting.popleft()
            self._waiting_bytes -= len(waiting.packed)
            if not waiting.pending.done():
                connection.send(waiting.packed, waiting.pending)
        self._open = connection if connection.can_take and not self._waiting else None

    # Calls that wait.

    def _wait(self, packed: bytes, pending: Pending) -> None:
        loop = asyncio.get_running_loop()
        if self._is_closed:
            loop.call_soon(fail, pending, "this node closes its store", False)
        elif (
            len(self._waiting) >= self._max_waiting_calls
            or self._waiting_bytes + len(packed) > self._max_waiting_bytes
        ):
            loop.call_soon(fail, pending, "too many calls wait for the store of channels", False)
        else:
            self._waiting.append(_Waiting(packed, pending, loop.time() + WAIT_S))
            self._waiting_bytes += len(packed)
            if self._timer is None:
                self._timer = loop.call_at(self._waiting[0].deadline, self._give_up)

    def _take_back(self, connection: Connection) -> None:
        """Let calls that a connection could not send wait for the next one, before later calls."""
        loop = asyncio.get_running_loop()
        deadline = self._waiting[0].deadline if self._waiting else loop.time() + WAIT_S
        for packed, pending in reversed(connection.take_unsent()):
            self._waiting.appendleft(_Waiting(packed, pending, deadline))
            self._waiting_bytes += len(packed)
        if self._waiting and self._timer is None:
            self._timer = loop.call_at(deadline, self._give_up)

    def _give_up(self) -> None:
        """Fail the calls that have waited too long."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        while self._waiting and self._waiting[0].deadline <= now:
            waiting = self._waiting.popleft()
            self._waiting_bytes -= len(waiting.packed)
            fail(waiting.pending, "the store of channels cannot be reached", False)
        self._timer = (
            loop.call_at(self._waiting[0].deadline, self._give_up) if self._waiting else None
        )


def _refuse_other_kinds(server: Server) -> None:
    if server.mode == "sentinel":
        raise UnusableStore(
            "the store is a Sentinel: its URL is redis+sentinel://host:26379/SERVICE"
        )
    if server.mode == "cluster":
        raise UnusableStore("the store is a cluster, which is not supported yet")
