"""What a kubelet serves: the logs of its containers, for `kubectl logs`."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from tests.operator_e2e.kubelet.node import PORT, Node


@asynccontextmanager
async def serving(node: Node, address: str, certificate: Path, key: Path) -> AsyncIterator[None]:
    """Serve the logs of a node within this context."""

    async def logs(request: web.Request) -> web.Response:
        names = request.match_info
        folder = node.logs_of(names["namespace"], names["pod"])
        file = None if folder is None else folder / f"{names['container']}.log"
        if file is None or not file.exists():
            raise web.HTTPNotFound
        lines = file.read_text(errors="replace").splitlines(keepends=True)
        last = int(request.query.get("tailLines", len(lines)))
        return web.Response(text="".join(lines[len(lines) - min(last, len(lines)) :]))

    app = web.Application()
    app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", logs)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, address, PORT, ssl_context=context).start()
    try:
        yield
    finally:
        await runner.cleanup()
