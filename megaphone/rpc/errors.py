"""How errors become gRPC statuses: in one interceptor around every handler.

Without it grpc.aio would send the text of any exception to the client.
"""

import inspect
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Never

import grpc
from google.protobuf.message import DecodeError

from megaphone.errors import BadRequest, MegaphoneError, PayloadTooLarge
from megaphone.rpc.pieces import or_serialized
from megaphone.wire import errors
from megaphone.wire.protobuf import error_status, has_more_members

log = logging.getLogger(__name__)

DETAILS_KEY = "grpc-status-details-bin"

# Handlers of any service pass here, so their types are as open as grpcio's.
Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Any]


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Goes around all handlers. Requests have at most `max_members` members in a list."""

    def __init__(self, max_members: int = sys.maxsize) -> None:
        self._max_members = max_members
        self.calls_begun = 0
        """How many calls have come."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        self.calls_begun += 1
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method: grpc answers UNIMPLEMENTED
            return None
        kind = KINDS[handler.request_streaming, handler.response_streaming]
        behaviour = getattr(handler, kind)
        guard = guarded_stream if handler.request_streaming else guarded
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            guard(handler_call_details.method, behaviour),
            lenient(handler.request_deserializer, self._max_members),
            or_serialized(handler.response_serializer),
        )


KINDS = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


@dataclass(frozen=True, slots=True)
class Unreadable:
    """In the place of a request that is not decoded, and why."""

    error: MegaphoneError


def lenient(deserialize: Callable[[bytes], Any], max_members: int) -> Callable[[bytes], Any]:
    """Return a deserializer that hands on what it cannot read, instead of raising.

    What it raises would end the call before any handler of ours could say what was wrong.
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
    """Raises: BadRequest or PayloadTooLarge, for a request that was not decoded."""
    if isinstance(request, Unreadable):
        raise request.error
    return request


async def all_readable(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield readable(request)


def guarded_stream(method: str, behaviour: Handler) -> Handler:
    """As `guarded`, for a handler of a stream of requests."""
    if inspect.isasyncgenfunction(behaviour):

        async def generate(requests: Any, context: Context) -> AsyncIterator[Any]:
            async for response in behaviour(all_readable(requests), context):
                yield response

        return guarded(method, generate)

    async def call(requests: Any, context: Context) -> Any:
        return await behaviour(all_readable(requests), context)

    return guarded(method, call)


def guarded(method: str, behaviour: Handler) -> Handler:
    """Wrap a handler, a coroutine function or a generator, so that it fails with our statuses."""

    # gRPC keeps the exception that ends a call, and with it the frames that it passed, in a cycle
    # with the context. So these let the request go first: it may be large.

    async def call(request: Any, context: Context) -> Any:
        try:
            return await behaviour(readable(request), context)
        except Exception as error:
            failure = error
        del request
        return await tell(failure, method, context)

    async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async for response in behaviour(readable(request), context):
                yield response
            return
        except Exception as error:
            failure = error
        del request
        await tell(failure, method, context)

    return generate if inspect.isasyncgenfunction(behaviour) else call


async def tell(error: Exception, method: str, context: Context) -> Never:
    """End a call with the status that belongs to an error."""
    if isinstance(error, grpc.aio.AbortError):
        raise error  # it has been told already
    code, message, status_name, retry_after_s = (
        errors.INTERNAL_CODE,
        errors.INTERNAL_MESSAGE,
        errors.INTERNAL_GRPC_STATUS,
        None,
    )
    if isinstance(error, MegaphoneError):
        code, message, retry_after_s = error.code, str(error), error.retry_after_s
        status_name = errors.row_of(error).grpc_status
    else:
        log.error("%s failed", method, exc_info=error)
    error.__traceback__ = error.__context__ = error.__cause__ = (
        None  # their frames hold the request
    )
    status = grpc.StatusCode[status_name]
    details = error_status(status.value[0], code, message, retry_after_s)
    await context.abort(status, message, ((DETAILS_KEY, details),))
