"""The link of this node to a master of the store: calls that survive the loss of a connection."""

import asyncio
import math
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, NamedTuple

from megaphone.errors import StoreUnavailable
from megaphone.store.redis.connection import (
    Argument,
    Calls,
    Connection,
    Pending,
    Place,
    Reply,
    Server,
    dial,
    fail,
    pack,
    say_hello,
)
from megaphone.store.redis.counts import StoreCounts
from megaphone.store.redis.errors import NoAnswer, UnusableStore
from megaphone.store.redis.keeper import Keeper
from megaphone.store.redis.masters import Masters, masters_of
from megaphone.store.redis.url import StoreUrl, Topology

WAIT_S = 2.0
"""How long a call waits for a connection."""
MAX_WAITING_CALLS = 20_000
MAX_WAITING_BYTES = 33_554_432
DOUBTFUL_S = 1.0
"""A master that answered so shortly before this node learned that another one has replaced it, or
later, may have answered after that. One that is dead was silent for longer, because nobody replaces
it sooner."""


CLOSES = "this node closes its store"
TOO_MANY = "too many calls wait for the store of channels"


class _Waiting(NamedTuple):
    packed: bytes
    pending: Pending
    deadline: float


class Greeted(NamedTuple):
    """A new connection, on which no other call has been sent yet."""

    calls: Calls
    server: Server
    place: Place
    home: Calls
    """For calls with the keys of the whole store, which another master of a cluster may have."""


Greet = Callable[[Greeted], Awaitable[None]]


class Link:
    """A connection to a master of the store that is made again whenever it ends.

    Calls of one turn of the loop leave in one write, and are carried out and answered in the order
    in which they were made. A call ends within 4.5 seconds, whatever happens: WAIT_S for a
    connection, CALL_S for the answer, CHECK_S twice for the check of it.

    `greet` is called with each new connection before any other call is sent on it. If it raises,
    the connection is given up.
    """

    has_slots = False
    """Whether all keys of a command must be in one slot, and whether commands for different slots
    may be carried out in another order than that in which they were made."""
    is_sent_again = False
    """See `send`."""

    def __init__(
        self,
        url: StoreUrl,
        *,
        name: str,
        greet: Greet | None = None,
        masters: Masters | None = None,
        counts: StoreCounts | None = None,
        max_waiting_calls: int = MAX_WAITING_CALLS,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        """`name` is the name of the connection at the server, without spaces. `masters` says which
        server to connect to, if the URL does not.

        Raises: UnusableStore.
        """
        self._tls = tls_of(url)
        self.url = url
        self.server: Server | None = None
        """What the server said of itself when the link last connected."""
        self.connections = 0
        """How many connections the link has made."""
        self.counts = counts or StoreCounts()
        """What is counted of the calls, also those of other links that share the object."""
        self.tag = "0"
        """The hash tag of a key of the store that this master has. Another one may have others."""
        self.on_tag_moved: Callable[[], None] = lambda: None
        """To be called when another master has it."""
        self.on_down: Callable[[], None] = lambda: None
        """Called when a connection has ended."""
        self.replaced_at = -math.inf
        """When this node learned last that a server has replaced a master, as `time.monotonic`
        counts."""
        self.on_old_answers: Callable[[], None] = lambda: None
        """Called when the link has left a server that may have answered calls when another one was
        the master already. What these calls wrote is lost."""
        self._name = name
        self._greet = greet
        self._masters = masters or masters_of(url, self._tls)
        self._masters.on_switch = self._leave_old_master
        self.place: Place | None = None
        """The server to which the link connected last."""
        self._keeper = Keeper(
            self._masters.name, self._connect, on_up=self._go_on, on_down=lambda: self.on_down()
        )
        self._latest: Connection | None = None
        """The connection to `place`, whether it has ended or not."""
        self._left: Place | None = None
        """The server that was replaced last, as far as this node knows."""
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

    def start_behind(self) -> None:
        """Connect from now on, and do not wait for the first connection."""
        self._keeper.start_behind()

    def masters(self) -> Sequence["Link"]:
        """Return the links to all masters."""
        return [self]

    def master_of(self, key: str) -> "Link":
        """Return the link to the master of a key."""
        return self

    @property
    def is_up(self) -> bool:
        connection = self._keeper.connection
        return connection is not None and not connection.is_over

    @property
    def heard_at(self) -> float:
        """When the master answered last, as `time.monotonic` counts."""
        return -math.inf if self._latest is None else self._latest.heard_at

    @property
    def away_s(self) -> float:
        """For how long the master has said nothing although it was asked, or could not be asked."""
        return self._keeper.away_s

    def call(self, *args: Argument) -> asyncio.Future[Reply]:
        """Send a command. Never waits. If the future is cancelled, the command may still be sent.

        The future fails with StoreUnavailable: with `may_have_happened`, if the connection ended or
        CALL_S went by before the answer; without, if there was no connection for WAIT_S, or if too
        many calls wait. It fails with an exception of `megaphone.store.redis.errors` if the store
        answers an error.
        """
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.send(pack(args), future)
        return future

    def send(self, packed: bytes, pending: Pending, key: str = "") -> "Link":
        """Do the same as `call` for a command that is packed already, and that has a key, if one is
        named. `pending` gets the answer, or the exception, in a later turn of the loop.

        Returns: something whose `link` is the link by which the command was sent last, and whose
            `is_sent_again` says whether a master has refused it before.
        """
        connection = self._open
        if connection is not None:
            connection.send(packed, pending)
        else:
            self._wait(packed, pending)
        return self

    @property
    def link(self) -> "Link | None":
        return self

    def take_waiting(self) -> Sequence[Pending]:
        """Remove the calls that wait for a connection, and return who waits, in order."""
        taken = [one.pending for one in self._waiting]
        self._waiting.clear()
        self._waiting_bytes = 0
        return taken

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
            refuse(self._waiting.popleft().pending, CLOSES, None)
        if self._timer is not None:
            self._timer.cancel()

    # Connections.

    async def _connect(self) -> Connection:
        connection, place = await self.connect_to_master(self.counts)
        try:
            if self._greet is not None:
                assert self.server is not None
                await self._greet(Greeted(connection, self.server, place, connection))
            self._refuse_old_master(place)
        except BaseException:
            connection.end("this node cannot use it")
            raise
        if self.place not in (None, place):
            self._note_left(self.place)
        self.place, self._left, self._latest = place, None, connection
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
        self, counts: StoreCounts, on_push: Callable[[list[Any]], None] | None = None
    ) -> tuple[Connection, Place]:
        """Return a connection that is logged in at the master, and the place of it.

        Raises: StoreUnavailable; UnusableStore.
        """
        place = await self._masters.find()
        is_replaced = self._masters.question_about(place)
        connection, server = await connect_to(
            place,
            self.url,
            self._tls,
            self._name,
            lambda: Connection(counts, on_push, is_replaced),
        )
        self.server = server
        try:
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
            self._note_left(self.place)
        self._keeper.hurry()

    def _note_left(self, place: Place | None) -> None:
        self.replaced_at = monotonic()
        if place != self._left and self.heard_at > monotonic() - DOUBTFUL_S:
            self.on_old_answers()
        self._left = place

    def _go_on(self, connection: Connection) -> None:
        if self.connections:
            self.counts.reconnects += 1
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
            loop.call_soon(refuse, pending, CLOSES, None)
        elif (
            len(self._waiting) >= self._max_waiting_calls
            or self._waiting_bytes + len(packed) > self._max_waiting_bytes
        ):
            loop.call_soon(refuse, pending, TOO_MANY, NoAnswer.BUSY)
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
            refuse(waiting.pending, "the store of channels cannot be reached", NoAnswer.UNREACHABLE)
        self._timer = (
            loop.call_at(self._waiting[0].deadline, self._give_up) if self._waiting else None
        )


