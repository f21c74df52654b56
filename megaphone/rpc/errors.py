"""Turns errors into gRPC statuses, in one interceptor around every handler.

Without the interceptor grpc.aio would send the text of any exception to the client.
"""

import inspect
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Never

import grpc

from megaphone.errors import MegaphoneError
from megaphone.rpc.answers import or_serialized
from megaphone.rpc.requests import all_readable, lenient, readable
from megaphone.wire import errors
from megaphone.wire.protobuf import error_status

log = logging.getLogger(__name__)

DETAILS_KEY = "grpc-status-details-bin"

# Handlers of every service pass here, so their types are as open as those of grpcio.
Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Any]
OnError = Callable[[MegaphoneError], None]


def ignore(error: MegaphoneError) -> None:
    """Do nothing with an error."""


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Makes every handler fail with our statuses, and refuse lists of more than `max_members`."""

    def __init__(self, max_members: int = sys.maxsize, on_error: OnError = ignore) -> None:
        """`on_error` is called with each error that a client gets."""
        self._max_members = max_members
        self._on_error = on_error
        self.calls_begun = 0
        """How many calls have arrived since the start."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        self.calls_begun += 1
        handler = await continuation(handler_call_details)
        if handler is None:  # there is no such method, so grpc answers UNIMPLEMENTED
            return None
        kind = KINDS[handler.request_streaming, handler.response_streaming]
        behaviour = getattr(handler, kind)
        wrap = stream_with_error_statuses if handler.request_streaming else with_error_statuses
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            wrap(handler_call_details.method, behaviour, self._on_error),
            lenient(handler.request_deserializer, self._max_members),
            or_serialized(handler.response_serializer),
        )


KINDS = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


def stream_with_error_statuses(method: str, behaviour: Handler, on_error: OnError) -> Handler:
    """Do the same as `with_error_statuses`, for a handler that takes a stream of requests."""
    if inspect.isasyncgenfunction(behaviour):

        async def generate(requests: Any, context: Context) -> AsyncIterator[Any]:
            async for response in behaviour(all_readable(requests), context):
                yield response

        return with_error_statuses(method, generate, on_error)

    async def call(requests: Any, context: Context) -> Any:
        return await behaviour(all_readable(requests), context)

    return with_error_statuses(method, call, on_error)


def with_error_statuses(method: str, behaviour: Handler, on_error: OnError) -> Handler:
    """Return a handler that fails with our statuses.

    `behaviour` is a coroutine function or an asynchronous generator.
    """

    # grpc keeps the exception that ends a call, and with it the frames that the exception passed,
    # in a cycle with the context. So these functions drop the request first, which may be large.

    async def call(request: Any, context: Context) -> Any:
        try:
            return await behaviour(readable(request), context)
        except Exception as error:
            failure = error
        del request
        return await abort(failure, method, context, on_error)

    async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async for response in behaviour(readable(request), context):
                yield response
            return
        except Exception as error:
            failure = error
        del request
        await abort(failure, method, context, on_error)

    return generate if inspect.isasyncgenfunction(behaviour) else call


async def abort(error: Exception, method: str, context: Context, on_error: OnError) -> Never:
    """End a call with the status that belongs to an error."""
    if isinstance(error, grpc.aio.AbortError):
        raise error  # the call has its status already
    code, message, status_name, retry_after_s = (
        errors.INTERNAL_CODE,
        errors.INTERNAL_MESSAGE,
        errors.INTERNAL_GRPC_STATUS,
        None,
    )
    limit = None
    if isinstance(error, MegaphoneError):
        on_error(error)
        code, message, retry_after_s = error.code, str(error), error.retry_after_s
        limit = errors.limit_of(error)
        status_name = errors.row_of(error).grpc_status
    else:
        log.error("%s failed", method, exc_info=error)
    # The frames of the error and of its causes hold the request.
    error.__traceback__ = error.__context__ = error.__cause__ = None
    status = grpc.StatusCode[status_name]
    details = error_status(status.value[0], code, message, retry_after_s, limit)
    await context.abort(status, message, ((DETAILS_KEY, details),))
