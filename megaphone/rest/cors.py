"""What pages of other origins may do: nothing, or read and acknowledge (CORS, as the Fetch standard
defines it).

Reading from another origin is off by default. A proxy in front may add these headers itself, and a
browser rejects an answer that has one of them twice. The broker never lets the page of another
origin see an answer to a creation or a write, because that is the work of services. No answer ever
allows credentials: the browser keeps none that the broker would take.

A browser asks by a preflight before it sends what a form could not send, and the broker answers
that for readers only. The one call with an effect that a form can make is a creation without JSON,
so `Origins.check` refuses it to pages of other origins.
"""

from collections.abc import Mapping, Sequence
from typing import Final, final

from aiohttp import hdrs, web

from megaphone.errors import PermissionDenied
from megaphone.rest.connection.answers import Answer
from megaphone.rest.requests import segment

READERS_PATHS = ("/read/", "/ack/")
MANY_PATH = "/read"
EVERY = "*"
SEC_FETCH_SITE = "Sec-Fetch-Site"
"""The header in which a browser says whether a request comes from a page of the same origin."""
OWN_SITES = frozenset(("same-origin", "none"))
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
EXPOSED = {
    "Access-Control-Expose-Headers": (
        "Megaphone-Position, Megaphone-Recovered, Retry-After, WWW-Authenticate"
    )
}
VARY = {"Vary": "Origin"}
PREFLIGHT_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST",
    # By `Megaphone-Agent` a proxy finds the node for a read of many channels.
    "Access-Control-Allow-Headers": (
        "Authorization, Content-Type, Idempotency-Key, Last-Event-ID, Megaphone-Agent"
    ),
    "Access-Control-Max-Age": "86400",
}


@final
class Origins:
    """The other origins whose pages may read and acknowledge."""

    def __init__(self, origins: Sequence[str] = ()) -> None:
        """`origins` may be only `*`, which stands for every origin."""
        listed = [origin.lower() for origin in origins]
        self.are_any: Final = bool(listed)
        self._listed = frozenset(listed) - {EVERY}
        self._headers = {origin: headers_for(origin) for origin in self._listed}
        self._others: Mapping[str, str] = {}
        """The headers for an origin that is not listed. A single origin is named to everybody."""
        if EVERY in listed or len(listed) == 1:
            self._others = headers_for(EVERY if EVERY in listed else listed[0])
        elif listed:
            self._others = VARY

    def headers(self, origin: str | None) -> Mapping[str, str]:
        """Return the headers of an answer to a reader whose page has this origin."""
        return self._others if origin is None else self._headers.get(origin, self._others)

    def check(self, request: web.Request) -> None:
        """Raises: PermissionDenied, if a page of another origin makes this request, unless that is
        listed. Requests of programs name no origin."""
        origins = request.headers.getall(hdrs.ORIGIN, ())
        site = request.headers.get(SEC_FETCH_SITE)
        if site in OWN_SITES or (site is None and not origins):
            return
        if len(origins) == 1:
            if origins[0] in self._listed:
                return
            if site is None and is_of_host(origins[0], request.headers.get(hdrs.HOST, "")):
                return
        raise PermissionDenied(
            "a page of another origin may not do this, unless the broker lists its origin in"
            " `cors_allow_origin`"
        )


ORIGINS: web.AppKey[Origins] = web.AppKey("origins", Origins)
"""The key under which an application holds the origins that it allows."""


def headers_for(origin: str) -> Mapping[str, str]:
    """Return the headers of answers to readers that let pages of an origin see them."""
    headers = {"Access-Control-Allow-Origin": origin} | EXPOSED
    return headers if origin == EVERY else headers | VARY


def is_of_host(origin: str, host: str) -> bool:
    """Return whether an origin is that of the host to which a request was sent. The scheme does not
    count, because a proxy may end TLS."""
    scheme, _, authority = origin.lower().partition("://")
    port = DEFAULT_PORTS.get(scheme)
    if port is None or not authority:
        return False
    return authority.removesuffix(port) == host.lower().removesuffix(port)


def allow_origins(app: web.Application, origins: Origins) -> None:
    """Allow pages of other origins to read and acknowledge."""
    app[ORIGINS] = origins
    if not origins.are_any:
        return

    async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
        if request.path == MANY_PATH or request.path.startswith(READERS_PATHS):
            response.headers.extend(origins.headers(request.headers.get(hdrs.ORIGIN)))

    async def preflight(request: web.Request) -> web.Response:
        return Answer(status=204, headers=PREFLIGHT_HEADERS)

    app.on_response_prepare.append(add_headers)
    app.router.add_route("OPTIONS", MANY_PATH, preflight)
    for path in READERS_PATHS:
        app.router.add_route("OPTIONS", path + segment("address"), preflight)
