"""Runs the gRPC face: one port, its limits, its services, and its orderly end.

Operators have a server of their own, on a Unix socket.
"""

import asyncio
from collections.abc import Callable, Sequence
from urllib.parse import quote

import grpc

from megaphone.cluster.node_secret import NodeGuard
from megaphone.core.budget import Budget
from megaphone.core.peers import PeerLimits
from megaphone.core.ports import Doorkeeper
from megaphone.listen.certificates import Contents
from megaphone.listen.sockets import (
    begin_no_connections,
    bound_as,
    end_listening,
    open_connections,
    owner_only,
)
from megaphone.model import Endpoint
from megaphone.observe.access_log import AccessLog
from megaphone.observe.calls import FaceCalls
from megaphone.rpc.access import GrpcAccess
from megaphone.rpc.admin import AdminServicer
from megaphone.rpc.callers import CallerInterceptor
from megaphone.rpc.channels import ChannelServicer
from megaphone.rpc.encryption import server_credentials
from megaphone.rpc.errors import ErrorInterceptor, OnError, ignore
from megaphone.rpc.nodes import CertificateInterceptor, NodeInterceptor
from megaphone.rpc.probes import HEALTH_SERVICE, Health
from megaphone.rpc.reflection import serve_reflection
from megaphone.rpc.requests import Reception, ReceptionInterceptor
from megaphone.rpc.sync import SyncServicer
from megaphone_api import sync_pb2
from megaphone_api.sync_pb2_grpc import add_SyncServiceServicer_to_server
from megaphone_api.v1 import admin_pb2
from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.admin_pb2_grpc import add_AdminServiceServicer_to_server
from megaphone_api.v1.channels_pb2_grpc import add_ChannelServiceServicer_to_server

STOP_TIMEOUT_S = 1.0
"""How long `stop` waits for calls that are under way."""
FRAMING_BYTES = 16_384
"""How many bytes a message may have in addition to the largest body: for addresses, ids and field
numbers."""
HANDSHAKE_TIMEOUT_MS = 10_000
"""How long a new client may take to begin HTTP/2. After that, grpc closes its connection."""
AGE_JITTER = 0.1
"""grpc changes the age of each connection by up to this part."""
ACCEPTING_S = 0.25
"""How long a server that leaves still accepts the connections that have begun. It must be longer
than the way to a client and back."""
LEAVING_CHECK_S = 0.5
MAX_WAITING_CALLS = 20_000
"""How many calls may wait that no handler has begun yet. Each takes some kilobytes."""
WAITING_CALLS = (
    # When as many calls wait as the first number says, grpc begins to cancel new calls at random.
    # From the second number on, it cancels every new call. Our clients do not understand the error
    # that grpc sends then. The defaults, 1,000 and 3,000, are so low that a burst reaches them.
    ("grpc.server.max_pending_requests", MAX_WAITING_CALLS),
    ("grpc.server.max_pending_requests_hard_limit", MAX_WAITING_CALLS),
)

