"""Receives and decodes requests, within bounds on their memory.

grpc receives a whole message before any handler runs, for as many calls at once as there are. So a
call with a single message waits here until it may be received. Until then only the bytes that the
flow control of HTTP/2 allows are held, and all calls of a connection share those. A call whose
message does not come is refused in the end.

A stream of messages does not wait, because it may be silent for hours. The messages that it has not
completed are limited to one for each stream.
"""

import asyncio
import gc
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from grpc import _cython

from megaphone.errors import BadRequest, MegaphoneError, PayloadTooLarge, TooSlow
from megaphone.wire.protobuf import has_more_members

MESSAGE_TIMEOUT_S = 30.0
"""How long a client may take to send the message of a call that has one."""
PATIENCE_S = 5.0
"""How long a client may take to send its message while other calls wait to be received."""
PATIENCE_CHECK_S = 0.5
FEWEST_AT_ONCE = 4
COPIES = 6
"""While grpc receives a message, it uses at most this many times the size of the message, as
measured: for the frames, the slices, the whole message, and the decoded message."""


# -- Receiving


class Reception:
    """The places of the calls whose message is being received. Calls wait for a place in the order
    in which they came, and lose it when their message does not arrive in time."""

    def __init__(self, max_bytes: int, max_message_bytes: int) -> None:
        """Let as many calls receive a message at once as fit into `max_bytes` of memory, even if
        each message has `max_message_bytes`; but always let `FEWEST_AT_ONCE` receive one."""
        self._at_once = max(FEWEST_AT_ONCE, max_bytes // (COPIES * max_message_bytes))
        self._receiving: dict[asyncio.Task[Any], Place] = {}
        """The calls whose message is being received, in the order in which they began."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._loop = asyncio.get_running_loop()
        self._clock = self._loop.time
        self._checking: asyncio.TimerHandle | None = None
        """The next check for calls whose message does not come; None if there are none."""

    async def enter(self, call: "asyncio.Task[Any]", end: "End") -> None:
        """Give a call a place until `leave`. `end` ends the call, if it takes too long."""
        if len(self._receiving) >= self._at_once or self._waiting:
            await self._wait_for_turn()
        self._receiving[call] = Place(self._clock(), end)
        if self._checking is None:
            self._checking = self._loop.call_later(MESSAGE_TIMEOUT_S, self._check)

    def leave(self, call: "asyncio.Task[Any]") -> None:
        """Give the place to the next call. A second call changes nothing."""
        if self._receiving.pop(call, None) is not None:
            self._admit_next()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Return a context for a handler that receives its only message itself.

        Raises: TooSlow, when the message did not arrive in time.
        """
        call = current_call()
        late: list[TooSlow] = []

        def end(error: TooSlow) -> None:
            late.append(error)
            limit.reschedule(self._clock())

        try:
            async with asyncio.timeout(None) as limit:
                await self.enter(call, end)
                yield
        except TimeoutError:
            raise late[0] from None
        finally:
            self.leave(call)

    async def _wait_for_turn(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            while not turn.done():
                await asyncio.wait({turn}, timeout=PATIENCE_CHECK_S)
                self._end_slow_calls(PATIENCE_S)
        except BaseException:
            if turn.done():
                self._admit_next()  # this call does not use its turn
            else:
                self._waiting.remove(turn)
            raise

    def _check(self) -> None:
        self._checking = None
        self._end_slow_calls(MESSAGE_TIMEOUT_S)
        oldest = next(iter(self._receiving.values()), None)
        if oldest is not None:
            due = oldest.since + MESSAGE_TIMEOUT_S
            self._checking = self._loop.call_at(due, self._check)

    def _end_slow_calls(self, patience_s: float) -> None:
        """End the calls whose clients have not sent their message within this time."""
        latest = self._clock() - patience_s
        for call, place in list(self._receiving.items()):
            if place.since > latest:
                break
            place.end(TooSlow(f"the message did not arrive within {patience_s:g} s"))
            self.leave(call)

    def _admit_next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return


End = Callable[[TooSlow], object]
"""Ends a call with an error."""


class Place(NamedTuple):
    """The place of a call whose message is being received."""

    since: float
    end: End


def current_call() -> "asyncio.Task[Any]":
    call = asyncio.current_task()
    assert call is not None
    return call


Refuse = Callable[[MegaphoneError, str, Any], Awaitable[Any]]
"""Ends a call of a method, by its context, with the status of an error."""


class ReceptionInterceptor(grpc.aio.ServerInterceptor):
    """Lets each call with a single message wait for a place before grpc receives the message.

    It must come before interceptors that replace handlers. A handler that takes a stream, because
    it has to find out something before its message, must ask for its `Reception.place` itself.
    """

    def __init__(self, reception: Reception, refuse: Refuse) -> None:
        self._reception = reception
        self._refuse = refuse
        self._refusing: set[asyncio.Task[None]] = set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        call = current_call()
        leave = self._reception.leave
        method = handler_call_details.method
        await self._reception.enter(call, lambda error: self._end(call, method, error))
        call.add_done_callback(leave)  # for a call that is cancelled before its message came
        deserialize = handler.request_deserializer

        def on_received(message: bytes) -> Any:
            leave(call)
            return deserialize(message)

        return handler._replace(request_deserializer=on_received)

    def _end(self, call: "asyncio.Task[Any]", method: str, error: TooSlow) -> None:
        call.cancel()  # before the status is sent, so that no message is served any more
        context = context_of(call)
        if context is not None:
            refusing = asyncio.create_task(self._send(error, method, context))
            self._refusing.add(refusing)
            refusing.add_done_callback(self._refusing.discard)

    async def _send(self, error: TooSlow, method: str, context: Any) -> None:
        # The client may have gone, or the server may be stopping.
        with suppress(grpc.aio.AbortError, grpc.aio.BaseError):
            await self._refuse(error, method, context)


def context_of(call: "asyncio.Task[Any]") -> Any:
    """Return the context of a call whose message has not come; None if grpc hides it.

    grpc makes a context only when it has the message. Without a status a call stays open until its
    client ends it, even if its task is cancelled. So this makes a context of the state that the
    task of the call has.
    """
    inside: Any = getattr(_cython, "cygrpc", None)
    for scope in gc.get_referents(call.get_coro()):
        for state in gc.get_referents(scope):
            if isinstance(state, getattr(inside, "RPCState", ())):
                return inside._ServicerContext(state, None, None, asyncio.get_running_loop())
    return None


# -- Decoding


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Replaces a request that was not decoded."""

    error: MegaphoneError
    """The reason, as the client gets it."""


def lenient(deserialize: Callable[[bytes], Any], max_members: int) -> Callable[[bytes], Any]:
    """Return a deserializer that returns `Unreadable` instead of raising.

    An error that it raised would end the call before our handlers could tell the client the reason.
    A message with more than `max_members` members in its lists is not decoded.
    """

    def read(message: bytes) -> Any:
        try:
            if has_more_members(message, max_members):
                return Unreadable(too_many(max_members))
            return deserialize(message)
        except DecodeError:
            return Unreadable(no_message())

    return read


def no_message() -> BadRequest:
    return BadRequest("the request is not a message of the type that this call takes")


def too_many(most: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the request lists more than {most} things; no call takes so many")


def readable(request: Any) -> Any:
    """Return a decoded request. Raises: BadRequest or PayloadTooLarge, if it was not decoded."""
    if isinstance(request, Unreadable):
        raise request.error
    return request


async def all_readable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Yield decoded requests. Raises: BadRequest or PayloadTooLarge, if one was not decoded."""
    async for request in requests:
        yield readable(request)
