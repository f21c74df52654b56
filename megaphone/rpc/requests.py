"""Receives and decodes requests, within bounds on their memory.

grpc receives a whole message before any handler runs, for as many calls at once as there are. So a
call with a single message waits here until it may be received. Until then only the bytes that the
flow control of HTTP/2 allows are held, and all calls of a connection share those.

A stream of messages does not wait, because it may be silent for hours. The messages that it has not
completed are limited to one for each stream.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from megaphone.errors import BadRequest, MegaphoneError, PayloadTooLarge, TooSlow
from megaphone.wire.protobuf import has_more_members

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
    in which they came."""

    def __init__(self, max_bytes: int, max_message_bytes: int) -> None:
        """Let as many calls receive a message at once as fit into `max_bytes` of memory, even if
        each message has `max_message_bytes`; but always let `FEWEST_AT_ONCE` receive one."""
        self._at_once = max(FEWEST_AT_ONCE, max_bytes // (COPIES * max_message_bytes))
        self._receiving: dict[asyncio.Task[Any], Place] = {}
        """The calls whose message is being received, in the order in which they began."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._clock = asyncio.get_running_loop().time

    async def enter(self, call: "asyncio.Task[Any]", end: Callable[[], object]) -> None:
        """Give a call a place until `leave`. `end` ends the call, if it takes too long while others
        wait."""
        if len(self._receiving) >= self._at_once or self._waiting:
            await self._wait_for_turn()
        self._receiving[call] = Place(self._clock(), end)

    def leave(self, call: "asyncio.Task[Any]") -> None:
        """Give the place to the next call. A second call changes nothing."""
        if self._receiving.pop(call, None) is not None:
            self._admit_next()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Return a context for a handler that receives its only message itself.

        Raises: TooSlow, when the message did not arrive in time while others waited.
        """
        call = current_call()
        try:
            async with asyncio.timeout(None) as limit:
                await self.enter(call, lambda: limit.reschedule(self._clock()))
                yield
        except TimeoutError:
            raise TooSlow(f"the message did not arrive within {PATIENCE_S:g} s") from None
        finally:
            self.leave(call)

    async def _wait_for_turn(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            while not turn.done():
                await asyncio.wait({turn}, timeout=PATIENCE_CHECK_S)
                self._end_slow_calls()
        except BaseException:
            if turn.done():
                self._admit_next()  # this call does not use its turn
            else:
                self._waiting.remove(turn)
            raise

    def _end_slow_calls(self) -> None:
        """End the calls whose clients do not send, because other calls wait for them."""
        latest = self._clock() - PATIENCE_S
        for call, place in list(self._receiving.items()):
            if place.since > latest:
                break
            place.end()
            self.leave(call)

    def _admit_next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return


class Place(NamedTuple):
    """The place of a call whose message is being received."""

    since: float
    end: Callable[[], object]


def current_call() -> "asyncio.Task[Any]":
    call = asyncio.current_task()
    assert call is not None
    return call


class ReceptionInterceptor(grpc.aio.ServerInterceptor):
    """Lets each call with a single message wait for a place before grpc receives the message.

    It must come before interceptors that replace handlers. A handler that takes a stream, because
    it has to find out something before its message, must ask for its `Reception.place` itself.
    """

    def __init__(self, reception: Reception) -> None:
        self._reception = reception

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
        await self._reception.enter(call, call.cancel)
        call.add_done_callback(leave)  # for a call that is cancelled before its message came
        deserialize = handler.request_deserializer

        def on_received(message: bytes) -> Any:
            leave(call)
            return deserialize(message)

        return handler._replace(request_deserializer=on_received)


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
