"""A server of an issuer: its discovery document and its keys, on a port of this machine."""

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Publisher:
    """Answers on any path as it is told to, and remembers who asked for what."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def issuer(self) -> str:
        return f"{self.url}/realm"

    def publish(self, *keys: dict[str, Any]) -> None:
        """Publish these keys, and say where they are."""
        found = {"issuer": self.issuer, "jwks_uri": f"{self.url}/certs"}
        self.answers["/realm/.well-known/openid-configuration"] = document(found)
        self.answers["/certs"] = document({"keys": keys})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path_qs)
        return await self.answers[request.path](request)


@asynccontextmanager
async def publishing(tls: ssl.SSLContext | None = None) -> AsyncIterator[Publisher]:
    publisher = Publisher("http" if tls is None else "https")
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", publisher.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
    publisher.port = runner.addresses[0][1]
    try:
        yield publisher
    finally:
        await runner.cleanup()


def document(content: Any, status: int = 200, **headers: str) -> Answer:
    """Return an answer with JSON, or with bytes as they are."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body, status=status, headers=headers)

    return answer
