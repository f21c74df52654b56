"""The pages for people: what this broker is, and the description of its API.

GET /                      one page, on which a channel can be tried
GET /docs                  the description, for people
GET /openapi.json          the description, for programs
GET /site/{version}/{name} the files of both pages

The files are in `megaphone/rest/site`. A page loads nothing from another host, and has no script of
its own in its HTML, so that it works offline and under a strict Content-Security-Policy.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from aiohttp import web

from megaphone import __version__
from megaphone.rest import openapi
from megaphone.rest.connection.answers import Answer, StreamedAnswer, json_answer
from megaphone.rest.connection.guest import connection_of
from megaphone.rest.requests import path_values, segment

FOLDER = Path(__file__).with_name("site")
CONTENT_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
HOME = "home.html"
DOCS = "docs.html"
SAFE = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none';"
        " frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
ASK_AGAIN = {"Cache-Control": "no-cache"}
KEEP = {"Cache-Control": "public, max-age=31536000, immutable"}
METRICS_LINK = b'<a href="metrics">Metrics</a>'
PIECE_BYTES = 65_536
"""How much of a file is sent before others get their turn."""
STALL_S = 30.0
"""A client that takes no piece of a file for so long loses its connection."""


class PageApi:
    """The handlers of the pages."""

    def __init__(self, described: Sequence[web.RouteDef]) -> None:
        """`described` are the routes that the description has beside those of the pages."""
        self._described = described
        self._has_metrics = any(route.path == "/metrics" for route in described)
        self._description: bytes | None = None

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self.home),
            web.get("/docs", self.docs),
            web.get("/openapi.json", self.description),
            web.get(f"/site/{segment('version')}/{segment('name')}", self.file),
        ]

    async def home(self, request: web.Request) -> web.Response:
        body = site().page(HOME)
        return page(body if self._has_metrics else body.replace(METRICS_LINK, b""))

    async def docs(self, request: web.Request) -> web.Response:
        return page(site().page(DOCS))

    async def description(self, request: web.Request) -> web.Response:
        if self._description is None:
            self._description = openapi.document([*self._described, *self.routes()])
        return json_answer(self._description, headers=ASK_AGAIN)

    async def file(self, request: web.Request) -> web.StreamResponse:
        """Answer with a file, piece by piece, so that a client that stalls holds one piece.

        Raises: BadRequest; HTTPNotFound.
        """
        version, name = path_values(request)
        body = site().files.get(name)
        if body is None:
            raise web.HTTPNotFound
        caching = KEEP if version == site().version else ASK_AGAIN
        response = StreamedAnswer(headers=headers_of(name) | caching)
        response.content_length = len(body)
        await response.prepare(request)
        for start in range(0, len(body), PIECE_BYTES):
            await send(request, response, body[start : start + PIECE_BYTES])
        await response.write_eof()
        return response


async def send(request: web.Request, response: web.StreamResponse, piece: bytes) -> None:
    """Send a piece of a file. Raises: ConnectionResetError, if the client has gone or stalls."""
    try:
        async with asyncio.timeout(STALL_S):
            await response.write(piece)
    except TimeoutError:
        connection_of(request).abort()  # closing would wait for the client
        raise ConnectionResetError("the client takes nothing") from None


def page(body: bytes) -> Answer:
    return Answer(body=body, headers=headers_of(HOME) | ASK_AGAIN)


def headers_of(name: str) -> dict[str, str]:
    return {"Content-Type": CONTENT_TYPES[Path(name).suffix], **SAFE}


# -- The files


@dataclass(frozen=True, slots=True)
class Site:
    """The files of the pages, as they were when the first of them was asked for."""

    version: str
    """Changes when a file changes."""
    files: dict[str, bytes]

    def page(self, name: str) -> bytes:
        """Return a page, with the version of its files and of the broker in their places."""
        page = self.files[name].replace(b"{files}", b"site/" + self.version.encode())
        return page.replace(b"{version}", __version__.encode())


@cache
def site() -> Site:
    files = {file.name: file.read_bytes() for file in sorted(FOLDER.iterdir())}
    digest = hashlib.sha256(b"".join(files.values()))
    return Site(digest.hexdigest()[:16], files)
