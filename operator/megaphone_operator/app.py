"""Builds the operator from its parts, and owns the order of its start and its stop."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import NamedTuple

import aiohttp
from lightkube.core.async_client import AsyncClient
from lightkube.core.exceptions import ConfigError

from megaphone_operator.asking import Asking
from megaphone_operator.election import Election, Lost
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
    """What the user of the command wants. The options of the command line say it."""

    namespace: str | None
    """The only namespace to work in; None means all."""
    lease_namespace: str
    host: str
    port: int
    domain: str
    resolver: str


class CannotStart(Exception):
    """Something that the operator needs is not there. The text says what."""


async def run(options: Options) -> None:
    """Run the operator until SIGTERM or SIGINT.

    Raises: Lost, when another copy leads; CannotStart, without a way to sign in; OSError, if the
    port is in use.
    """
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
    """Work whenever this copy has the lease, until `stop` is set, and then release it.

    The watches go on while the API server is away. They only wake clusters.
    """
    if not await _ends_before(election.win(), stop):
        return
    # Without a signal for this one, kopf would take five seconds to stop before the lease is free.
    stop_watching = asyncio.Event()
    watching = asyncio.create_task(
        watch(reconciler.wake, namespace, stop_watching, lambda: _take_signals(stop))
    )
    try:
        while await _work(election, reconciler, metrics, stop, watching):
            if not await _ends_before(election.win(), stop, watching):
                return
        await election.release()
    finally:
        stop_watching.set()
        await asyncio.wait([watching], timeout=WATCH_STOP_S)
    if watching.done():
        watching.result()


async def _work(
    election: Election, reconciler: Reconciler, metrics: Metrics, stop: asyncio.Event,
    watching: asyncio.Task[None],
) -> bool:  # fmt: skip
    """Work until the lease was not renewed for too long. Returns: False, if something else ends
    before.

    Raises: Lost, if another copy has the lease.
    """
    metrics.lead(True)
    reconciler.open(follows_leader=election.follows_leader)
    try:
        return await _ends_before(election.keep(), stop, watching)
    except Lost as error:
        log.error("%s", error)
        raise
    finally:
        metrics.lead(False)
        await reconciler.close()


async def _ends_before(
    work: Coroutine[None, None, None], stop: asyncio.Event, *others: asyncio.Task[None]
) -> bool:
    """Whether some work ends before `stop` is set and before other tasks end. Ends it if not."""
    task, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
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
    try:
        client = AsyncClient()
    except (ConfigError, OSError) as error:
        raise CannotStart(
            f"no kubeconfig and no service account to sign in with: {error}"
        ) from error
    try:
        yield Kube(client)
    finally:
        await client.close()
