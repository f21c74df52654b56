"""The composition root: builds every part, and owns the order in which they start and stop."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from megaphone import __version__
from megaphone.core.agents import Agents
from megaphone.core.broker import Broker
from megaphone.metrics import Metrics
from megaphone.rest.public import PublicApi
from megaphone.rest.server import HttpServer
from megaphone.rpc.channels import ChannelServicer
from megaphone.rpc.server import GrpcServer
from megaphone.settings import Settings
from megaphone.store.memory import MemoryStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class App:
    """A broker that serves."""

    broker: Broker
    metrics: Metrics
    http_port: int
    grpc_port: int


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[App]:
    """Serve within this context; on leaving it, stop in order.

    Order of the end: health and readiness say so, nothing new is begun and every read ends cleanly
    after a whole event, then the servers close, then the store.

    Raises: OSError, when an address cannot be had.
    """
    metrics = Metrics()
    store = MemoryStore(
        limits=settings.channel_limits(),
        max_channels=settings.max_channels,
        write_timeout_s=settings.write_timeout_millis / 1000,
        observer=metrics,
    )
    broker = Broker(store=store, agents=agents_of(settings), settings=settings, observer=metrics)
    http_host, http_port = split_endpoint(settings.address)
    http = HttpServer(
        PublicApi(broker, metrics),
        host=http_host,
        port=http_port,
        max_body_bytes=settings.max_body_bytes,
    )
    grpc_host, grpc_port = split_endpoint(settings.grpc_address)
    grpc = GrpcServer(
        ChannelServicer(broker),
        host=grpc_host,
        port=grpc_port,
        max_body_bytes=settings.max_body_bytes,
        with_reflection=settings.grpc_reflection,
    )
    try:
        await http.start()
        await grpc.start()
        yield App(broker, metrics, http.port, grpc.port)
    finally:
        await grpc.report_shutdown()
        await broker.begin_shutdown()
        await asyncio.gather(http.stop(), grpc.stop())
        await store.aclose()


def agents_of(settings: Settings) -> Agents:
    agents = Agents(settings.agent_warmup_secs)
    now = asyncio.get_running_loop().time()
    for name, mode in settings.agent.items():
        agents.add(name, mode, now)
    return agents


def split_endpoint(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


async def serve(settings: Settings, announce: Callable[[App], None]) -> None:
    """Serve until SIGTERM or SIGINT; a second signal ends the process at once.

    `announce` is called once everything listens.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(signal_number: signal.Signals) -> None:
        log.info("%s: stopping", signal_number.name)
        stopped.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    async with running(settings) as app:
        log.info("megaphone %s serves", __version__)
        announce(app)
        await stopped.wait()
    log.info("stopped")
