"""Probes and metrics over HTTP.

GET /livez     503 if a pass is long overdue
GET /readyz    503 if the lease was not reached for some time
GET /metrics
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from megaphone_operator.election import LEASE_S, Election
from megaphone_operator.metrics import Metrics


@asynccontextmanager
async def serving(
    host: str, port: int, metrics: Metrics, election: Election, is_stuck: Callable[[], bool]
) -> AsyncIterator[int]:
    """Serve. Yields: the port. Raises: OSError, if the port is in use."""

    async def livez(_: web.Request) -> web.Response:
        return _answer(not is_stuck())

    async def readyz(_: web.Request) -> web.Response:
        contact = election.contact
        return _answer(
            contact is not None and asyncio.get_running_loop().time() - contact < LEASE_S
        )

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", show_metrics)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


def _answer(is_well: bool) -> web.Response:
    return web.Response(text="ok\n" if is_well else "no\n", status=200 if is_well else 503)
