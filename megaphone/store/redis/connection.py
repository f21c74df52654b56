"""One connection to a server: calls in order, several in one write, and what breaks them."""

import asyncio
import logging
import math
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import islice
from time import monotonic
from typing import Any, Protocol, cast

from hiredis import HiredisError, PushNotification, Reader, pack_command

from megaphone.errors import StoreUnavailable
from megaphone.model import Endpoint
from megaphone.store.redis.counts import StoreCounts
from megaphone.store.redis.errors import (
    NoAnswer,
    NoPermission,
    ReadOnly,
    ReplyError,
    UnusableStore,
    error_of,
)

log = logging.getLogger(__name__)

Reply = Any
"""What a server answers: bytes, int, float, bool, None, or a list, set or dict of these."""
Argument = bytes | str | int
Place = Endpoint | str
"""Where a server is: an endpoint, or the path of a unix socket."""
IsReplaced = Callable[[], Awaitable[bool]]
"""Asks others whether another server has replaced a certain master. Returns False if nobody says
so, and raises nothing."""

CONNECT_S = 2.0
"""How long it may take until the connection is there, with TLS."""
CALL_S = 2.0
"""How long a call may take."""
IDLE_S = 0.25
"""An idle server is sent a PING after this time."""
DOUBTED_S = 0.8
"""A server that was silent for longer may have stood still, and may have been replaced meanwhile.
Nobody replaces a master sooner, if the store has the least timeout that docs/store.md allows."""
CONFIRMED_WITHIN_S = 1.0
"""How long the others have to say that it was replaced. If none says so by then, the server is
believed."""
SILENCE_S = 3.0
"""A server that says nothing for so long, though it is asked, is gone."""
CHECK_S = 0.25
"""How often the limits above are checked. One check is for all calls."""
COUNTED_S = 1.0
"""How much of the time between two checks counts as silence of the server, at most. In the rest it
was this process that stood still."""
MAX_UNSENT_BYTES = 262_144
"""The connection takes no more calls while so many bytes are not with the kernel."""
MAX_UNDER_WAY = 20_000
"""The connection takes no more calls while it has so many without an answer."""
MIN_VERSION = {"redis": (7, 0), "valkey": (7, 2)}

UNHANDLED = "this node could not handle the answer of the store"
_NOTHING = object()


class Pending(Protocol):
    """Gets the answer to a call. A future does, and so does whoever wants no future: it is called
    among the answers of other calls, and must neither raise nor end the connection."""

    def done(self) -> bool:
        """Return whether an answer is not wanted any more."""

    def set_result(self, reply: Reply, /) -> None: ...

    def set_exception(self, error: Exception, /) -> None: ...


class Calls(Protocol):
    """Whatever calls can be made on."""

    def call(self, *args: Argument) -> asyncio.Future[Reply]: ...


@dataclass(frozen=True, slots=True)
class Server:
    """What a server says of itself."""

    kind: str
    """redis or valkey"""
    version: str
    mode: str
    """standalone, sentinel or cluster"""
    is_master: bool

    def __str__(self) -> str:
        return f"{self.kind} {self.version}"


