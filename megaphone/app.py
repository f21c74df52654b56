"""Builds every part of a node, and owns the order in which they start and stop."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from megaphone import __version__
from megaphone.backend import Backend, backend
from megaphone.build import build_kind
from megaphone.cluster.node_secret import NodeGuard
from megaphone.core.admin import Admin
from megaphone.core.agents import Agents
from megaphone.core.broker import Broker
from megaphone.core.budget import Budget
from megaphone.core.ports import Pipes
from megaphone.errors import ShuttingDown, StoreUnavailable
from megaphone.listen.exposure import accepted_sources, is_loopback, warnings
from megaphone.listen.sockets import grpc_path, listen_tcp, listen_unix, unlink_unix
from megaphone.observe.metrics import LogCounts, Metrics
from megaphone.observe.webhooks import Webhooks
from megaphone.process import descriptors, memory
from megaphone.rest.admin import AdminApi
from megaphone.rest.channels import ChannelApi
from megaphone.rest.connection.limits import Connections
from megaphone.rest.cors import headers_of
from megaphone.rest.lane import Lane
from megaphone.rest.probes import ProbeApi
from megaphone.rest.server import HttpServer
from megaphone.rpc.admin import AdminServicer
from megaphone.rpc.channels import ChannelServicer
from megaphone.rpc.server import AdminServer, GrpcServer
from megaphone.rpc.sync import SyncServicer
from megaphone.settings import Settings

log = logging.getLogger(__name__)

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)
ADMIN_BODY_BYTES = 65_536
FACES = 2
CONNECTION_BYTES = 16_384
"""The memory of an idle connection, or of an open read."""
CONNECTIONS_FRACTION = 8
"""Idle connections may use the memory divided by this number."""
HEALTH_S = 1.0
"""How often the health service of gRPC looks whether the node serves."""
QUIET_S = 0.01
"""If no request arrives for this long, a stopping node assumes that none is on its way."""
STOP_GRACE_S = 0.1
"""How long a stopping node answers new requests with SHUTTING_DOWN while more of them arrive."""


@dataclass(frozen=True, slots=True)
class App:
    """A broker that serves."""

    broker: Broker
    admin: Admin
    agents: Agents
    pipes: Pipes
    metrics: Metrics
    http_port: int
    grpc_port: int


@asynccontextmanager
async def running(settings: Settings, logs: LogCounts | None = None) -> AsyncIterator[App]:
    """Serve within this context, and stop in order at its end.

    The parts stop in the opposite order of their start: health reports the shutdown, agents move to
    the drain target, new requests are refused, and every read ends cleanly after a whole event.
    When no more requests arrive, the pipes are completed, then the servers close, then the store.
    The store removes the remaining channels, and webhooks report them before the end.

    Raises: OSError, if the node cannot listen.
    """
    webhooks = Webhooks(settings.webhooks)
    budget = Budget(settings.max_buffered_bytes or memory.bytes_for_clients())
    connections = Connections(connections_of_each_face(settings))
    metrics = Metrics(webhooks, budget, connections, logs)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(webhooks)  # ends last, to report the channels of the store
        built = await stack.enter_async_context(backend(settings, budget, metrics, webhooks))
        broker = built.broker
        admin = Admin(
            store=built.store, agents=built.agents, pipes=built.pipes, drains=built.drains
        )
        http, grpc = faces(settings, built, budget, metrics, connections)
        trimming = asyncio.create_task(memory.keep_small())
        stack.callback(trimming.cancel)
        if settings.mng_socket_path is not None:
            await stack.enter_async_context(
                serving_admin(admin, budget, settings.mng_socket_path, settings.grpc_reflection)
            )
        http_port = await http.start(listen_tcp(settings.http_endpoint))
        stack.push_async_callback(http.stop)
        grpc_port = await grpc.start(settings.grpc_endpoint)
        stack.push_async_callback(grpc.stop)
        # The pipes are completed before the servers close. So a client that cannot reach this node
        # any more finds the agents at their targets.
        stack.push_async_callback(built.complete_pipes)
        stack.push_async_callback(quiet, lambda: http.requests_begun + grpc.calls_begun)
        stack.push_async_callback(broker.begin_shutdown)
        stack.push_async_callback(built.move_away)
        reporting = asyncio.create_task(report_health(broker, grpc))
        stack.callback(reporting.cancel)
        stack.push_async_callback(grpc.report_shutdown)
        yield App(broker, admin, built.agents, built.pipes, metrics, http_port, grpc_port)


async def report_health(broker: Broker, grpc: GrpcServer) -> None:
    """Let the health service of gRPC say what `/readyz` says, forever."""
    serves = True
    while True:
        await asyncio.sleep(HEALTH_S)
        try:
            broker.check_serves()
            serves_now = True
        except StoreUnavailable:
            serves_now = False
        except ShuttingDown:
            return
        if serves_now != serves:
            serves = serves_now
            await grpc.report(serves=serves)


def faces(
    settings: Settings,
    built: Backend,
    budget: Budget,
    metrics: Metrics,
    connections: Connections,
) -> tuple[HttpServer, GrpcServer]:
    """Build both faces for clients."""
    broker = built.broker
    http = HttpServer(
        [*ChannelApi(broker).routes(), *ProbeApi(broker, metrics).routes()],
        budget=budget,
        max_body_bytes=settings.max_body_bytes,
        cors_origin=settings.cors_allow_origin,
        connections=connections,
        lane=lane_of(broker, settings),
    )
    grpc = GrpcServer(
        ChannelServicer(broker, budget),
        SyncServicer(built.incoming),
        NodeGuard(settings.nodes, is_loopback=is_loopback(settings.grpc_endpoint)),
        budget=budget,
        max_body_bytes=settings.max_body_bytes,
        max_members=max(settings.max_batch_events, settings.max_addresses),
        max_connections=connections_of_each_face(settings),
        with_reflection=settings.grpc_reflection,
    )
    return http, grpc


@asynccontextmanager
async def serving_admin(
    admin: Admin, budget: Budget, socket_path: str, with_reflection: bool
) -> AsyncIterator[None]:
    """Serve the admin API within this context: HTTP at the path, gRPC beside it."""
    http = HttpServer(AdminApi(admin).routes(), budget=budget, max_body_bytes=ADMIN_BODY_BYTES)
    grpc = AdminServer(AdminServicer(admin), with_reflection=with_reflection)
    async with AsyncExitStack() as stack:
        listening = listen_unix(socket_path)
        stack.callback(unlink_unix, socket_path)
        await http.start(listening)
        stack.push_async_callback(http.stop)
        await grpc.start(grpc_path(socket_path))
        stack.callback(unlink_unix, grpc_path(socket_path))
        stack.push_async_callback(grpc.stop)
        yield


def lane_of(broker: Broker, settings: Settings) -> Lane | None:
    """Return the lane of the HTTP face, unless it is switched off."""
    if not settings.http_lane:
        return None
    return Lane(broker, settings.max_body_bytes, headers_of(settings.cors_allow_origin))


async def quiet(requests_begun: Callable[[], int]) -> None:
    """Wait until no request has arrived for `QUIET_S`, but at most for `STOP_GRACE_S`."""
    for _ in range(round(STOP_GRACE_S / QUIET_S)):
        before = requests_begun()
        await asyncio.sleep(QUIET_S)
        if requests_begun() == before:
            return


def connections_of_each_face(settings: Settings) -> int:
    """Return how many client connections each face may have.

    The number leaves descriptors for the rest of the node. Without them an operator could not even
    reach the admin socket.
    """
    most = max(1, descriptors.for_clients() // FACES)
    wanted = settings.max_connections
    if wanted is None:
        of_memory = memory.allowed_bytes() // CONNECTIONS_FRACTION
        return min(most, max(1, of_memory // CONNECTION_BYTES // FACES))
    if wanted > most:
        log.warning("max_connections is %d, not %d: there are too few descriptors", most, wanted)
    return min(most, wanted)


async def serve(
    settings: Settings, announce: Callable[[App], None], logs: LogCounts | None = None
) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then stop in order.

    A second SIGTERM or SIGINT ends the process at once. A second SIGHUP does not, because terminals
    and service managers send SIGHUP together with other signals. `announce` is called when every
    server listens.
    """
    stopped = asyncio.Event()
    handle_signals(stopped)
    async with running(settings, logs) as app:
        log.info(
            "megaphone %s (%s) serves HTTP on %s and gRPC on %s; it accepts agents from %s",
            __version__,
            build_kind(),
            settings.http_endpoint.with_port(app.http_port),
            settings.grpc_endpoint.with_port(app.grpc_port),
            accepted_sources(settings),
        )
        for warning in warnings(settings):
            log.warning("%s", warning)
        announce(app)
        await stopped.wait()
    log.info("stopped")


def handle_signals(stopped: asyncio.Event) -> None:
    """Set an event when a signal asks this process to stop."""
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        if not stopped.is_set():
            log.info("%s: stopping", number.name)
            stopped.set()
        if number is not signal.SIGHUP:
            for ending in ENDING_SIGNALS:
                loop.remove_signal_handler(ending)
                signal.signal(ending, signal.SIG_DFL)

    for number in ENDING_SIGNALS:
        loop.add_signal_handler(number, stop, number)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which `nohup` sets
        loop.add_signal_handler(signal.SIGHUP, stop, signal.SIGHUP)
