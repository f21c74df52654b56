"""Finds who calls over gRPC, by the metadata `authorization`, before a message of the call is read.

A caller who is known is found in the interceptor. It knows only the metadata; to find out from
where a call comes, it must let a handler begin. So a call with an unknown proof gets a handler that
takes a stream, because grpc would read a single message before it calls a handler.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote

import grpc

from megaphone.core.access import ANYONE, Action, Caller, Peer
from megaphone.core.pace import loop_time
from megaphone.core.peers import PeerLimits, Proxies
from megaphone.core.ports import Doorkeeper
from megaphone.errors import BadRequest, MegaphoneError
from megaphone.listen.certificates import names_of_pem
from megaphone.rpc.answers import failing_handler
from megaphone.rpc.requests import Reception
from megaphone.rpc.traces import find_traceparent
from megaphone_api.v1 import channels_pb2 as pb

AUTHORIZATION = "authorization"
FORWARDED_FOR = "x-forwarded-for"
CLIENT_CERTIFICATE = "x509_pem_cert"
"""The key under which grpc has the certificate of a client, which it has checked."""
SERVICE = f"/{pb.DESCRIPTOR.services_by_name['ChannelService'].full_name}/"
ACTIONS = {
    f"{SERVICE}{method}": action
    for method, action in {
        "CreateChannel": Action.CREATE,
        "Write": Action.WRITE,
        "WriteBatch": Action.WRITE,
        "Publish": Action.WRITE,
        "Read": Action.READ,
        "ReadMany": Action.READ,
        "Acknowledge": Action.ACK,
        "ChannelsExist": Action.EXISTS,
        "DisposeChannel": Action.DISPOSE,
    }.items()
}
"""The action of each method."""

_CALLER: ContextVar[Caller] = ContextVar("caller", default=ANYONE)
"""Set by the interceptor, and seen only by the handler of the same call."""


def caller() -> Caller:
    """Return who makes the call that is being handled."""
    return _CALLER.get()


class CallerInterceptor(grpc.aio.ServerInterceptor):
    """Admits the calls of `ChannelService` that a doorkeeper admits, and every call of other
    services.

    The `ErrorInterceptor` must come before it, because that sends the reason of a refusal. A call
    that waits to be admitted has no place in the `reception` yet.
    """

    def __init__(self, doorkeeper: Doorkeeper, peers: PeerLimits, reception: Reception) -> None:
        self._doorkeeper = doorkeeper
        self._peers = peers
        self._reception = reception

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        action = ACTIONS.get(handler_call_details.method)
        if action is None:
            return await continuation(handler_call_details)
        metadata = handler_call_details.invocation_metadata
        if action is Action.WRITE:
            find_traceparent(metadata)
        proof = proof_of(metadata)
        known = self._doorkeeper.known(proof)
        if known is None:
            handler = await continuation(handler_call_details)
            admission = Admission(self._doorkeeper, self._peers.proxies, proof, action)
            return admitting(handler, admission, self._reception)
        if known is not ANYONE:
            try:
                known.check(action, loop_time())
            except MegaphoneError as error:
                return failing_handler(error)
            _CALLER.set(known)
        return await continuation(handler_call_details)


class Admission:
    """Admits one call whose proof is not known."""

    def __init__(
        self, doorkeeper: Doorkeeper, proxies: Proxies, proof: str | None, action: Action
    ) -> None:
        self._doorkeeper = doorkeeper
        self._proxies = proxies
        self._proof = proof
        self._action = action

    async def admit(self, context: Any) -> None:
        """Raises: the errors of `Doorkeeper.admit` and `Caller.check`."""
        admitted = await admitted_by(self._doorkeeper, self._proof, context, self._proxies)
        admitted.check(self._action, loop_time())
        _CALLER.set(admitted)


async def admitted_by(
    doorkeeper: Doorkeeper, proof: str | None, context: Any, proxies: Proxies
) -> Caller:
    """Raises: the errors of `Doorkeeper.admit`."""
    peer = peer_of(context)._replace(ip=client_of(context, proxies))
    return await doorkeeper.admit(proof, peer)


async def present_caller(doorkeeper: Doorkeeper, context: Any, proxies: Proxies) -> Caller:
    """Return who makes a long call now. It may have begun when nobody needed a proof; since a
    reload its caller has to show the one with which the call began.

    Raises: the errors of `Doorkeeper.admit`.
    """
    of_begin = caller()
    if of_begin is not ANYONE or doorkeeper.known(None) is ANYONE:
        return of_begin
    proof = proof_of(context.invocation_metadata())
    present = doorkeeper.known(proof)
    if present is None:
        present = await admitted_by(doorkeeper, proof, context, proxies)
    _CALLER.set(present)
    return present


def admitting(handler: Any, admission: Admission, reception: Reception) -> Any:
    """Return a handler that admits the call before it reads a message, and then does the same."""
    more = (handler.request_deserializer, handler.response_serializer)
    if handler.request_streaming:

        async def publish(requests: Any, context: Any) -> AsyncIterator[Any]:
            await admission.admit(context)
            async for response in handler.stream_stream(requests, context):
                yield response

        return grpc.stream_stream_rpc_method_handler(publish, *more)
    call = handler.unary_stream if handler.response_streaming else handler.unary_unary

    async def admit_and_call(requests: Any, context: Any) -> Any:
        await admission.admit(context)
        async with reception.place():
            request = await only(requests)
        return await call(request, context)

    if handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(admit_and_call, *more)
    return grpc.stream_unary_rpc_method_handler(admit_and_call, *more)


async def only(requests: AsyncIterator[Any]) -> Any:
    """Return the message of a call that has one. Raises: BadRequest, if it has none."""
    async for request in requests:
        return request
    raise BadRequest("the call has no request")


def proof_of(metadata: Any) -> str | None:
    """Return the value of `authorization`. Several of them are one value, which no token has, so
    that nobody can choose which of them counts."""
    values = [value for key, value in metadata or () if key == AUTHORIZATION]
    return ", ".join(values) if values else None


def peer_of(context: Any) -> Peer:
    """Return who is at the other end of a call."""
    certificates = context.auth_context().get(CLIENT_CERTIFICATE, ())
    names = tuple(name for one in certificates for name in names_of_pem(one))
    return Peer(ip_of(context.peer()), names)


def client_of(context: Any, proxies: Proxies) -> str:
    """Return the address of the client of a call, also through proxies that the settings trust."""
    metadata = context.invocation_metadata() or ()
    forwarded_for = [value for key, value in metadata if key == FORWARDED_FOR]
    return proxies.client_of(ip_of(context.peer()), ",".join(map(str, forwarded_for)) or None)


def ip_of(peer: str) -> str:
    """Return the IP address in the text of grpc, such as `ipv4:127.0.0.1:3001` or
    `ipv6:%5B::1%5D:3001`."""
    kind, _, endpoint = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return ""
    host, _, _ = unquote(endpoint).rpartition(":")
    return host.strip("[]")
