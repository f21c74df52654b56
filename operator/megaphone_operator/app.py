"""Builds the operator from its parts, and owns the order of its start and its stop."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import aiohttp
from lightkube.core.async_client import AsyncClient

from megaphone_operator.asking import Asking
from megaphone_operator.election import Election
from megaphone_operator.kube import Kube
from megaphone_operator.looking import Looking
from megaphone_operator.metrics import Metrics
from megaphone_operator.plan.objects import Surroundings
from megaphone_operator.proxy_files import proxy_files
from megaphone_operator.reconciling import Reconciler
from megaphone_operator.serving import serving
from megaphone_operator.watching import watch

log = logging.getLogger(__name__)

WATCH_STOP_S = 1.0
"""How long the watches may take to end. kopf would take five seconds for it."""


class Options(NamedTuple):
    """What the command was told."""

    namespace: str | None
    """The only namespace to work in; None means all."""
    lease_namespace: str
    host: str
    port: int
    domain: str
    resolver: str


class Lost(Exception):
    """Another copy leads now, so this process must end."""


async def run(options: Options) -> None:
    """Run the operator until SIGTERM or SIGINT. Raises `Lost` when this copy leads no more."""
    stop = asyncio.Event()
    _take_signals(stop)
    surroundings = Surroundings(
        options.domain, options.resolver, options.lease_namespace, proxy_files()
    )
    identity = os.environ.get("POD_NAME") or socket.gethostname()
    metrics = Metrics()
    async with _kube() as kube, aiohttp.ClientSession() as session:
        election = Election(kube, options.lease_namespace, f"{identity}-{os.urandom(4).hex()}")
        looking = Looking(kube, Asking(session))
        reconciler = Reconciler(kube, looking, surroundings, metrics, identity)
        serving_all = serving(
            options.host, options.port, metrics, election, lambda: reconciler.is_overdue
        )
        async with serving_all as port:
            log.info("probes and metrics on port %d", port)
            await _take_part(options.namespace, election, reconciler, metrics, stop)


def _take_signals(stop: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)


async def _take_part(
    namespace: str | None, election: Election, reconciler: Reconciler, metrics: Metrics,
    stop: asyncio.Event,
) -> None:  # fmt: skip
    """Wait for the lease, work as long as this copy has it, and then release it."""
    winning = asyncio.create_task(election.win())
    if not await _ends_before(winning, stop):
        return
    metrics.lead(True)
    # Without a signal for this one, kopf would take five seconds to stop before the lease is free.
    stop_watching = asyncio.Event()
    watching = asyncio.create_task(
        watch(reconciler.wake, namespace, stop_watching, lambda: _take_signals(stop))
    )
    keeping = asyncio.create_task(election.keep())
    try:
        if await _ends_before(keeping, stop, watching):
            raise Lost
        await reconciler.close()
        await election.release()
    finally:
        metrics.lead(False)
        await reconciler.close()
        stop_watching.set()
        await asyncio.wait([watching], timeout=WATCH_STOP_S)
    if watching.done():
        watching.result()


async def _ends_before(
    task: asyncio.Task[None], stop: asyncio.Event, *others: asyncio.Task[None]
) -> bool:
    """Whether a task ends before `stop` is set and before other tasks end. Cancels it if not."""
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([task, stopping, *others], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
        return task.done()
    finally:
        stopping.cancel()
        task.cancel()


@asynccontextmanager
async def _kube() -> AsyncIterator[Kube]:
    client = AsyncClient()
    try:
        yield Kube(client)
    finally:
        await client.close()
