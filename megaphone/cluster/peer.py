"""The connection of an outgoing pipe to its target."""

import asyncio
import random
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from megaphone.cluster.credentials import NO_PROOF, Credentials
from megaphone.errors import (
    BadRequest,
    MegaphoneError,
    NodeUnauthenticated,
    TargetUnavailable,
    WrongMode,
)
from megaphone.model import ENDPOINT_PATTERN, Endpoint
from megaphone.wire import sync as wire
from megaphone_api import sync_pb2 as pb
from megaphone_api.sync_pb2_grpc import SyncServiceStub

TARGET = re.compile(rf"(?:(https?)://)?({ENDPOINT_PATTERN})/?")

NO_SUCH_NAME = (socket.EAI_NONAME, socket.EAI_NODATA)
"""How the resolver says that name servers know no such name."""
CONNECT_S = 5.0
"""How long a connection attempt, or one question to a target, may take."""
RUST_REFUSES_WITHIN_S = 1.0
"""How long to wait for a Rust broker to refuse an agent. It does not report that it accepts one."""
OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.max_send_message_length", -1),
    # `http_proxy` in the environment is for calls to the internet, and not for those between nodes.
    ("grpc.enable_http_proxy", 0),
    # Without this option two pipes would share a connection, and one slow pipe would block both.
    ("grpc.use_local_subchannel_pool", 1),
)

NO_HANDSHAKE = (
    "the target and this node do not agree on TLS: is the host of the target a name in its"
    " certificate, do both certificates come from the authority in `nodes.ca`, and is the port that"
    " of `nodes.address`?"
)
REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT: BadRequest,
    grpc.StatusCode.FAILED_PRECONDITION: WrongMode,
}


class NoSuchName(TargetUnavailable):
    """The name servers say that the name of the target does not exist. A name server that does not
    answer raises TargetUnavailable."""


@dataclass(frozen=True, slots=True)
class Target:
    """A node to which agents are replicated."""

    endpoint: Endpoint
    name: str | None = None
    """The DNS name or IP address that its certificate must have; None if the connection is plain
    text."""

    def __str__(self) -> str:
        return str(self.endpoint)


def target_at(url: str) -> Target:
    """Return the target at a URL such as http://host:3001, or https://host:3002 for TLS.

    Raises: BadRequest.
    """
    if found := TARGET.fullmatch(url):
        endpoint = Endpoint.parse(found[2])
        return Target(endpoint, endpoint.host if found[1] == "https" else None)
    raise BadRequest(
        "the target must be the gRPC address of a node, such as http://host:3001, or"
        " https://host:3002 for its nodes.address"
    )


async def addresses_of(target: Target) -> list[Target]:
    """Return the targets at all addresses of a target, each once, because a host name may have
    several IP addresses.

    Raises: NoSuchName; TargetUnavailable, when its name cannot be resolved for another reason.
    """
    endpoint = target.endpoint
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM
        )
    except OSError as error:
        kind = NoSuchName if error.errno in NO_SUCH_NAME else TargetUnavailable
        raise kind("the name of the target cannot be resolved") from None
    endpoints = [Endpoint(str(address[0]), int(address[1])) for *_, address in found]
    return [Target(endpoint, target.name) for endpoint in dict.fromkeys(endpoints)]


async def reachable(targets: Sequence[Target]) -> list[Target]:
    """Return those of some targets that are reachable, in random order.

    Raises: TargetUnavailable, when none is.
    """
    reached = await asyncio.gather(*(is_reachable(target.endpoint) for target in targets))
    there = [target for target, is_there in zip(targets, reached, strict=True) if is_there]
    if not there:
        raise TargetUnavailable
    return random.sample(there, len(there))


async def is_reachable(endpoint: Endpoint) -> bool:
    """Return whether a server listens at an endpoint. gRPC itself would not report a refused
    connection, but try again until its timeout."""
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    except OSError:
        return False
    writer.close()
    return True


def refusal(status: grpc.StatusCode, details: str | None) -> MegaphoneError:
    """Return the error for the gRPC status with which a target ended a call."""
    if status is grpc.StatusCode.UNAUTHENTICATED:
        return NodeUnauthenticated(f"the target refuses this node: {details}")
    kind = REFUSED.get(status, TargetUnavailable)
    return kind(f"the target ended the stream: {details or status.name}")


