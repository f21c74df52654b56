"""Builds every part of a node, and owns the order in which they start and stop."""

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from megaphone.access.doorkeeper import Doorkeeper
from megaphone.access.issuers import JwtVerifier
from megaphone.backend import Backend, backend
from megaphone.cluster.node_secret import NodeGuard
from megaphone.core.admin import Admin
from megaphone.core.agents import Agents
from megaphone.core.broker import Broker
from megaphone.core.budget import Budget
from megaphone.core.pace import loop_time
from megaphone.core.peers import PeerLimits
from megaphone.core.ports import Pipes
from megaphone.core.tenants import Tenants
from megaphone.errors import BadRequest, ShuttingDown, StoreUnavailable
from megaphone.listen.certificates import Certificates, Files, nodes_files, public_files
from megaphone.listen.exposure import is_loopback, log_start
from megaphone.listen.sockets import (
    begin_no_connections,
    bind_shared,
    grpc_path,
    listen_tcp,
    listen_unix,
    move_unix,
    open_connections,
    passing,
    unlink_unix,
)
from megaphone.model import AgentMode, Endpoint
from megaphone.observe.access_log import AccessLog
from megaphone.observe.calls import FaceCalls
from megaphone.observe.logs import LineWriter, is_text
from megaphone.observe.metrics import Metrics
from megaphone.observe.tracing import tracing
from megaphone.observe.webhooks import Webhooks
from megaphone.process import descriptors, memory
from megaphone.process.terminal import has_terminal
from megaphone.reload import Reloader
from megaphone.rest.access import HttpAccess
from megaphone.rest.admin import AdminApi
from megaphone.rest.callers import Callers
from megaphone.rest.connection.limits import Connections
from megaphone.rest.cors import Origins
from megaphone.rest.lane import Lane
from megaphone.rest.probes import ProbeApi
from megaphone.rest.public import public_routes
from megaphone.rest.resource import ResourceMetadata
from megaphone.rest.server import HttpServer
from megaphone.rpc.admin import AdminServicer
from megaphone.rpc.channels import ChannelServicer
from megaphone.rpc.encryption import channel_credentials
from megaphone.rpc.nodes import NodeNames
from megaphone.rpc.server import AdminServer, GrpcServer, NodesServer
from megaphone.rpc.sync import SyncServicer
from megaphone.settings import MEMORY, Settings
from megaphone.workers.worker import Worker

log = logging.getLogger(__name__)

ENDING_SIGNALS = (signal.SIGTERM, signal.SIGINT)
ADMIN_BODY_BYTES = 65_536
FACES = 2
CONNECTION_BYTES = 16_384
"""The memory of an idle connection, or of an open read."""
TLS_CONNECTION_BYTES = 32_768
"""The same, if the connection is encrypted."""
CONNECTIONS_FRACTION = 8
"""Idle connections may use the memory divided by this number."""
OPS_CONNECTIONS = 256
"""How many connections the port for operators may have."""
HEALTH_S = 1.0
"""How often the health service of gRPC looks whether the node serves."""
QUIET_S = 0.01
"""If no request arrives for this long, a stopping node assumes that none is on its way."""
STOP_GRACE_S = 0.1
"""How long a stopping node answers new requests with SHUTTING_DOWN while more of them arrive."""
ACCEPTING_S = 0.1
"""How long a stopping node with a shared store still accepts the connections that have begun."""
LAST_REQUESTS_S = 2.0
"""How long such a node waits for a last request on each HTTP connection."""


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
    nodes_port: int | None
    ops_port: int | None
    reloader: Reloader
    doorkeeper: Doorkeeper
    leave: Callable[[], Awaitable[None]]
    """Stop listening, and wait until all clients have gone without a refused call. For workers."""


