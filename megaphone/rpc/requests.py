"""Bounds the memory that gRPC takes for messages which are being received.

The library receives a whole message before any handler runs, of as many calls at once as there
are. So a call that brings one message waits here until it may be received: before that, only
what the flow control of HTTP/2 lets through is held, which all calls of a connection share.

A stream of messages passes at once, because it may be silent for hours: what it has not finished
sending is bounded by one message a stream.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

PATIENCE_S = 5.0
"""How long a client may take to send its message while others wait for their turn."""
CHECK_S = 0.5
FEWEST_AT_ONCE = 4
COPIES = 6
"""How many times its size a message takes while it is received, at most and as measured: in the
frames that come, in slices, in one piece, and as what it is decoded to."""


class ReceptionInterceptor(grpc.aio.ServerInterceptor):
    """Lets so many messages be received at once, first come first served."""

    def __init__(self, max_bytes: int, max_message_bytes: int) -> None:
        """Messages of `max_message_bytes` each are received while they fit into `max_bytes`."""
        self._at_once = max(FEWEST_AT_ONCE, max_bytes // (COPIES * max_message_bytes))
        self._receiving: dict[asyncio.Task[Any], float] = {}
        """The calls whose message is being received, and since when; the first ones first."""
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._clock = asyncio.get_running_loop().time

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        call = asyncio.current_task()
        assert call is not None
        if len(self._receiving) >= self._at_once or self._waiting:
            await self._wait_for_turn()
        self._receiving[call] = self._clock()
        call.add_done_callback(self._leave)  # for one that is cancelled before its message came
        deserialize = handler.request_deserializer

        def on_received(message: bytes) -> Any:
            self._leave(call)
            return deserialize(message)

        return handler._replace(request_deserializer=on_received)

    async def _wait_for_turn(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            while not turn.done():
                await asyncio.wait({turn}, timeout=CHECK_S)
                self._cancel_the_slow()
        except BaseException:
            if turn.done():
                self._admit_next()  # the turn is another's now
            else:
                self._waiting.remove(turn)
            raise

    def _cancel_the_slow(self) -> None:
        """End calls that keep others waiting, because their clients do not send."""
        latest = self._clock() - PATIENCE_S
        for call, since in list(self._receiving.items()):
            if since > latest:
                break
            call.cancel()

    def _leave(self, call: "asyncio.Task[Any]") -> None:
        if self._receiving.pop(call, None) is not None:
            self._admit_next()

    def _admit_next(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
