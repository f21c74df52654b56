"""Turns errors into gRPC statuses, in one interceptor around every handler.

Without the interceptor grpc.aio would send the text of any exception to the client.
"""

import asyncio
import inspect
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Never

import grpc

from megaphone.errors import MegaphoneError
from megaphone.observe.calls import CANCELLED, OTHER, Call, Calls, FaceCalls
from megaphone.rpc.access import GrpcAccess
from megaphone.rpc.answers import or_serialized
from megaphone.rpc.requests import all_readable, lenient, readable
from megaphone.wire import errors
from megaphone.wire.protobuf import error_status
from megaphone_api.v1 import channels_pb2 as pb

log = logging.getLogger(__name__)

DETAILS_KEY = "grpc-status-details-bin"

# Handlers of every service pass here, so their types are as open as those of grpcio.
Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Any]
OnError = Callable[[MegaphoneError], None]

SERVICE = f"/{pb.DESCRIPTOR.services_by_name['ChannelService'].full_name}/"
METHODS = {
    "CreateChannel": "create",
    "Write": "write",
    "WriteBatch": "write_batch",
    "Publish": "publish",
    "Read": "read",
    "ReadMany": "read_many",
    "Acknowledge": "ack",
    "ChannelsExist": "exists",
    "DisposeChannel": "dispose",
}
"""What metrics call the methods of ChannelService."""
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED.name
STATUSES: dict[object, str] = {code.value[0]: code.name for code in grpc.StatusCode}
"""The names of the statuses of gRPC, by their numbers."""


def ignore(error: MegaphoneError) -> None:
    """Do nothing with an error."""


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Makes every handler fail with our statuses, and refuse lists of more than `max_members`."""

    def __init__(
        self,
        max_members: int = sys.maxsize,
        on_error: OnError = ignore,
        calls: FaceCalls | None = None,
        access: GrpcAccess | None = None,
    ) -> None:
        """`on_error` is called with each error that a client gets. `calls` counts all calls, and
        `access` logs them, if it is given."""
        self._max_members = max_members
        self._on_error = on_error
        self._calls = calls or FaceCalls()
        self._access = access
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
            self._calls.other.ended(UNIMPLEMENTED, 0.0)
            return None
        kind = KINDS[handler.request_streaming, handler.response_streaming]
        behaviour = getattr(handler, kind)
        wrap = stream_with_error_statuses if handler.request_streaming else with_error_statuses
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            wrap(handler_call_details.method, behaviour, self._on_error, self._calls, self._access),
            lenient(handler.request_deserializer, self._max_members),
            or_serialized(handler.response_serializer),
        )

    async def refuse(self, error: MegaphoneError, method: str, context: Context) -> None:
        """End a call whose handler never began, because its message did not come."""
        call = Call(calls_of(method, self._calls))
        if self._access is not None:
            call.on_end = self._access.begun(None, context)
        call.end(error.code)
        await abort(error, method, context, self._on_error)


KINDS = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


def stream_with_error_statuses(
    method: str,
    behaviour: Handler,
    on_error: OnError,
    calls: FaceCalls,
    access: GrpcAccess | None = None,
) -> Handler:
    """Do the same as `with_error_statuses`, for a handler that takes a stream of requests."""
    if inspect.isasyncgenfunction(behaviour):

        async def generate(requests: Any, context: Context) -> AsyncIterator[Any]:
            async for response in behaviour(all_readable(requests), context):
                yield response

        return with_error_statuses(method, generate, on_error, calls, access)

    async def call(requests: Any, context: Context) -> Any:
        return await behaviour(all_readable(requests), context)

    return with_error_statuses(method, call, on_error, calls, access)


def with_error_statuses(
    method: str,
    behaviour: Handler,
    on_error: OnError,
    calls: FaceCalls,
    access: GrpcAccess | None = None,
) -> Handler:
    """Return a handler that fails with our statuses, and counts its calls; `access` logs them, if
    it is given.

    `behaviour` is a coroutine function or an asynchronous generator.
    """
    of_method = calls_of(method, calls)

    # grpc keeps the exception that ends a call, and with it the frames that the exception passed,
    # in a cycle with the context. So these functions drop the request first, which may be large.

    async def call(request: Any, context: Context) -> Any:
        present = begin_call(of_method)
        served = None
        if access is not None:
            present.on_end = served = access.begun(request, context)
            request = served.following(request)
        try:
            response = await behaviour(readable(request), context)
            if served is not None:
                served.response = response
            present.end()
            return response
        except asyncio.CancelledError:
            present.end(CANCELLED)
            raise
        except Exception as error:
            failure = error
        del request
        present.end(code_of(failure, context))
        return await abort(failure, method, context, on_error)

    async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
        present = begin_call(of_method)
        if access is not None:
            present.on_end = access.begun(request, context)
        try:
            async for response in behaviour(readable(request), context):
                yield response
            present.end()
            return
        except (asyncio.CancelledError, GeneratorExit):
            present.end(CANCELLED)
            raise
        except Exception as error:
            failure = error
        del request
        present.end(code_of(failure, context))
        await abort(failure, method, context, on_error)

    return generate if inspect.isasyncgenfunction(behaviour) else call


_CALL: ContextVar[Call] = ContextVar("call")
"""Set by the handler around all others, and seen only by those of the same call."""


def begin_call(calls: Calls) -> Call:
    call = Call(calls)
    _CALL.set(call)
    return call


def present_call() -> Call:
    """Return the call that is being served."""
    return _CALL.get()


def calls_of(method: str, calls: FaceCalls) -> Calls:
    """Return where the calls of a method count, by its full name."""
    return calls.by_method[METHODS.get(method.removeprefix(SERVICE), OTHER)]


def code_of(error: Exception, context: Context) -> str:
    """Return the code by which a failed call counts."""
    if isinstance(error, grpc.aio.AbortError):  # of a service of grpc itself, which has no codes
        return STATUSES.get(context.code(), grpc.StatusCode.UNKNOWN.name)
    return error.code if isinstance(error, MegaphoneError) else errors.INTERNAL_CODE


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
