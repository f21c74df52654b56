"""Lets pages of another origin read and acknowledge (CORS, as the Fetch standard defines it).

This is off by default. A proxy in front may add these headers itself, and a browser rejects an
answer that has one of them twice. The broker never allows pages of another origin to create
channels or to write, because that is the work of services.
"""

from collections.abc import Mapping

from aiohttp import web

from megaphone.rest.connection.answers import Answer
from megaphone.rest.requests import segment

READERS_PATHS = ("/read/", "/ack/")
MANY_PATH = "/read"
READERS_HEADERS: web.AppKey[Mapping[str, str]] = web.AppKey("readers_headers")
"""The key under which an application holds what `headers_of` returns."""
PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Content-Type, Last-Event-ID",
    "Access-Control-Max-Age": "86400",
}


def headers_of(origin: str | None) -> dict[str, str]:
    """Return the headers of answers to readers, if pages of `origin` may read; None stands for no
    other origin, `*` for every origin."""
    if origin is None:
        return {}
    headers = {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": "Megaphone-Position, Megaphone-Recovered, Retry-After",
    }
    return headers if origin == "*" else headers | {"Vary": "Origin"}


def allow_origin(app: web.Application, origin: str | None) -> None:
    """Allow pages of `origin` to read and acknowledge; see `headers_of`."""
    readers_headers = app[READERS_HEADERS] = headers_of(origin)
    if not readers_headers:
        return

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        if request.path == MANY_PATH or request.path.startswith(READERS_PATHS):
            response.headers.extend(readers_headers)

    async def preflight(request: web.Request) -> web.Response:
        return Answer(status=204, headers=PREFLIGHT_HEADERS)

    app.on_response_prepare.append(add_headers)
    app.router.add_route("OPTIONS", MANY_PATH, preflight)
    for path in READERS_PATHS:
        app.router.add_route("OPTIONS", path + segment("address"), preflight)