class Connection(asyncio.Protocol):
    """A connection to a server. It ends once, and for good.

    Calls of one turn of the loop leave in one write. When the connection ends, calls whose answers
    are missing fail with StoreUnavailable and `may_have_happened`. Calls that were not written yet
    did not happen: the owner may take them back by `take_unsent`, else they fail without the flag.

    `is_replaced`, if it is given, asks others whether another server has replaced this one. It is
    asked about the first answer, and about an answer after DOUBTED_S of silence: a master that goes
    on after it stood still carries out calls until it learns that it was replaced. If it was,
    nobody gets its answer, and the connection ends.
    """

    def __init__(
        self,
        counts: StoreCounts,
        on_push: Callable[[list[Any]], None] | None = None,
        is_replaced: IsReplaced | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.on_change: Callable[[], None] | None = None
        """Called when `can_take` may have changed, in the middle of any call of the connection."""
        self.ended: asyncio.Future[str] = loop.create_future()
        """The reason, when the connection has ended."""
        self.closed: asyncio.Future[None] = loop.create_future()
        """Done when the socket is closed, some time after the end."""
        self.is_retired = False
        """Whether the server is a replica: what was written is to be answered, and nothing more."""
        self._is_paused = False
        self._is_full = False
        self._seconds = counts.seconds
        self._on_push = on_push
        self._transport: asyncio.Transport | None = None
        self._reader = Reader(replyError=error_of, notEnoughData=_NOTHING)
        self._calls: deque[Pending] = deque()
        """The calls without an answer, in their order; at the end those not written yet."""
        self._unsent: list[bytes] = []
        self._unsent_bytes = 0
        self._flush_is_due = False
        self._sent = 0
        """How many calls were ever written."""
        self._writes: deque[tuple[int, float]] = deque()
        """For each write with calls that are not answered: `_sent` after it, and its time."""
        self._heard_at = self._checked_at = self._silent_since = monotonic()
        self._is_replaced = is_replaced
        self._believed_s = math.inf if is_replaced is None else -math.inf
        """After how much silence what the server says is handled at once."""
        self._doubted: list[bytes] = []
        """What it has said after more."""
        self._confirming: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = loop
        self._call_soon = loop.call_soon
        self._make_future = loop.create_future

    @property
    def is_over(self) -> bool:
        """Whether the connection takes no more calls, now or later."""
        return self.is_retired or self.ended.done()

    @property
    def can_take(self) -> bool:
        """Whether its owner is to make calls now. Nothing enforces that."""
        return not (self._is_paused or self._is_full or self.is_over)

    @property
    def heard_at(self) -> float:
        """When the server said something last that was handled, as `time.monotonic` counts."""
        return self._heard_at

    @property
    def silent_s(self) -> float:
        """For how long the server had said nothing at the last check, although it was asked; 0.0 if
        it is not asked now. Hardly any time in which this process stood still is in it."""
        return self._checked_at - self._silent_since if self._writes else 0.0

    def call(self, *args: Argument) -> asyncio.Future[Reply]:
        """Send a command. A future that is cancelled does not take the command back."""
        packed: bytes = pack_command(args)  # type: ignore[arg-type]
        future = self._make_future()
        self.send(packed, future)
        return future

    def send(self, packed: bytes, pending: Pending) -> None:
        """Send a command that is packed already. `pending` gets the answer in a later turn."""
        self._calls.append(pending)
        self._unsent.append(packed)
        self._unsent_bytes += len(packed)
        if not self._flush_is_due:
            self._flush_is_due = True
            self._call_soon(self._flush)
        elif self._unsent_bytes > MAX_UNSENT_BYTES:
            self._write()

    def tell(self, *args: Argument) -> None:
        """Send a command at once that is answered by pushes only."""
        assert self._transport is not None
        self._transport.write(pack(args))

    def _flush(self) -> None:
        self._flush_is_due = False
        if self._unsent:
            self._write()

    def _write(self) -> None:
        if self.ended.done():
            for _, pending in self.take_unsent():
                fail(
                    pending,
                    "the connection to the store of channels has ended",
                    NoAnswer.BROKEN,
                    may_have_happened=False,
                )
            return
        assert self._transport is not None
        data = self._unsent
        self._sent += len(data)
        self._writes.append((self._sent, monotonic()))
        self._unsent = []
        self._unsent_bytes = 0
        self._transport.write(b"".join(data))
        if len(self._calls) > MAX_UNDER_WAY and not self._is_full:
            self._is_full = True
            self._tell_owner()

    def take_unsent(self) -> list[tuple[bytes, Pending]]:
        """Remove the calls that were not written, and return them."""
        data, self._unsent, self._unsent_bytes = self._unsent, [], 0
        calls = [self._calls.pop() for _ in data]
        return list(zip(data, reversed(calls), strict=True))

    def end(self, reason: str) -> None:
        """End the connection at once."""
        if self.ended.done():
            return
        self.ended.set_result(reason)
        assert self._timer is not None
        assert self._transport is not None
        self._timer.cancel()
        if self._confirming is not None:
            self._confirming.cancel()
        self._transport.abort()
        self._tell_owner()
        for _ in range(len(self._calls) - len(self._unsent)):
            fail(
                self._calls.popleft(),
                "the connection to the store of channels broke",
                NoAnswer.BROKEN,
                may_have_happened=True,
            )
        self._writes.clear()
        self.on_change = None

    def _tell_owner(self) -> None:
        if self.on_change is not None:
            self.on_change()

    def _check(self) -> None:
        """Fail calls that take too long, ask an idle server whether it is there, and end the
        connection if it is not. If this process stood still, both kinds of loops read what has come
        before they call this."""
        # Not the clock of the loop: that of uvloop stands still within a turn, and counts in ms.
        now = monotonic()
        self._timer = self._loop.call_later(CHECK_S, self._check)
        self._count_silence(now)
        if self._writes:
            self._check_answers(now)
        elif now - self._heard_at >= IDLE_S:
            self.call("PING").add_done_callback(lambda done: done.exception())

    def _count_silence(self, now: float) -> None:
        heard_at = now if self._doubted else self._heard_at
        stood_still_s = max(0.0, now - self._checked_at - COUNTED_S)
        self._silent_since = min(now, max(heard_at, self._silent_since) + stood_still_s)
        self._checked_at = now

    def _check_answers(self, now: float) -> None:
        if self.silent_s >= SILENCE_S and now - self._writes[0][1] >= CALL_S - CHECK_S:
            self.end(f"the server was silent for {self.silent_s:.1f} s")
            return
        late = 0
        for sent, at in self._writes:
            if now - at < CALL_S:
                break
            late = sent
        answered = self._sent - len(self._calls) + len(self._unsent)
        for pending in list(islice(self._calls, max(0, late - answered))):
            text = "the store of channels took too long"
            fail(pending, text, NoAnswer.LATE, may_have_happened=True)

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=MAX_UNSENT_BYTES)
        self._timer = self._loop.call_later(CHECK_S, self._check)

    def data_received(self, data: bytes) -> None:
        if self.ended.done():
            return
        now = monotonic()
        if now - self._heard_at > self._believed_s:
            self._doubt(data)
        else:
            self._handle(data, now)

    def _doubt(self, data: bytes) -> None:
        self._doubted.append(data)
        if self._confirming is None:
            self._confirming = self._loop.create_task(self._confirm())

    async def _confirm(self) -> None:
        """Handle what the server has said, or end the connection."""
        assert self._is_replaced is not None
        try:
            async with asyncio.timeout(CONFIRMED_WITHIN_S):
                is_replaced = await self._is_replaced()
        except TimeoutError:
            is_replaced = False
        except Exception:
            log.exception("this node could not ask whether the master was replaced")
            is_replaced = False
        self._confirming = None
        data, self._doubted = b"".join(self._doubted), []
        if is_replaced:
            self.end("another server has replaced it")
        else:
            self._believed_s = DOUBTED_S
            self._handle(data, monotonic())

    def _handle(self, data: bytes, now: float) -> None:
        self._heard_at = now
        reader, calls = self._reader, self._calls
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _NOTHING:
                if type(reply) is PushNotification:
                    self._push(reply)
                    continue
                if not calls:
                    self.end(f"the server says what it was not asked: {reply}")
                    return
                pending = calls.popleft()
                if isinstance(reply, Exception):
                    self._fail(pending, reply)
                elif not pending.done():
                    try:
                        pending.set_result(reply)
                    except Exception:
                        log.exception("an answer of the store could not be handled")
                        fail(pending, UNHANDLED, NoAnswer.UNHANDLED, may_have_happened=True)
        except HiredisError as error:
            self.end(f"the server does not speak its protocol: {error}")
            return
        writes = self._writes
        answered = self._sent - len(calls) + len(self._unsent)
        while writes and writes[0][0] <= answered:
            self._seconds.add(now - writes.popleft()[1])
        if self.is_retired and not writes:
            self.end("the server is a replica now")
        elif self._is_full and len(calls) <= MAX_UNDER_WAY // 2:
            self._is_full = False
            self._tell_owner()

    def _push(self, push: list[Any]) -> None:
        if self._on_push is None:
            return
        try:
            self._on_push(push)
        except Exception:
            log.exception("a message from the store could not be handled")

    def _fail(self, pending: Pending, error: Exception) -> None:
        if not pending.done():
            try:
                pending.set_exception(error)
            except Exception:
                log.exception("an answer of the store could not be handled")
                fail(pending, UNHANDLED, NoAnswer.UNHANDLED, may_have_happened=True)
        if isinstance(error, ReadOnly) and not self.is_retired:
            self.is_retired = True
            self._tell_owner()

    def pause_writing(self) -> None:
        self._is_paused = True
        self._tell_owner()

    def resume_writing(self) -> None:
        self._is_paused = False
        self._tell_owner()

    def connection_lost(self, error: Exception | None) -> None:
        self.end("the server closed it" if error is None else f"it broke: {error}")
        self.closed.set_result(None)

    async def aclose(self) -> None:
        """End the connection, and wait until its socket is closed."""
        self.end("this node closed it")
        await self.closed


