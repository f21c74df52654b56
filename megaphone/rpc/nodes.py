"""Admits the calls of other nodes, before it reads a message of theirs."""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from megaphone.cluster.node_secret import NodeGuard
from megaphone.core.access import fits
from megaphone.errors import MegaphoneError, NodeUnauthenticated
from megaphone.rpc.answers import failing_handler
from megaphone.rpc.callers import only, peer_of
from megaphone.settings import Settings
from megaphone.wire.sync import PROOF_KEY, proof_of
from megaphone_api import sync_pb2

log = logging.getLogger(__name__)

REPORT_S = 60.0
"""The shortest time between two log lines about refused calls."""
NOT_A_NODE = "the certificate of the calling node has none of the names in `nodes.names` here"
SYNC_METHODS = f"/{sync_pb2.DESCRIPTOR.services_by_name['SyncService'].full_name}/"


class NodeInterceptor(grpc.aio.ServerInterceptor):
    """Admits the calls of SyncService that a guard admits, and every call of other services.

    The `ErrorInterceptor` must come before it, because that sends the reason of a refusal.
    """

    def __init__(self, guard: NodeGuard) -> None:
        self._guard = guard
        self._refusals = Refusals()

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
            self._refusals.report(error)
            return failing_handler(error)
        if answer is None or handler.request_streaming:
            return handler  # a greeting came before the stream, and was answered
        return with_proof(handler, answer)


class CertificateInterceptor(grpc.aio.ServerInterceptor):
    """Admits the calls of nodes whose certificate has one of some names. TLS has checked the
    certificate itself. The `ErrorInterceptor` must come before it.

    `names` returns the names, each of which may end with `*`.
    """

    def __init__(self, names: Callable[[], Sequence[str]]) -> None:
        self._names = names
        self._refusals = Refusals()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        return handler and self._checking(handler)

    def _checking(self, handler: Any) -> Any:
        """Return a handler that checks the certificate before it reads a message. Only a handler
        sees the certificate, and grpc would read a single message before it calls one."""

        async def call(requests: Any, context: Any) -> Any:
            self._check(context)
            if handler.request_streaming:
                return await handler.stream_unary(requests, context)
            return await handler.unary_unary(await only(requests), context)

        return grpc.stream_unary_rpc_method_handler(
            call, handler.request_deserializer, handler.response_serializer
        )

    def _check(self, context: Any) -> None:
        """Raises: NodeUnauthenticated."""
        patterns = self._names()
        for name in peer_of(context).certificate_names:
            if any(fits(name, pattern) for pattern in patterns):
                return
        error = NodeUnauthenticated(NOT_A_NODE)
        self._refusals.report(error)
        raise error


class NodeNames:
    """The names in the certificates of nodes. A `Reloadable`."""

    def __init__(self, settings: Settings) -> None:
        self.names = settings.nodes.names

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Fulfil `megaphone.reload.Reloadable`."""

        def apply() -> None:
            self.names = settings.nodes.names

        return apply


class Refusals:
    """Logs the number of refused calls, at most once a minute."""

    def __init__(self) -> None:
        self._refused = 0
        self._report_from = 0.0

    def report(self, error: MegaphoneError) -> None:
        """Count a refused call."""
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
