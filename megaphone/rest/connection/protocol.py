"""One HTTP connection, from its first byte to its last.

A connection is in one of three states. While it is *ours*, each request is offered to the lane
(`megaphone.rest.lane`), which answers the most frequent calls at once. A request that the lane does
not answer is *lent* with its connection to aiohttp, until aiohttp has answered it. If it is not
certain where a request ends, the connection stays lent for ever: what comes next could otherwise be
read in two ways. When a read begins, the connection becomes a *stream*.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Container, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import Any, Final, Protocol, TypeAlias, cast

from aiohttp import web

from megaphone.core.access import Names, Peer
from megaphone.core.budget import Budget
from megaphone.core.open_read import OpenRead
from megaphone.core.tasks import within
from megaphone.core.writing import Write
from megaphone.errors import LimitExceeded
from megaphone.listen.sockets import BACKLOG
from megaphone.observe.calls import INTERNAL, FaceCalls
from megaphone.rest.connection.answer_bytes import internal_error
from megaphone.rest.connection.encryption import EncryptedTransport
from megaphone.rest.connection.guest import Guest
from megaphone.rest.connection.limits import (
    FULL,
    FULL_ADDRESS,
    REFUSAL,
    REFUSAL_OF_ADDRESS,
    Admission,
    Connections,
)
from megaphone.rest.connection.stream import EventStream, Framing
from megaphone.rest.connection.turn import Turn

log = logging.getLogger(__name__)

HEADER_TIMEOUT_S = 75.0
"""How long a connection may be idle, and how long the headers of a request may take."""
SPARE_TIMEOUT_S = 1.0
"""The value of `HEADER_TIMEOUT_S` for a connection that the node serves for health probes only."""
BODY_WAIT_S = 1.0
"""How long the connection itself waits for the rest of a body. Then aiohttp gets what has arrived,
and applies its own limits of time."""
GUEST_STAYS_S = 1.0
"""How long the part of aiohttp stays after its last answer, because more such requests may come."""
LEAVING_IDLE_S = 20.0
"""How long a connection must be idle before a node that leaves closes it without an answer that
says so. A client could send a request at that very moment. Most clients close a connection
themselves that they have not used for 15 seconds."""
LEAVING_CHECK_S = 0.1
"""How often a node that leaves looks for connections that it may close."""
MAPPED: Final = "::ffff:"
UNREAD_BYTES = 65_536
"""While a request is being answered, the connection reads no more than this behind it."""


@dataclass(frozen=True, slots=True)
class Unfinished:
    """The bytes are the beginning of an ordinary request."""

    missing: int
    """How many more bytes it has."""


@dataclass(frozen=True, slots=True)
class Opened:
    """The request has opened a read."""

    head: bytes
    """The first bytes of the answer."""
    reader: OpenRead[Any]
    framing: Framing


Answered: TypeAlias = Iterator[bytes] | Opened | None
"""An answer in pieces, or a read."""


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The lane does not answer these bytes, and nothing has happened."""

    is_whole: bool
    """Whether the bytes are certainly exactly one request."""


@dataclass(frozen=True, slots=True)
class Later:
    """The request takes longer."""

    call: "Coroutine[Any, Any, Answered]"
    """Returns None if the lane does not answer the request after all, and nothing has happened."""


@dataclass(slots=True, eq=False)
class Begun:
    """The request was begun. Its outcome comes in a later turn of the event loop."""

    on_outcome: "Callable[[Outcome], None] | None" = None
    """What the connection does with it."""

    def conclude(self, outcome: "Outcome") -> None:
        if self.on_outcome is not None:
            self.on_outcome(outcome)


class Failed:
    """The broker itself has failed."""

    # No dataclass, because mypyc does not find the type of such an attribute.
    __slots__ = ("error",)

    def __init__(self, error: Exception) -> None:
        self.error = error


Outcome: TypeAlias = bytes | Unfinished | Opened | Unanswered | Later | Begun | Failed | Write
"""What the lane does with some bytes. Bytes are the answer. A `Write` has not been made yet: see
`Answering.complete`."""