def refuse(pending: Pending, why: str, kind: str | None) -> None:
    """Fail a call that was not sent."""
    fail(pending, why, kind, may_have_happened=False)


def tls_of(url: StoreUrl) -> ssl.SSLContext | None:
    """Return what connections need for TLS; None if they have none. Raises: UnusableStore."""
    try:
        return url.make_tls()
    except ValueError as error:
        raise UnusableStore(str(error)) from None


async def connect_to(
    place: Place,
    url: StoreUrl,
    tls: ssl.SSLContext | None,
    name: str,
    make: Callable[[], Connection],
    *,
    may_be_replica: bool = False,
) -> tuple[Connection, Server]:
    """Return a connection that is logged in at a server of the kind that a URL names, which must be
    a master unless it may be a replica.

    Raises: StoreUnavailable; UnusableStore.
    """
    connection = await dial(place, tls, make)
    try:
        server = await say_hello(
            connection,
            name=name,
            username=url.username,
            password=url.password,
            database=url.database,
        )
        _refuse_other_kinds(server, url, place)
        if not (server.is_master or may_be_replica):
            raise StoreUnavailable(_why_no_replica(url, place))
    except BaseException:
        connection.end("this node cannot use it")
        raise
    return connection, server


def _refuse_other_kinds(server: Server, url: StoreUrl, place: Place) -> None:
    if server.mode == "sentinel":
        raise UnusableStore(
            "the store is a Sentinel: its URL is redis+sentinel://host:26379/SERVICE"
        )
    in_cluster = url.topology is Topology.CLUSTER
    if in_cluster != (server.mode == "cluster"):
        raise UnusableStore(
            f"the store at {place} is no cluster: its URL is redis://host:6379"
            if in_cluster
            else "the store is a cluster: its URL is redis+cluster://host:6379,host2:6379"
        )


def _why_no_replica(url: StoreUrl, place: Place) -> str:
    text = f"the store at {place} is a replica"
    if url.topology is Topology.CLUSTER:
        return text
    return text + ": name its master, or its Sentinels by redis+sentinel://host:26379/SERVICE"
