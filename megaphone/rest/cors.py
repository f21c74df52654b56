"""Lets pages of another origin read and acknowledge (the Fetch standard's CORS protocol).

Off unless it is set: a proxy in front may add these headers itself, and twice is an error. Back
ends, which create and write, are no pages.
"""

from aiohttp import web

from megaphone.rest.connection.answers import Answer
from megaphone.rest.requests import part

READERS_PATHS = ("/read/", "/ack/")
PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Content-Type, Last-Event-ID",
    "Access-Control-Max-Age": "86400",
}


def allow_origin(app: web.Application, origin: str) -> None:
    """Answer pages of `origin`, or of any origin if that is `*`."""

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
        app.router.add_route("OPTIONS", path + part("address"), preflight)