class Answering(Protocol):
    """What a connection needs of the lane."""

    def answer(self, data: bytes, names: Names) -> Outcome:
        """Answer the request that these bytes are, or do nothing at all. `names` are those in the
        certificate of the client."""

    def complete(self, outcomes: list[Outcome], began_at: float) -> None:
        """Make or begin each `Write` in a list, and put another outcome in its place. `began_at` is
        when the turn of the requests began, as `time.monotonic` counts."""


class LaneAccess(Protocol):
    """What a connection needs of the access log."""

    def answered(self, data: bytes, answer: bytes, seconds: float, ip: str, names: Names) -> None:
        """Log a call that the lane has answered. `data` is the request, and `answer` at least the
        first part of the answer; empty if the client has gone before it."""


@dataclass(slots=True)
class Host:
    """What all connections of a face share."""

    server: web.Server
    """Makes the requests and calls the handlers of aiohttp."""
    connections: Connections
    budget: Budget
    probe_paths: Container[str]
    lane: Answering | None
    """None if aiohttp answers every request."""
    calls: FaceCalls
    """Counts the calls. The lane counts those that it answers itself."""
    tls: Callable[[], ssl.SSLContext] | None = None
    """Returns what a new connection needs for TLS; None if the face is plain."""
    access: LaneAccess | None = None
    """Logs the calls that the lane answers; None if nobody wants that."""
    turn: Turn = field(init=False)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    open: set["Connection"] = field(default_factory=set)
    one_has_closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever a connection is closed."""
    is_closing: bool = False
    """Whether each connection ends with its next answer."""
    is_leaving: bool = False
    """Whether each connection ends with its next answer, which says so."""
    answered: int = 0
    """How many requests the lane has answered."""

    def __post_init__(self) -> None:
        self.turn = Turn(self.loop, self._ask)

    def _ask(self, connections: "list[Connection]", requests: list[bytes]) -> list[Outcome]:
        """Offer the requests of a turn to the lane. Returns: what it does with each."""
        assert self.lane is not None
        began_at = monotonic()
        outcomes: list[Outcome] = []
        for number, connection in enumerate(connections):
            try:
                outcomes.append(self.lane.answer(requests[number], connection.names))
            except Exception as error:
                self.calls.other.ended(INTERNAL, monotonic() - began_at)
                outcomes.append(Failed(error))
        try:
            self.lane.complete(outcomes, began_at)
        except Exception as error:
            return [self._failed(one, error, began_at) for one in outcomes]
        return outcomes

    def _failed(self, outcome: Outcome, error: Exception, began_at: float) -> Outcome:
        """Return what becomes of a request, because an error has ended the writes of its turn."""
        if not isinstance(outcome, Write):
            return outcome
        self.calls.write.ended(INTERNAL, monotonic() - began_at)
        return Failed(error)

    async def serve(self, listening: socket.socket) -> asyncio.Server:
        """Serve each connection to a socket, within the limit of `connections`.

        Beyond that limit only requests for `probe_paths` are served.
        """
        return await self.loop.create_server(
            lambda: protocol_of(self), sock=listening, backlog=BACKLOG
        )

    async def leave(self) -> None:
        """Let every connection end without a refused request, and wait until it has.

        Open reads end after the present batch. Other connections end with their next answer, which
        tells the client, or when they have been idle for a while.
        """
        self.is_leaving = True
        checks_without_any = 0
        while checks_without_any < 2:  # one may be accepted already that is not open yet
            checks_without_any = 0 if self.open else checks_without_any + 1
            idle_since = self.loop.time() - LEAVING_IDLE_S
            for connection in list(self.open):
                connection.leave(idle_since)
            await asyncio.sleep(LEAVING_CHECK_S)

    async def close(self, grace_s: float) -> None:
        """Close idle connections at once, and wait for the others to end.

        Resets those that are still open after `grace_s`.
        """
        self.is_closing = True
        self.turn.answer_requests()
        for connection in list(self.open):
            connection.close_if_idle()
        await within(grace_s, self._until_all_have_closed())
        for connection in list(self.open):
            connection.abort()

    async def _until_all_have_closed(self) -> None:
        while self.open:
            self.one_has_closed.clear()
            await self.one_has_closed.wait()


def protocol_of(host: Host) -> asyncio.Protocol:
    """Return the protocol of a new connection for an event loop."""
    connection = cast("asyncio.Protocol", Connection(host))
    if host.tls is None:
        return connection
    encrypted = EncryptedTransport(host.tls(), connection, host.connections.handshake_failed)
    return cast("asyncio.Protocol", encrypted)


def ip_of(transport: asyncio.BaseTransport) -> str:
    """Return the IP address of the other end; empty for a Unix socket."""
    address = transport.get_extra_info("peername")
    # Where one socket accepts both families, the address of IPv4 comes as one of IPv6.
    return address[0].removeprefix(MAPPED) if isinstance(address, tuple) else ""


class Connection:
    """Serves one connection. The module explains its states.

    It has all methods of `asyncio.Protocol`, but is no subclass, so that it can be compiled.
    """

    __slots__ = (
        "_asked_at",
        "_encrypted",
        "_guest",
        "_held",
        "_host",
        "_idle_s",
        "_idle_timer",
        "_is_asking",
        "_is_begun",
        "_is_deaf",
        "_is_lent_for_ever",
        "_is_paused",
        "_missing",
        "_network",
        "_resumed",
        "_stream",
        "_task",
        "_transport",
        "_used_at",
        "_wait_timer",
        "names",
    )

    def __init__(self, host: Host) -> None:
        self._host = host
        self._asked_at = 0.0
        """When the request came that is being answered, if calls are logged."""
        self._transport: asyncio.Transport | None = None
        self._encrypted: EncryptedTransport | None = None
        """The transport, if the connection is encrypted."""
        self._network = ""
        """The network in which the connection counts; empty if it counts in none."""
        self.names: Names = ()
        """The names in the certificate of the client, once it has sent a request."""
        self._guest: Guest | None = None
        self._is_lent_for_ever = False
        self._is_paused = False
        """Whether the client leaves many bytes of answers unread."""
        self._resumed: asyncio.Future[None] | None = None
        """Resolved when `_is_paused` ends."""
        self._is_asking = False
        """Whether a request waits for its part of the turn."""
        self._is_deaf = False
        """Whether everything that the client sends is dropped."""
        self._stream: EventStream | None = None
        self._held: bytearray | None = None
        """The beginning of a request, or what came behind the request that is being answered."""
        self._missing = 0
        """How many more bytes the request in `_held` has."""
        self._wait_timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        """Answers a request of the lane that takes longer."""
        self._is_begun = False
        """Whether the outcome of a request comes in a later turn."""
        self._idle_s: float = HEADER_TIMEOUT_S
        self._idle_timer: asyncio.TimerHandle | None = None
        self._used_at = 0.0
        """When the lane has answered its last request, or the connection was made."""

    # -- Begin and end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)
        host = self._host
        admission, network = host.connections.admit(ip_of(transport))
        if admission is Admission.REFUSED or admission is Admission.REFUSED_ADDRESS:
            is_full = admission is Admission.REFUSED
            transport.write(REFUSAL if is_full else REFUSAL_OF_ADDRESS)
            transport.close()
            return
        self._transport = transport
        self._network = network
        if isinstance(transport, EncryptedTransport):
            self._encrypted = transport
        host.open.add(self)
        self._used_at = host.loop.time()
        self._idle_s = HEADER_TIMEOUT_S
        if admission is not Admission.SERVED:
            self._idle_s = SPARE_TIMEOUT_S
            self._is_lent_for_ever = True
            error = FULL if admission is Admission.SPARE else FULL_ADDRESS
            self._invited().serve_probes_only(host.probe_paths, error)
        self._idle_timer = host.loop.call_later(self._idle_s, self._close_when_idle)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._transport is None:
            return
        self._host.turn.answer_requests()
        self._transport = self._encrypted = None
        self._host.open.discard(self)
        self._host.one_has_closed.set()
        self._host.connections.leave(self._network)
        self._take_held()
        self._stop_idle_timer()
        # They refer to the connection, so that only a collection would free it.
        task, self._task = self._task, None
        guest, self._guest = self._guest, None
        if task is not None:
            task.cancel()
        if self._stream is not None:
            self._stream.lost()
        if guest is not None:
            guest.connection_lost(exc)

    def eof_received(self) -> bool:
        """Keep the connection for an answer that the lane still owes. A reader that closes its
        side has gone."""
        self._host.turn.answer_requests()
        if self._is_answering:
            self._is_deaf = True
        return self._is_answering

    def close_if_idle(self) -> None:
        """Close the connection, unless a request is being received or answered."""
        if self._transport is not None and not self._is_busy:
            self._transport.close()

    def leave(self, idle_since: float) -> None:
        """End an open read cleanly, or close the connection if it was idle since then."""
        if self._stream is not None:
            self._stream.end()
        elif self._last_used <= idle_since:
            self.close_if_idle()

    def abort(self) -> None:
        """Reset the connection."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def peer(self) -> Peer:
        """Who is at the other end."""
        transport = self._transport
        if transport is None:
            return Peer("")
        names = () if self._encrypted is None else self._encrypted.certificate_names
        return Peer(ip_of(transport), names)

    def count_error(self, code: str) -> None:
        """Count a request that is not valid HTTP, or that aiohttp could not serve."""
        self._host.calls.other.ended(code, 0.0)

    @property
    def _is_busy(self) -> bool:
        if self._stream is not None or self._is_answering or self._missing or self._is_asking:
            return True
        return self._guest is not None and not self._guest.is_waiting

    @property
    def _is_answering(self) -> bool:
        """Whether a request of an earlier turn is being answered, by the lane."""
        return self._is_begun or self._task is not None

    def _close_when_idle(self) -> None:
        now = self._host.loop.time()
        due = self._last_used + self._idle_s
        if self._is_busy:
            due = now + self._idle_s
        elif due <= now:
            self._idle_timer = None
            self.close_if_idle()
            return
        self._idle_timer = self._host.loop.call_at(due, self._close_when_idle)

    @property
    def _last_used(self) -> float:
        used_at = self._used_at
        return used_at if self._guest is None else max(used_at, self._guest.answered_at)

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    # -- Requests

    def data_received(self, data: bytes) -> None:
        if self._is_asking:
            self._host.turn.answer_requests()
        if self._stream is not None or self._is_deaf:
            return
        if self._transport is None or self._transport.is_closing():
            return
        if self._is_lent:
            # It may be half a request, of which only aiohttp knows how much is here.
            self._is_lent_for_ever = True
            self._lend(data)
        elif self._held is None:
            self._offer(data)
        else:
            self._add(data)

    @property
    def _is_lent(self) -> bool:
        """Whether what the client sends next is for aiohttp."""
        return self._is_lent_for_ever or not (self._guest is None or self._guest.is_waiting)

    def _offer(self, data: bytes) -> None:
        """Let the lane answer a request in its part of the turn, or lend it to aiohttp."""
        if self._host.lane is None:
            self._is_lent_for_ever = True
            self._lend(data)
        else:
            self._is_asking = True
            if self._host.access is not None:
                self._asked_at = monotonic()
            if self._encrypted is not None:  # the handshake is done
                self.names = self._encrypted.certificate_names
            self._host.turn.add_request(self, data)

    def answer(self, outcome: Outcome, data: bytes) -> None:
        """Do what the lane says about a request."""
        self._is_asking = False
        try:
            if isinstance(outcome, bytes):
                if self._host.access is not None:
                    self._log_call(data, outcome)
                self._answer(self._announcing(outcome))
            else:
                self._conclude(outcome, data)
        except Exception:
            log.exception("a connection failed")
            self.abort()

    def _conclude(self, outcome: Outcome, data: bytes) -> None:
        host = self._host
        if isinstance(outcome, Begun):
            self._held = bytearray()
            self._is_begun = True
            outcome.on_outcome = partial(host.turn.add_answer, self, data)
        elif isinstance(outcome, Failed):
            self._log_call(data, internal_error())
            self._answer_failure(outcome.error)
        elif isinstance(outcome, Unanswered):
            self._is_lent_for_ever = not outcome.is_whole
            self._lend(data)
        elif isinstance(outcome, Opened):
            host.answered += 1
            self._log_call(data, outcome.head)
            self.begin_stream(outcome.reader, outcome.framing, outcome.head)
        elif isinstance(outcome, Unfinished):
            self._hold(data, outcome.missing)
        elif isinstance(outcome, Later):
            self._held = bytearray()
            self._task = host.loop.create_task(self._answer_later(outcome.call, data))

    def _log_call(
        self, data: bytes, answer: bytes, former: asyncio.Transport | None = None
    ) -> None:
        """Log a call that the lane has answered, if that is wanted. `former` is the transport of a
        connection that is closed."""
        access, transport = self._host.access, self._transport or former
        if access is not None and transport is not None:
            seconds = monotonic() - self._asked_at
            access.answered(data, answer, seconds, ip_of(transport), self.names)

    def answer_late(self, outcome: Outcome, data: bytes) -> None:
        """Do what the lane says about a request that was begun."""
        self._is_begun = False
        if self._transport is None:
            return
        held, self._held = self._held, None
        behind = bytes(held) if held else b""
        self.answer(outcome, data)
        try:
            self._go_on(behind)
        except Exception:
            log.exception("a connection failed")
            self.abort()

    def _go_on(self, behind: bytes) -> None:
        """Take what has come behind a request that was answered in a later turn."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if len(behind) > UNREAD_BYTES:
            self._read_on()
        if behind:
            self.data_received(behind)

    def _announcing(self, answer: bytes) -> bytes:
        """Return an answer, or its first piece. If the node leaves, the answer says that the
        connection ends with it."""
        if not self._host.is_leaving or self._is_deaf:
            return answer
        self._is_deaf = True
        return answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)

    def _answer(self, answer: bytes) -> None:
        """Write an answer, or its last piece."""
        host, transport = self._host, self._transport
        host.answered += 1
        self._used_at = host.loop.time()
        if transport is not None:
            transport.write(answer)
            if host.is_closing or self._is_deaf:
                transport.close()

    def _answer_failure(self, error: Exception) -> None:
        """Answer that the broker itself has failed, and close the connection."""
        log.error("a request failed", exc_info=error)
        self._is_deaf = True
        self._answer(internal_error())

    async def _answer_later(self, call: Coroutine[Any, Any, Answered], data: bytes) -> None:
        """Answer the request `data` by a call that takes longer."""
        transport = self._transport
        try:
            try:
                answered = await call
            except asyncio.CancelledError:
                self._log_call(data, b"", transport)
                raise
            if isinstance(answered, Opened):
                self._log_call(data, answered.head)
                self._open_later(answered)
                return
            last = None if answered is None else await self._write_all_but_last(answered, data)
        except Exception as error:
            self._task = None
            self._log_call(data, internal_error())
            self._answer_failure(error)
            return
        self._task = None
        behind = self._take_held()
        if last is None:
            self._lend(data)
        else:
            self._answer(last)
        self._go_on(behind)

    def _open_later(self, opened: Opened) -> None:
        """Begin a read, unless its client has gone meanwhile."""
        self._task = None
        self._take_held()  # a reader sends nothing more
        if self._transport is None or self._is_deaf:
            opened.reader.close(clean=False)
            self.abort()
            return
        self._host.answered += 1
        self.begin_stream(opened.reader, opened.framing, opened.head)

    async def _write_all_but_last(self, pieces: Iterator[bytes], data: bytes) -> bytes:
        first = next(pieces)
        self._log_call(data, first)
        last = self._announcing(first)
        for piece in pieces:
            await self._drained()
            self._transport_or_raise().write(last)
            last = piece
            await asyncio.sleep(0)  # because each piece takes a while to make
        await self._drained()
        return last

    def _transport_or_raise(self) -> asyncio.Transport:
        """Raises: CancelledError, if the client has disconnected."""
        if self._transport is None:
            raise asyncio.CancelledError
        return self._transport

    async def _drained(self) -> None:
        """Wait while the client leaves its answer unread."""
        while self._is_paused:
            self._resumed = self._host.loop.create_future()
            await self._resumed

    # -- Requests that arrive in pieces

    def _hold(self, data: bytes, missing: int) -> None:
        """Wait for the rest of a request, but not long: aiohttp has the limits of time."""
        try:
            self._host.budget.receive(0, len(data), self._host.loop.time())
        except LimitExceeded:
            self._is_lent_for_ever = True
            self._lend(data)
            return
        self._held = bytearray(data)
        self._missing = missing
        self._wait_timer = self._host.loop.call_later(BODY_WAIT_S, self._stop_waiting)

    def _add(self, data: bytes) -> None:
        """Add bytes to those that are held."""
        assert self._held is not None
        if self._is_answering:
            self._held += data
            if self._holds_much and self._transport is not None:
                self._transport.pause_reading()
            return
        missing = self._missing
        more = min(len(data), missing)
        try:
            self._host.budget.receive(len(self._held), more, self._host.loop.time())
        except LimitExceeded:
            self._lend_held(data)
            return
        self._held += data[:missing]
        self._missing -= len(data)
        if self._missing <= 0:
            self._offer(self._take_held())
            if len(data) > missing:
                self.data_received(data[missing:])

    @property
    def _holds_much(self) -> bool:
        """Whether nothing more is read behind the request that is being answered."""
        return self._is_answering and self._held is not None and len(self._held) > UNREAD_BYTES

    def _stop_waiting(self) -> None:
        self._wait_timer = None
        self._lend_held()

    def _lend_held(self, data: bytes = b"") -> None:
        self._is_lent_for_ever = True
        self._lend(self._take_held() + data)

    def _take_held(self) -> bytes:
        """Return the held bytes, which are not held any more."""
        held, self._held = self._held, None
        if self._missing or self._wait_timer is not None:
            self._host.budget.received(len(held or b""))
            self._missing = 0
        if self._wait_timer is not None:
            self._wait_timer.cancel()
            self._wait_timer = None
        return bytes(held or b"")

    # -- Lent to aiohttp

    def _lend(self, data: bytes) -> None:
        self._invited().data_received(data)

    def _invited(self) -> Guest:
        if self._guest is None:
            host = self._host
            self._guest = Guest(host.server, host.loop, connection=self, budget=host.budget)
            assert self._transport is not None
            self._guest.connection_made(self._transport)
            if self._is_paused:
                self._guest.pause_writing()
            host.loop.call_later(GUEST_STAYS_S, self._dismiss_idle_guest)
        return self._guest

    def _dismiss_idle_guest(self) -> None:
        """Free the part of aiohttp once it has answered, because it takes several kilobytes."""
        guest = self._guest
        if guest is None or self._transport is None or self._is_lent_for_ever:
            return
        now = self._host.loop.time()
        if guest.is_waiting and now - guest.answered_at >= GUEST_STAYS_S:
            self._used_at = max(self._used_at, guest.answered_at)
            self._guest = None
            guest.give_back()
        else:
            self._host.loop.call_later(GUEST_STAYS_S, self._dismiss_idle_guest)

    def drop_input(self) -> None:
        """Keep reading the connection, and drop all received bytes.

        aiohttp stops reading once a few requests wait behind the one that it serves. Then it cannot
        see that the client closes.
        """
        self._is_deaf = True
        if self._transport is not None:
            self._transport.resume_reading()

    # -- Reads

    def begin_stream(
        self, reader: OpenRead[Any], framing: Framing, head: bytes, *, is_chunked: bool = True
    ) -> None:
        """Send the batches of a read from now on, after `head`. Nothing else follows on this
        connection.

        Raises: ConnectionResetError, if the client has disconnected. The caller must close the
            reader then.
        """
        if self._transport is None:
            raise ConnectionResetError("the client has gone")
        if self._guest is not None:
            self._guest.give_back()
            self._guest = None
        self._stop_idle_timer()
        host = self._host
        self._stream = EventStream(
            self._transport,
            reader,
            framing,
            turn=host.turn,
            budget=host.budget,
            is_chunked=is_chunked,
        )
        self._stream.start(head)

    # -- Writing

    def pause_writing(self) -> None:
        if self._stream is not None:
            self._stream.paused()
            return
        self._is_paused = True
        if self._guest is not None:
            self._guest.pause_writing()
        if self._transport is not None and not self._is_lent:
            self._transport.pause_reading()  # because the client does not read its answers

    def resume_writing(self) -> None:
        if self._stream is not None:
            self._stream.resumed()
            return
        self._is_paused = False
        if self._resumed is not None and not self._resumed.done():
            self._resumed.set_result(None)
        if self._guest is not None:
            self._guest.resume_writing()
        self._read_on()

    def _read_on(self) -> None:
        """Read the connection again, unless what has come must be answered or taken first."""
        if self._transport is None or self._is_paused or self._holds_much:
            return
        if self._guest is None or not self._guest.has_stopped_reading:
            self._transport.resume_reading()
