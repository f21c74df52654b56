"""Another node, as a pipe reaches it."""

import asyncio
import random
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from megaphone.cluster.credentials import Credentials
from megaphone.errors import (
    BadRequest,
    MegaphoneError,
    TargetUnavailable,
    Unauthenticated,
    WrongMode,
)
from megaphone.model import ENDPOINT_PATTERN, Endpoint
from megaphone.wire import sync as wire
from megaphone_api import sync_pb2 as pb
from megaphone_api.sync_pb2_grpc import SyncServiceStub

TARGET = re.compile(rf"(?:http://)?({ENDPOINT_PATTERN})/?")

CONNECT_S = 5.0
"""How long a target may take to be reached."""
RUST_REFUSES_WITHIN_S = 1.0
"""How long the Rust broker is waited for to refuse an agent. That it takes one it does not say."""
OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.max_send_message_length", -1),
    # Without this two pipes would share a connection, and one that is full would hold back both.
    ("grpc.use_local_subchannel_pool", 1),
)

REFUSED = {
    grpc.StatusCode.INVALID_ARGUMENT: BadRequest,
    grpc.StatusCode.FAILED_PRECONDITION: WrongMode,
}


def endpoint_of(target: str) -> Endpoint:
    """Return the endpoint of a target such as http://host:3001.

    Raises: BadRequest.
    """
    if found := TARGET.fullmatch(target):
        return Endpoint.parse(found[1])
    raise BadRequest("the target must be the gRPC address of a node, such as http://host:3001")


async def endpoints_of(target: str) -> list[Endpoint]:
    """Return the endpoint of every node that a target stands for, in any order: its name may have
    several addresses. Those that cannot be reached are left out.

    Raises: BadRequest; TargetUnavailable, when none can.
    """
    endpoint = endpoint_of(target)
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            endpoint.host, endpoint.port, type=socket.SOCK_STREAM
        )
    except OSError:
        raise TargetUnavailable("the name of the target cannot be resolved") from None
    endpoints = [Endpoint(str(address[0]), int(address[1])) for *_, address in found]
    reached = await asyncio.gather(*map(is_reachable, endpoints))
    there = [endpoint for endpoint, is_there in zip(endpoints, reached, strict=True) if is_there]
    if not there:
        raise TargetUnavailable
    return random.sample(there, len(there))


async def is_reachable(endpoint: Endpoint) -> bool:
    """Tell whether somebody listens there. gRPC itself would try for as long as it may."""
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    except OSError:
        return False
    writer.close()
    return True


def refusal(status: grpc.StatusCode, details: str | None) -> MegaphoneError:
    """Return what it means that a target ended a stream, or a question, with a status."""
    if status is grpc.StatusCode.UNAUTHENTICATED:
        return Unauthenticated(f"the target refuses this node: {details}")
    kind = REFUSED.get(status, TargetUnavailable)
    return kind(f"the target ended the stream: {details or status.name}")


@dataclass(slots=True)
class Connection:
    """A stream to a target that has taken its first message."""

    channel: grpc.aio.Channel
    call: Any  # its type is not exported
    extended: bool
    """Whether the target understands the extensions."""
    credentials: Credentials

    async def send(self, request: pb.SyncRequest) -> None:
        """Send a message, waiting for a target that is slow.

        Raises: MegaphoneError, when the stream is over.
        """
        try:
            await self.call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            raise await self.failure() from None

    async def in_use(self, addresses: Sequence[str]) -> set[str]:
        """Return those of some channels that are in use there; without extensions, all of them.

        Raises: TargetUnavailable.
        """
        if not self.extended:
            return set(addresses)
        return set((await self._ask(addresses)).channel_ids)

    async def positions(self, addresses: Sequence[str]) -> dict[str, str]:
        """Return how far those of some channels were read that were read there, by address.

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
        """Say that nothing more will come, and wait until everything has taken effect.

        Raises: MegaphoneError, when it may not have.
        """
        await self.call.done_writing()
        if await self.call.code() is not grpc.StatusCode.OK:
            raise await self.failure()

    async def failure(self) -> MegaphoneError:
        """Wait for the end of the stream, and return what it means."""
        return refusal(await self.call.code(), await self.call.details())

    async def close(self) -> None:
        self.call.cancel()
        await self.channel.close()


async def connect(
    endpoint: Endpoint, start: pb.SyncRequest, credentials: Credentials
) -> Connection:
    """Begin a stream with its first message, once the target has proved what it has to.

    Raises: TargetUnavailable; Unauthenticated, when it has not, or refuses this node; BadRequest
        and WrongMode, when it refuses the agent.
    """
    if not await is_reachable(endpoint):
        raise TargetUnavailable
    channel = grpc.aio.insecure_channel(str(endpoint), options=OPTIONS)
    try:
        async with asyncio.timeout(CONNECT_S):
            await channel.channel_ready()
        metadata = await credentials.greet(channel, CONNECT_S)
        is_known = await answers_questions(channel, credentials)
        call = SyncServiceStub(channel).ForwardEvents(metadata=metadata)
        connection = Connection(channel, call, extended=False, credentials=credentials)
        await connection.send(start)
        connection.extended = await has_taken(connection, is_known=is_known)
    except TimeoutError:
        await channel.close()
        raise TargetUnavailable from None
    except grpc.aio.AioRpcError as error:
        await channel.close()
        raise refusal(error.code(), error.details()) from None
    except BaseException:
        await channel.close()
        raise
    return connection


async def answers_questions(channel: grpc.aio.Channel, credentials: Credentials) -> bool:
    """Tell whether a target has the extensions. The Rust broker does not know the question.

    Raises: AioRpcError, when it refuses this node, or does not answer.
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


async def has_taken(connection: Connection, *, is_known: bool) -> bool:
    """Wait until a target has taken the agent, or may have.

    One that `is_known` to have the extensions says so, however slow it is. Taken for a Rust broker,
    it would be sent neither keys nor how far channels were read.

    Returns: whether it understands the extensions.
    Raises: MegaphoneError, when it ends the stream instead, or has the extensions and is silent.
    """
    over = asyncio.ensure_future(connection.call.code())
    metadata = asyncio.ensure_future(connection.call.initial_metadata())
    try:
        async with asyncio.timeout(CONNECT_S if is_known else RUST_REFUSES_WITHIN_S):
            await asyncio.wait({over, metadata}, return_when=asyncio.FIRST_COMPLETED)
            if not over.done() and wire.EXTENSIONS_KEY in dict(metadata.result() or ()):
                return True
            await over  # a refusal has metadata too, which come before its status
        raise await connection.failure()
    except TimeoutError:
        if is_known:
            raise TargetUnavailable("the target did not say whether it accepts the agent") from None
        return False
    finally:
        over.cancel()
        metadata.cancel()