@asynccontextmanager
async def running(
    settings: Settings, logs: LineWriter | None = None, worker: Worker | None = None
) -> AsyncIterator[App]:
    """Serve within this context, and stop in order at its end. `logs` writes the process log;
    without it there is no access log.

    The parts stop in the opposite order of their start: health reports the shutdown, agents move to
    the drain target, new requests are refused, and every read ends cleanly after a whole event.
    When no more requests arrive, the pipes are completed, then the servers close, then the store.
    The store removes the remaining channels, and webhooks report them before the end.

    The channels of a shared store live on, and other nodes serve them. So a node that has one lets
    its clients go, before it refuses anything.

    With `worker`, this process is one of several that serve the same ports.

    Raises: OSError, if the node cannot listen.
    """
    public = certificates_of("public", public_files, settings)
    for_nodes = certificates_of("nodes", nodes_files, settings)
    webhooks = Webhooks(settings.webhooks, allow=settings.webhooks_allow)
    budget = Budget(settings.max_buffered_bytes or memory.bytes_for_clients(settings.workers))
    reloader = Reloader(settings)
    tenants = Tenants(settings.tenants)
    peers = PeerLimits(settings)
    reloader.add(peers, "creates_per_s_per_ip", "auth_failures_per_s", "trusted_proxies")
    reloader.add(tenants, "tenants")  # before the doorkeeper, which asks it whether it has limits
    connections = Connections(
        connections_of_each_face(settings),
        settings.max_connections_per_ip,
        lambda ip: peers.proxies.has(ip),
    )
    metrics = Metrics(webhooks, budget, connections, logs)
    metrics.add("channels_limit", lambda: settings.max_channels)
    metrics.add("reloads_total", lambda: by_outcome(reloader.succeeded, reloader.failed))
    certificates = [one for one in (public, for_nodes) if one is not None]
    if certificates:
        add_metrics_of_certificates(metrics, certificates)
    if public is not None:
        reloader.add(public, "tls")
    if for_nodes is not None:
        reloader.add(for_nodes, "nodes.certificate", "nodes.key", "nodes.ca")
    async with AsyncExitStack() as stack:
        spans = await stack.enter_async_context(tracing())
        await stack.enter_async_context(webhooks)  # ends last, to report the channels of the store
        built = await stack.enter_async_context(
            backend(
                settings,
                budget,
                tenants,
                peers,
                metrics,
                webhooks,
                spans,
                None
                if for_nodes is None
                else lambda: channel_credentials(for_nodes.identity.contents),
            )
        )
        broker = built.broker
        admin = Admin(
            store=built.store,
            agents=built.agents,
            pipes=built.pipes,
            drains=built.drains,
            counts=metrics,
            let_others_have=None if worker is None else worker.let_others_have,
            let_others_drop=None if worker is None else worker.let_others_drop,
            on_agent_removed=built.incoming.forget_sources,
        )
        all_metrics = metrics.text if worker is None else worker.gather
        jwts = await stack.enter_async_context(JwtVerifier(settings, tenants=tenants))
        doorkeeper = Doorkeeper(
            settings,
            tenants=tenants,
            peers=peers,
            clock=loop_time,
            verifiers=[jwts],
            on_change=broker.end_refused_reads,
        )
        reloader.add(jwts, "auth")  # before the doorkeeper, who looks whom it has revoked
        reloader.add(doorkeeper, "auth")
        add_metrics_of_access(metrics, doorkeeper, jwts)
        resource = None
        if settings.public_url is not None:
            resource = ResourceMetadata(settings.public_url, jwts.urls)
        add_metrics_of_pipes(metrics, built.pipes)
        if settings.store == MEMORY:  # nodes that share a store all serve the same agents
            metrics.add("agents", lambda: modes_of(built.agents))
        access_log = access_log_of(settings, logs, broker)
        if access_log is not None:
            stack.callback(access_log.flush)
            flushing = asyncio.create_task(access_log.run())
            stack.callback(flushing.cancel)
        http, grpc = faces(
            settings,
            built,
            doorkeeper,
            budget,
            metrics,
            connections,
            worker,
            public,
            all_metrics,
            admin,
            resource,
            access_log,
        )
        for one in certificates:
            checking = asyncio.create_task(one.keep_current(reloader.one_at_a_time))
            stack.callback(checking.cancel)
        looking = asyncio.create_task(broker.lookout.run())
        stack.callback(looking.cancel)
        trimming = asyncio.create_task(memory.keep_small(settings.workers))
        stack.callback(trimming.cancel)
        measuring = asyncio.create_task(metrics.lag.measure())
        stack.callback(measuring.cancel)
        if settings.mng_socket_path is not None:
            await stack.enter_async_context(
                serving_admin(
                    admin,
                    budget,
                    metrics,
                    settings.mng_socket_path,
                    settings.grpc_reflection is not False,
                    replaces=worker is not None,
                )
            )
        listening = worker.http if worker is not None else listen_tcp(settings.http_endpoint)
        http_port = await http.start(listening)
        stack.push_async_callback(http.stop)
        grpc_port = await grpc.start(settings.grpc_endpoint)
        stack.push_async_callback(grpc.stop)
        nodes_port = None
        if for_nodes is not None and settings.nodes_endpoint is not None:
            nodes = nodes_server(settings, built, for_nodes, reloader, metrics.grpc)
            nodes_port = await nodes.start(settings.nodes_endpoint)
            stack.push_async_callback(nodes.stop)
        ops_port = None
        if settings.ops_endpoint is not None:
            ops_port = await stack.enter_async_context(
                serving_ops(
                    broker,
                    budget,
                    metrics,
                    all_metrics,
                    admin,
                    settings.ops_endpoint,
                    shares_port=worker is not None,
                )
            )
        # The pipes are completed before the servers close. So a client that cannot reach this node
        # any more finds the agents at their targets.
        stack.push_async_callback(built.complete_pipes)
        stack.push_async_callback(quiet, lambda: http.requests_begun + grpc.calls_begun)
        stack.push_async_callback(broker.begin_shutdown)
        if settings.store != MEMORY and worker is None:  # because workers share their sockets
            within_s = settings.drain_timeout_secs
            stack.push_async_callback(
                let_clients_go, broker, http, http_port, connections, grpc, grpc_port, within_s
            )
        stack.push_async_callback(built.move_away)
        reporting = asyncio.create_task(report_health(broker, grpc))
        stack.callback(reporting.cancel)
        stack.push_async_callback(grpc.report_shutdown)
        stack.callback(broker.begin_leaving)

        async def leave() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(http.leave())
                group.create_task(grpc.leave(broker.end_all_reads))

        yield App(
            broker,
            admin,
            built.agents,
            built.pipes,
            metrics,
            http_port,
            grpc_port,
            nodes_port,
            ops_port,
            reloader,
            doorkeeper,
            leave,
        )


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
    doorkeeper: Doorkeeper,
    budget: Budget,
    metrics: Metrics,
    connections: Connections,
    worker: Worker | None,
    certificates: Certificates | None,
    all_metrics: Callable[[], Awaitable[bytes]],
    admin: Admin,
    resource: ResourceMetadata | None,
    access_log: AccessLog | None,
) -> tuple[HttpServer, GrpcServer]:
    """Build both faces for clients."""
    broker = built.broker
    callers = Callers(doorkeeper, broker.peers)
    http = HttpServer(
        public_routes(
            broker,
            callers,
            all_metrics,
            admin.list_agents,
            with_pages=settings.http_pages,
            with_ops=settings.ops_address is None,
            resource=resource,
        ),
        resource=resource,
        budget=budget,
        max_body_bytes=settings.max_body_bytes,
        origins=Origins(settings.cors_allow_origin),
        connections=connections,
        lane=lane_of(broker, doorkeeper, settings, metrics.http),
        tls=None if certificates is None else lambda: certificates.identity.context,
        on_error=metrics.refused,
        calls=metrics.http,
        access=None if access_log is None else HttpAccess(access_log, doorkeeper, callers),
    )
    grpc = GrpcServer(
        ChannelServicer(broker, budget, doorkeeper),
        SyncServicer(built.incoming) if settings.nodes.address is None else None,
        NodeGuard(settings.nodes, is_loopback=is_loopback(settings.grpc_endpoint)),
        doorkeeper,
        broker.peers,
        budget=budget,
        max_body_bytes=settings.max_body_bytes,
        max_members=max(settings.max_batch_events, settings.max_addresses),
        max_connections=connections_of_each_face(settings),
        with_reflection=reflects(settings),
        connection_age_s=None if settings.store == MEMORY else settings.grpc_connection_age_secs,
        shares_port=worker is not None,
        tls=None if certificates is None else lambda: certificates.identity.contents,
        on_error=metrics.refused,
        calls=metrics.grpc,
        access_log=access_log,
    )
    return http, grpc


