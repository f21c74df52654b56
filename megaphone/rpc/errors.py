"""How errors become gRPC statuses: in one interceptor around every handler.

Without it grpc.aio would send the text of any exception to the client.
"""

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Never

import grpc

from megaphone.errors import MegaphoneError
from megaphone.wire import errors
from megaphone.wire.protobuf import error_status

log = logging.getLogger(__name__)

DETAILS_KEY = "grpc-status-details-bin"

# Handlers of any service pass here, so their types are as open as grpcio's.
Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Any]


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:  # no such method: grpc answers UNIMPLEMENTED
            return None
        kind = KINDS[handler.request_streaming, handler.response_streaming]
        behaviour = getattr(handler, kind)
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            guarded(handler_call_details.method, behaviour),
            handler.request_deserializer,
            handler.response_serializer,
        )


KINDS = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}


def guarded(method: str, behaviour: Handler) -> Handler:
    """Wrap a handler, a coroutine function or a generator, so that it fails with our statuses."""

    async def call(request: Any, context: Context) -> Any:
        try:
            return await behaviour(request, context)
        except Exception as error:
            await tell(error, method, context)

    async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async for response in behaviour(request, context):
                yield response
        except Exception as error:
            await tell(error, method, context)

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
    status = grpc.StatusCode[status_name]
    details = error_status(status.value[0], code, message, retry_after_s)
    await context.abort(status, message, ((DETAILS_KEY, details),))