def pack(args: tuple[Argument, ...]) -> bytes:
    packed: bytes = pack_command(args)  # type: ignore[arg-type]
    return packed


def fail(pending: Pending, why: str, kind: str | None, *, may_have_happened: bool) -> None:
    """Fail a call with `NoAnswer`, if it has no result yet. Never raises: other calls are to fail
    too."""
    if pending.done():
        return
    if may_have_happened:
        why += ": the call may have happened"
    try:
        pending.set_exception(NoAnswer(why, kind=kind, may_have_happened=may_have_happened))
    except Exception:
        log.exception("a failed call to the store could not be handled")


async def dial(
    place: Place,
    tls: ssl.SSLContext | None,
    make: Callable[[], Connection],
) -> Connection:
    """Connect to a server. Raises: StoreUnavailable."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(CONNECT_S):
            if isinstance(place, str):
                _, connection = await loop.create_unix_connection(make, place)
            else:
                _, connection = await loop.create_connection(make, place.host, place.port, ssl=tls)
    except TimeoutError:
        raise StoreUnavailable(f"the store at {place} does not answer") from None
    except ssl.SSLCertVerificationError as error:
        raise UnusableStore(
            f"the certificate of the store at {place} is not trusted: {error.verify_message}"
        ) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise StoreUnavailable(f"the store at {place} cannot be reached: {reason}") from None
    return connection


async def say_hello(
    connection: Connection,
    *,
    name: str,
    username: str | None,
    password: str | None,
    database: int = 0,
) -> Server:
    """Log in, name the connection and choose the database.

    Raises: UnusableStore; StoreUnavailable.
    """
    hello: list[Argument] = ["HELLO", 3]
    if password is not None:
        hello += ["AUTH", username or "default", password]
    try:
        async with asyncio.timeout(CALL_S):
            answer = await connection.call(*hello, "SETNAME", name)
            if database:
                await connection.call("SELECT", database)
    except TimeoutError:
        raise StoreUnavailable from None
    except StoreUnavailable:
        if connection.ended.done():
            reason = connection.ended.result()
            raise StoreUnavailable(f"the connection to the store ended: {reason}") from None
        raise
    except NoPermission as error:
        raise UnusableStore(_why_not_let_in(str(error))) from None
    except ReplyError as error:
        if "unknown command" in str(error).lower():
            raise UnusableStore(
                "the store is too old: Redis 7.0 or later, or Valkey 7.2 or later, is needed"
            ) from None
        if "DB index" in str(error):
            raise UnusableStore(
                f"the store has no database {database}: its setting `databases` says how many"
            ) from None
        raise UnusableStore(f"the store refuses the connection: {error}") from None
    return _server_of(answer)


def _why_not_let_in(text: str) -> str:
    if text.startswith("WRONGPASS"):
        return "the store does not know this user with this password"
    if text.startswith("NOAUTH"):
        return "the store wants a password: put it into its URL"
    return f"the store's user may not do what is needed: {text}"


def _server_of(answer: Any) -> Server:
    if not isinstance(answer, dict):
        raise UnusableStore("the store is neither Redis nor Valkey")
    version = answer[b"version"].decode()
    server = Server(
        kind=answer[b"server"].decode(),
        version=version,
        mode=answer[b"mode"].decode(),
        is_master=answer.get(b"role") == b"master",
    )
    if server.mode != "sentinel":
        _refuse_too_old(server)
    return server


def _refuse_too_old(server: Server) -> None:
    needed = MIN_VERSION.get(server.kind, (7, 0))
    found = tuple(int(part) for part in server.version.split(".")[:2])
    if found < needed:
        raise UnusableStore(
            f"the store is {server}: Redis 7.0 or later, or Valkey 7.2 or later, is needed"
        )