def access_log_of(settings: Settings, lines: LineWriter | None, broker: Broker) -> AccessLog | None:
    """Return the access log, if there shall be one."""
    if lines is None or settings.access_log == "off":
        return None
    return AccessLog(
        lines,
        broker.channel_id_of,
        only_errors=settings.access_log == "errors",
        as_text=is_text(settings.log_format),
    )


def reflects(settings: Settings) -> bool:
    """Return whether the port for clients has reflection."""
    if settings.grpc_reflection is None:
        return is_loopback(settings.grpc_endpoint)
    return settings.grpc_reflection


@asynccontextmanager
async def serving_ops(
    broker: Broker,
    budget: Budget,
    metrics: Metrics,
    all_metrics: Callable[[], Awaitable[bytes]],
    admin: Admin,
    endpoint: Endpoint,
    *,
    shares_port: bool,
) -> AsyncIterator[int]:
    """Answer the questions of operators within this context. Yields: the port.

    Raises: OSError, if the endpoint is in use or does not belong to this machine.
    """
    http = HttpServer(
        ProbeApi(broker, None, all_metrics, admin.list_agents).routes(),
        budget=budget,
        max_body_bytes=ADMIN_BODY_BYTES,
        connections=Connections(OPS_CONNECTIONS),
        calls=metrics.http,
    )
    port = await http.start(bind_shared(endpoint) if shares_port else listen_tcp(endpoint))
    try:
        yield port
    finally:
        await http.stop()


