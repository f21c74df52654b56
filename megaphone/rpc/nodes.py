"""Admits the calls of other nodes, before it reads a message of theirs."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from megaphone.cluster.node_secret import NodeGuard
from megaphone.errors import MegaphoneError
from megaphone.rpc.answers import failing_handler
from megaphone.wire.sync import PROOF_KEY, proof_of
from megaphone_api import sync_pb2

log = logging.getLogger(__name__)

REPORT_S = 60.0
"""The shortest time between two log lines about refused calls."""
SYNC_METHODS = f"/{sync_pb2.DESCRIPTOR.services_by_name['SyncService'].full_name}/"


class NodeInterceptor(grpc.aio.ServerInterceptor):
    """Admits the calls of SyncService that a guard admits, and every call of other services.

    The `ErrorInterceptor` must come before it, because that sends the reason of a refusal.
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
            return failing_handler(error)
        if answer is None or handler.request_streaming:
            return handler  # a greeting came before the stream, and was answered
        return with_proof(handler, answer)

    def _report(self, error: MegaphoneError) -> None:
        """Log the number of refused calls, at most once a minute."""
        self._refused += 1
        if time.monotonic() < self._report_from:
            return
        self._report_from = time.monotonic() + REPORT_S
        log.warning("refused calls of other nodes: %d; the last error: %s", self._refused, error)
        self._refused = 0


def with_proof(handler: Any, proof: str) -> Any:
    """Return a handler that sends the proof of this node first, and then calls `handler`."""

    async def call(request: Any, context: Any) -> Any:
        await context.send_initial_metadata(((PROOF_KEY, proof),))
        return await handler.unary_unary(request, context)

    return grpc.unary_unary_rpc_method_handler(
        call, handler.request_deserializer, handler.response_serializer
    )