VANISHING_CLIENTS = (
    # These notice after 4 s that a client has vanished. The third of them is for a client that
    # hangs while its kernel still acknowledges.
    ("grpc.keepalive_time_ms", 2_000),
    ("grpc.keepalive_timeout_ms", 2_000),
    ("grpc.http2.ping_timeout_ms", 2_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
)

CHANNEL_SERVICE = pb.DESCRIPTOR.services_by_name["ChannelService"].full_name
ADMIN_SERVICE = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
SYNC_SERVICE = sync_pb2.DESCRIPTOR.services_by_name["SyncService"].full_name


class GrpcServer:
    """Serves ChannelService, SyncService, health and reflection, from `start` to `stop`.

    SyncService admits only the nodes that `guard` admits, and ChannelService only the callers that
    `doorkeeper` admits. A request with more than `max_members`
    members in its lists is refused.
    """

    def __init__(
        self,
        channels: ChannelServicer,
        sync: SyncServicer | None,
        guard: NodeGuard,
        doorkeeper: Doorkeeper,
        peers: PeerLimits,
        *,
        budget: Budget,
        max_body_bytes: int,
        max_members: int,
        max_connections: int,
        with_reflection: bool,
        connection_age_s: float | None = None,
        shares_port: bool = False,
        tls: Callable[[], Contents] | None = None,
        on_error: OnError = ignore,
        calls: FaceCalls | None = None,
        access_log: AccessLog | None = None,
    ) -> None:
        """`tls` returns the certificate for each new connection; without it, connections are plain.
        `on_error` is called with each error that a client gets. `calls` counts all calls, and
        `access_log` logs them, if it is given.

        With `shares_port`, other processes of the same user may listen on the same port.

        Clients of a connection that is older than `connection_age_s` make their next calls on
        another one; calls that are under way go on. There is no other way to empty a server without
        refused calls: one that stops cancels each call that arrives before the client knows of the
        stop.
        """
        max_message_bytes = max_body_bytes + FRAMING_BYTES
        reception = Reception(budget.limit_of_requests, max_message_bytes)
        access = None if access_log is None else GrpcAccess(access_log, peers.proxies)
        self._calls = ErrorInterceptor(max_members, on_error, calls, access)
        self._server = grpc.aio.server(
            interceptors=[
                self._calls,
                NodeInterceptor(guard),
                ReceptionInterceptor(reception, self._calls.refuse),
                CallerInterceptor(doorkeeper, peers, reception),
            ],
            options=[
                # With 1, a second broker takes the same port without an error.
                ("grpc.so_reuseport", int(shares_port)),
                *aging(connection_age_s),
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # The bandwidth probe would enlarge the flow-control windows, so that each call that
                # waits for its turn could send megabytes.
                ("grpc.http2.bdp_probe", 0),
                *VANISHING_CLIENTS,
                ("grpc.max_allowed_incoming_connections", max_connections),
                # A connection that sends nothing counts too, so it must not stay.
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
                *WAITING_CALLS,
            ],
        )
        self._port = 0
        self._tls = tls
        self._connection_age_s = connection_age_s or 0.0
        self._health = Health(self._server, CHANNEL_SERVICE)
        add_ChannelServiceServicer_to_server(channels, self._server)
        services = [CHANNEL_SERVICE, HEALTH_SERVICE]
        if sync is not None:
            add_SyncServiceServicer_to_server(sync, self._server)
            services.append(SYNC_SERVICE)
        if with_reflection:
            serve_reflection(self._server, services)

    async def start(self, endpoint: Endpoint) -> int:
        """Begin to listen, and to report SERVING. Returns: the port.

        Raises: OSError, if the endpoint is in use or does not belong to this machine.
        """
        port = bind(self._server, endpoint, self._tls)
        await self._server.start()
        await self._health.report(serves=True)
        self._port = port
        return port

    @property
    def calls_begun(self) -> int:
        """How many calls have arrived since the start."""
        return self._calls.calls_begun

    async def report(self, *, serves: bool) -> None:
        """Report SERVING or NOT_SERVING from now on."""
        await self._health.report(serves=serves)

    async def report_shutdown(self) -> None:
        """Report NOT_SERVING from now on, so that callers go elsewhere."""
        await self._health.report_shutdown()

    async def leave(self, end_reads: Callable[[], None]) -> None:
        """Stop listening, and wait until all connections have ended without a refused call.

        That takes up to `connection_age_s`. Then `end_reads` is called, again and again, for the
        reads that are still open.
        """
        begin_no_connections(self._port)
        await asyncio.sleep(ACCEPTING_S)
        end_listening(self._port)
        loop = asyncio.get_running_loop()
        all_aged_at = loop.time() + self._connection_age_s * (1 + AGE_JITTER)
        while await asyncio.to_thread(open_connections, self._port):
            if loop.time() > all_aged_at:
                end_reads()
            await asyncio.sleep(LEAVING_CHECK_S)

    async def stop(self) -> None:
        """Stop listening, and end the calls that are left."""
        await self._server.stop(STOP_TIMEOUT_S)


def bind(server: grpc.aio.Server, endpoint: Endpoint, tls: Callable[[], Contents] | None) -> int:
    """Let a server have a port. Returns: its number.

    Raises: OSError, if the endpoint is in use or does not belong to this machine.
    """
    _, host = bound_as(endpoint)
    address = str(Endpoint(host, endpoint.port))
    try:
        if tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, server_credentials(tls))
    except RuntimeError as error:
        raise OSError(f"cannot listen on {endpoint} for gRPC: is it in use?") from error


def aging(connection_age_s: float | None) -> tuple[tuple[str, int], ...]:
    """Return the option for how long connections take new calls."""
    if connection_age_s is None:
        return ()
    return (("grpc.max_connection_age_ms", round(1000 * connection_age_s)),)


class NodesServer:
    """Serves SyncService to nodes that have a certificate, from `start` to `stop`."""

    def __init__(
        self,
        sync: SyncServicer,
        names: Callable[[], Sequence[str]],
        tls: Callable[[], Contents],
        *,
        max_members: int,
        max_body_bytes: int,
        max_connections: int,
        calls: FaceCalls | None = None,
    ) -> None:
        """`names` returns the names in the certificates of nodes, and `tls` the certificate of this
        one for each new connection. `calls` counts all calls."""
        self._tls = tls
        self._server = grpc.aio.server(
            interceptors=[
                ErrorInterceptor(max_members, calls=calls),
                CertificateInterceptor(names),
            ],
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", max_body_bytes + FRAMING_BYTES),
                ("grpc.max_send_message_length", -1),
                ("grpc.http2.bdp_probe", 0),
                *VANISHING_CLIENTS,
                ("grpc.max_allowed_incoming_connections", max_connections),
                ("grpc.server_handshake_timeout_ms", HANDSHAKE_TIMEOUT_MS),
            ],
        )
        add_SyncServiceServicer_to_server(sync, self._server)

    async def start(self, endpoint: Endpoint) -> int:
        """Begin to listen. Returns: the port.

        Raises: OSError, if the endpoint is in use or does not belong to this machine.
        """
        port = bind(self._server, endpoint, self._tls)
        await self._server.start()
        return port

    async def stop(self) -> None:
        """Stop listening, and end the calls that are left."""
        await self._server.stop(STOP_TIMEOUT_S)


class AdminServer:
    """Serves AdminService on a Unix socket, from `start` to `stop`."""

    def __init__(
        self, admin: AdminServicer, *, with_reflection: bool, calls: FaceCalls | None = None
    ) -> None:
        """`calls` counts all calls."""
        self._server = grpc.aio.server(
            interceptors=[ErrorInterceptor(calls=calls)], options=WAITING_CALLS
        )
        add_AdminServiceServicer_to_server(admin, self._server)
        if with_reflection:
            serve_reflection(self._server, (ADMIN_SERVICE,))

    async def start(self, path: str) -> None:
        """Begin to listen on a socket to which only the owner of this process can connect.

        Raises: OSError, if the path cannot be used, or another broker serves there.
        """
        with owner_only(path):
            try:
                self._server.add_insecure_port(f"unix:{quote(path)}")
            except RuntimeError:
                raise OSError("gRPC cannot listen there") from None
        await self._server.start()

    async def stop(self) -> None:
        """Stop listening, and end the calls that are left."""
        await self._server.stop(STOP_TIMEOUT_S)