@asynccontextmanager
async def serving_admin(
    admin: Admin,
    budget: Budget,
    metrics: Metrics,
    socket_path: str,
    with_reflection: bool,
    *,
    replaces: bool,
) -> AsyncIterator[None]:
    """Serve the admin API within this context: HTTP at the path, gRPC beside it.

    With `replaces`, the sockets take the place of those that are there.
    """
    http = HttpServer(
        AdminApi(admin).routes(),
        budget=budget,
        max_body_bytes=ADMIN_BODY_BYTES,
        calls=metrics.http,
    )
    grpc = AdminServer(AdminServicer(admin), with_reflection=with_reflection, calls=metrics.grpc)
    async with AsyncExitStack() as stack:

        def bound(path: str, at: str) -> None:
            inode = move_unix(at, path) if replaces else None
            stack.callback(unlink_unix, path, inode)

        for_http, for_grpc = socket_path, grpc_path(socket_path)
        place = passing if replaces else str
        listening = listen_unix(place(for_http))
        bound(for_http, place(for_http))
        await http.start(listening)
        stack.push_async_callback(http.stop)
        await grpc.start(place(for_grpc))
        bound(for_grpc, place(for_grpc))
        stack.push_async_callback(grpc.stop)
        yield


def lane_of(
    broker: Broker, doorkeeper: Doorkeeper, settings: Settings, calls: FaceCalls
) -> Lane | None:
    """Return the lane of the HTTP face, unless it is switched off."""
    if not settings.http_lane:
        return None
    origins = Origins(settings.cors_allow_origin)
    return Lane(broker, doorkeeper, settings.max_body_bytes, origins, calls=calls)


