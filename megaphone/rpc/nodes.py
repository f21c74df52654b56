"""Which calls of other nodes are admitted. Checked before a message of theirs is read."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from megaphone.cluster.node_secret import NodeGuard
from megaphone.errors import MegaphoneError
from megaphone.wire.sync import PROOF_KEY, proof_of
from megaphone_api import sync_pb2

log = logging.getLogger(__name__)

REPORT_S = 60.0
"""How often the log has a line of calls that were refused, at most."""
SYNC_METHODS = f"/{sync_pb2.DESCRIPTOR.services_by_name['SyncService'].full_name}/"


class NodeInterceptor(grpc.aio.ServerInterceptor):
    """Admits the calls of SyncService that a guard admits; other services are not its business.

    Must stand behind the `ErrorInterceptor`, which tells callers why they were refused.
    """

    def __init__(self, guard: NodeGuard) -> None:
        self._guard = guard
        self._refused = 0
        self._report_from = 0.0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(SYNC_METHODS):
            return handler
        proof = proof_of(handler_call_details.invocation_metadata)
        try:
            answer = self._guard.admit(handler_call_details.method, proof, time.time())
        except MegaphoneError as error:
            self._report(error)
            return refusing(error)
        if answer is None or handler.request_streaming:
            return handler  # a stream follows a greeting, which was answered
        return answering(handler, answer)

    def _report(self, error: MegaphoneError) -> None:
        """Log the number of refused calls, at most once a minute."""
        self._refused += 1
        if time.monotonic() < self._report_from:
            return
        self._report_from = time.monotonic() + REPORT_S
        log.warning("refused calls of other nodes: %d; the last error: %s", self._refused, error)
        self._refused = 0


def refusing(error: MegaphoneError) -> Any:
    """Return a handler that fails with an error.

    It takes a stream whatever its method takes. On the wire the two are the same, but grpc reads a
    single message before it calls a handler.
    """

    async def refuse(requests: Any, context: Any) -> Any:
        raise error

    return grpc.stream_unary_rpc_method_handler(refuse)


def answering(handler: Any, answer: str) -> Any:
    """Return a handler that sends the node's own proof before it does what another one does."""

    async def call(request: Any, context: Any) -> Any:
        await context.send_initial_metadata(((PROOF_KEY, answer),))
        return await handler.unary_unary(request, context)

    return grpc.unary_unary_rpc_method_handler(
        call, handler.request_deserializer, handler.response_serializer
    )