@dataclass(slots=True)
class Connection:
    """A stream to a target that has accepted the agent."""

    channel: grpc.aio.Channel
    call: Any  # grpc does not export the type
    extended: bool
    """Whether the target understands the extensions of `sync.proto`."""
    credentials: Credentials

    async def send(self, request: pb.SyncRequest) -> None:
        """Send a message. Waits while the target is slow.

        Raises: MegaphoneError, when the stream has ended.
        """
        try:
            await self.call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            raise await self.failure() from None

    async def in_use(self, addresses: Sequence[str]) -> set[str]:
        """Return which of some consumer addresses are of channels in use at the target.

        Returns all of them if the target does not understand the extensions.

        Raises: TargetUnavailable.
        """
        if not self.extended:
            return set(addresses)
        return set((await self._ask(addresses)).channel_ids)

    async def cursors(self, addresses: Sequence[str]) -> dict[str, str]:
        """Return the cursors of channels at the target, by consumer address.

        Only channels that readers have used at the target are in the result. It is empty if the
        target does not understand the extensions.

        Raises: TargetUnavailable.
        """
        return wire.positions(await self._ask(addresses)) if self.extended else {}

    async def _ask(self, addresses: Sequence[str]) -> pb.FindChannelsInUseReply:
        request = pb.FindChannelsInUseRequest(channel_ids=addresses)
        try:
            stub = SyncServiceStub(self.channel)
            return await stub.FindChannelsInUse(
                request, metadata=self.credentials.for_question(), timeout=CONNECT_S
            )
        except grpc.aio.AioRpcError:
            raise TargetUnavailable from None

    async def finish(self) -> None:
        """End the stream, and wait until the target has applied everything.

        Raises: MegaphoneError, when the target may not have applied everything.
        """
        await self.call.done_writing()
        if await self.call.code() is not grpc.StatusCode.OK:
            raise await self.failure()

    async def failure(self) -> MegaphoneError:
        """Wait for the end of the stream, and return the error for its status."""
        return refusal(await self.call.code(), await self.call.details())

    async def close(self) -> None:
        self.call.cancel()
        await self.channel.close()


async def connect(target: Target, start: pb.SyncRequest, credentials: Credentials) -> Connection:
    """Open a stream to a target, and send `start` once the target has proved who it is: by its
    certificate, or over plain text by the node secret.

    Raises: TargetUnavailable; Unauthenticated, when the target does not prove the secret or
        refuses this node; BadRequest and WrongMode, when it refuses the agent, or when this node
        has no certificate for it.
    """
    channel = channel_to(target, credentials)
    if target.name is not None:
        credentials = NO_PROOF
    try:
        if not await is_reachable(target.endpoint):
            raise TargetUnavailable
        async with asyncio.timeout(CONNECT_S):
            await channel.channel_ready()
        metadata = await credentials.greet(channel, CONNECT_S)
        is_known = await has_extensions(channel, credentials)
        call = SyncServiceStub(channel).ForwardEvents(metadata=metadata)
        connection = Connection(channel, call, extended=False, credentials=credentials)
        await connection.send(start)
        connection.extended = await wait_until_accepted(connection, is_known=is_known)
    except TimeoutError:
        await channel.close()
        if target.name is not None:
            raise TargetUnavailable(NO_HANDSHAKE) from None
        raise TargetUnavailable from None
    except grpc.aio.AioRpcError as error:
        await channel.close()
        raise refusal(error.code(), error.details()) from None
    except BaseException:
        await channel.close()
        raise
    return connection


def channel_to(target: Target, credentials: Credentials) -> grpc.aio.Channel:
    """Return a connection to a target. Raises: BadRequest, if this node has no certificate for it.

    The endpoint is an IP address, so the name in the certificate must be said.
    """
    address = str(target.endpoint)
    if target.name is None:
        return grpc.aio.insecure_channel(address, options=OPTIONS)
    if credentials.for_tls is None:
        raise BadRequest(
            "a target at https:// needs a certificate of this node: set `nodes.certificate`,"
            " `nodes.key` and `nodes.ca`"
        )
    options = (*OPTIONS, ("grpc.ssl_target_name_override", target.name))
    return grpc.aio.secure_channel(address, credentials.for_tls(), options=options)


async def has_extensions(channel: grpc.aio.Channel, credentials: Credentials) -> bool:
    """Return whether a target has the extensions, that is, whether it knows `FindChannelsInUse`.

    Raises: AioRpcError, when the target refuses this node or does not answer.
    """
    try:
        await SyncServiceStub(channel).FindChannelsInUse(
            pb.FindChannelsInUseRequest(), metadata=credentials.for_question(), timeout=CONNECT_S
        )
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return False
        raise
    return True


async def wait_until_accepted(connection: Connection, *, is_known: bool) -> bool:
    """Wait until a target has accepted the agent.

    A target that is known to have the extensions (`is_known`) confirms that it has accepted. A Rust
    broker does not: it counts as accepted if it does not refuse within `RUST_REFUSES_WITHIN_S`. A
    slow target with extensions must not be treated like that, because this node would then send
    neither idempotency keys nor the progress of readers.

    Returns: whether the target understands the extensions.
    Raises: MegaphoneError, when the target ends the stream, or when a target that has the
        extensions does not answer in time.
    """
    over = asyncio.ensure_future(connection.call.code())
    metadata = asyncio.ensure_future(connection.call.initial_metadata())
    try:
        async with asyncio.timeout(CONNECT_S if is_known else RUST_REFUSES_WITHIN_S):
            await asyncio.wait({over, metadata}, return_when=asyncio.FIRST_COMPLETED)
            if not over.done() and wire.EXTENSIONS_KEY in dict(metadata.result() or ()):
                return True
            await over  # because the metadata of a refusal arrive before its status
        raise await connection.failure()
    except TimeoutError:
        if is_known:
            raise TargetUnavailable("the target did not say whether it accepts the agent") from None
        return False
    finally:
        over.cancel()
        metadata.cancel()