async def let_clients_go(
    broker: Broker,
    http: HttpServer,
    http_port: int,
    connections: Connections,
    grpc: GrpcServer,
    grpc_port: int,
    within_s: float,
) -> None:
    """Stop listening, so that proxies and clients go elsewhere, and serve those who are here until
    they have gone: over HTTP after an answer that says so, over gRPC with the age of their
    connections. A face without connections has no clients to wait for."""

    async def over_http() -> None:
        begin_no_connections(http_port)
        await asyncio.sleep(ACCEPTING_S)
        await first_of(http.leave(), asyncio.sleep(min(LAST_REQUESTS_S, within_s)))

    async def over_grpc() -> None:
        await first_of(grpc.leave(broker.end_all_reads), asyncio.sleep(within_s))

    async with asyncio.TaskGroup() as group:
        if connections.open:
            group.create_task(over_http())
        if open_connections(grpc_port):
            group.create_task(over_grpc())


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
    bytes_of_each = CONNECTION_BYTES if public_files(settings) is None else TLS_CONNECTION_BYTES
    most = max(1, descriptors.for_clients() // FACES)
    wanted = settings.max_connections
    if wanted is None:
        of_memory = memory.allowed_bytes(settings.workers) // CONNECTIONS_FRACTION
        return min(most, max(1, of_memory // bytes_of_each // FACES))
    if wanted > most:
        log.warning("max_connections is %d, not %d: there are too few descriptors", most, wanted)
    return min(most, wanted)


def nodes_server(
    settings: Settings,
    built: Backend,
    certificates: Certificates,
    reloader: Reloader,
    calls: FaceCalls,
) -> NodesServer:
    """Build the server for other nodes."""
    node_names = NodeNames(settings)
    reloader.add(node_names, "nodes.names")
    return NodesServer(
        SyncServicer(built.incoming),
        lambda: node_names.names,
        lambda: certificates.identity.contents,
        max_members=max(settings.max_batch_events, settings.max_addresses),
        max_body_bytes=settings.max_body_bytes,
        max_connections=connections_of_each_face(settings),
        calls=calls,
    )


def certificates_of(
    door: str, files_in: Callable[[Settings], Files | None], settings: Settings
) -> Certificates | None:
    """Return the certificate of a door, if it has one. Raises: UnusableCertificate."""
    return None if files_in(settings) is None else Certificates(door, files_in, settings)


def by_outcome(succeeded: int, failed: int) -> list[tuple[dict[str, str], int]]:
    """Return the samples of a metric that counts outcomes."""
    return [({"outcome": "success"}, succeeded), ({"outcome": "failure"}, failed)]


def add_metrics_of_certificates(metrics: Metrics, some: Sequence[Certificates]) -> None:
    metrics.add(
        "certificate_not_after_timestamp_seconds",
        lambda: [({"door": one.door}, one.identity.not_after.timestamp()) for one in some],
    )
    metrics.add(
        "certificate_reloads_total",
        lambda: by_outcome(sum(one.succeeded for one in some), sum(one.failed for one in some)),
    )


def add_metrics_of_access(metrics: Metrics, doorkeeper: Doorkeeper, jwts: JwtVerifier) -> None:
    metrics.add(
        "auth_failures_total",
        lambda: [({"reason": code}, count) for code, count in doorkeeper.refused.counts.items()],
    )
    metrics.add(
        "jwks_fetched_timestamp_seconds",
        lambda: [({"issuer": name}, at) for name, at in jwts.fetch_times().items()],
    )


def modes_of(agents: Agents) -> list[tuple[dict[str, str], int]]:
    """Return how many agents there are, by their modes."""
    counts = Counter(agent.mode for agent in agents)
    return [({"mode": mode.value}, counts[mode]) for mode in AgentMode]


def add_metrics_of_pipes(metrics: Metrics, pipes: Pipes) -> None:
    """An agent may have pipes to several nodes."""

    def connected() -> list[tuple[dict[str, str], int]]:
        found: dict[str, bool] = {}
        for one in pipes.described():
            found[one.agent] = found.get(one.agent, True) and one.is_connected
        return [({"agent": agent}, int(are_connected)) for agent, are_connected in found.items()]

    def backlogs() -> list[tuple[dict[str, str], int]]:
        found: dict[str, int] = {}
        for one in pipes.described():
            found[one.agent] = found.get(one.agent, 0) + one.backlog
        return [({"agent": agent}, backlog) for agent, backlog in found.items()]

    metrics.add("pipe_connected", connected)
    metrics.add("pipe_channels_untold", backlogs)


async def serve(
    settings: Settings,
    announce: Callable[[App], None],
    load: Callable[[Settings], Settings],
    logs: LineWriter | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then stop in order. A second one ends the process at once.

    After SIGHUP `load` gets the settings that are in effect, and returns the new ones. It raises
    ValueError if they are wrong. If the terminal of this process was closed, SIGHUP stops the
    process in order. `announce` is called when every server listens.
    """
    stopped, hung_up = asyncio.Event(), asyncio.Event()
    handle_signals(stopped)
    handle_hangups(stopped, hung_up)
    async with running(settings, logs) as app:
        log_start(
            log, settings, app.http_port, app.grpc_port, app.ops_port, nodes_port=app.nodes_port
        )
        announce(app)
        reloading = asyncio.create_task(reload_when_asked(app.reloader, hung_up, load))
        await stopped.wait()
        reloading.cancel()
    log.info("stopped")


async def reload_when_asked(
    reloader: Reloader, asked: asyncio.Event, load: Callable[[Settings], Settings]
) -> None:
    """Reload the settings whenever the event is set, forever."""
    while True:
        await asked.wait()
        asked.clear()
        await reloader.reload(load)


async def serve_as_worker(worker: Worker, logs: LineWriter | None = None) -> None:
    """Serve until the supervisor or a signal stops this worker, or another one takes its place.

    If the supervisor goes away, the worker stops in order; one that does not serve yet gives up.
    """
    # SIGHUP is for the supervisor, but a terminal may send it to all.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    handle_signals(worker.stopping)
    if worker.number > 1:  # because the first one says of the store what all would say
        logging.getLogger("megaphone.backend").setLevel(logging.WARNING)
    async with worker.linked():
        started = asyncio.Event()
        serving = asyncio.create_task(serve_for_supervisor(worker, logs, started))
        await first_of(started.wait(), worker.is_orphaned.wait(), finished(serving))
        if not started.is_set() and worker.is_orphaned.is_set():
            log.info("the supervisor has gone: not starting")
            serving.cancel()
            await finished(serving)
            return
        await serving
        await worker.report_last()


async def serve_for_supervisor(
    worker: Worker, logs: LineWriter | None, started: asyncio.Event
) -> None:
    """Serve as one of several workers until this one stops or leaves. `started` is set when it
    serves."""
    settings = worker.settings
    async with running(settings, logs, worker) as app:
        started.set()

        async def have_agent(name: str) -> None:
            with suppress(BadRequest):  # it has it already
                await app.agents.introduce(name, AgentMode.MASTER, loop_time())

        def drop_agent(name: str) -> None:
            if app.agents.get(name) is not None:
                app.agents.dismiss(name)

        worker.serves(app.http_port, app.grpc_port, app.metrics.render, have_agent, drop_agent)
        await first_of(worker.stopping.wait(), worker.leaving.wait())
        if not worker.stopping.is_set():
            limit_s = settings.grpc_connection_age_secs + settings.drain_timeout_secs
            await first_of(worker.stopping.wait(), app.leave(), asyncio.sleep(limit_s))


async def finished(task: "asyncio.Task[Any]") -> None:
    """Wait for a task, whatever becomes of it. If this wait is cancelled, the task goes on."""
    await asyncio.wait({task})


async def first_of(*awaited: Awaitable[Any]) -> None:
    """Wait until one of them is done, and cancel the others."""
    tasks = [asyncio.ensure_future(one) for one in awaited]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def handle_signals(stopped: asyncio.Event) -> None:
    """Set an event when a signal asks this process to stop."""
    loop = asyncio.get_running_loop()

    def stop(number: signal.Signals) -> None:
        if not stopped.is_set():
            log.info("%s: stopping", number.name)
            stopped.set()
        for ending in ENDING_SIGNALS:
            loop.remove_signal_handler(ending)
            signal.signal(ending, signal.SIG_DFL)

    for number in ENDING_SIGNALS:
        loop.add_signal_handler(number, stop, number)


def handle_hangups(stopped: asyncio.Event, hung_up: asyncio.Event) -> None:
    """Set one of the events at SIGHUP: `stopped` if the terminal of this process was closed, else
    `hung_up`. Do nothing if SIGHUP is ignored, as `nohup` wants it."""
    had_terminal = has_terminal()

    def hang_up() -> None:
        if had_terminal and not has_terminal():
            if not stopped.is_set():
                log.info("SIGHUP: stopping, because the terminal was closed")
                stopped.set()
        else:
            hung_up.set()

    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hang_up)
