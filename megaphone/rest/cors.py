"""Lets pages of another origin read and acknowledge (CORS, as the Fetch standard defines it).

This is off by default. A proxy in front may add these headers itself, and a browser rejects an
answer that has one of them twice. The broker never allows pages of another origin to create
channels or to write, because that is the work of services.
"""

from aiohttp import web

from megaphone.rest.connection.answers import Answer
from megaphone.rest.requests import segment

READERS_PATHS = ("/read/", "/ack/")
PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Content-Type, Last-Event-ID",
    "Access-Control-Max-Age": "86400",
}


def allow_origin(app: web.Application, origin: str) -> None:
    """Allow pages of `origin` to read and acknowledge; `*` stands for every origin."""

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        if request.path.startswith(READERS_PATHS):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = "Megaphone-Recovered, Retry-After"
            if origin != "*":
                response.headers.add("Vary", "Origin")

    async def preflight(request: web.Request) -> web.Response:
        return Answer(status=204, headers=PREFLIGHT_HEADERS)

    app.on_response_prepare.append(add_headers)
    for path in READERS_PATHS:
        app.router.add_route("OPTIONS", path + segment("address"), preflight)
