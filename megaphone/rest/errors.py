"""Turns errors into HTTP answers, around the router and all handlers.

That is for answers that have not begun. Once a stream has begun, an error can have no status any
more: it is logged, and the connection is reset, so that the client sees that something is missing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from aiohttp import hdrs, web

from megaphone.errors import BadRequest, MegaphoneError
from megaphone.observe.calls import CANCELLED, INTERNAL, OTHER, Call, Calls, FaceCalls
from megaphone.rest.connection.answers import error_answer, internal_answer, json_answer
from megaphone.rest.connection.peers import close_if_unread
from megaphone.wire import json

log = logging.getLogger(__name__)

Handler = Callable[[Any], Awaitable[web.StreamResponse]]
OnError = Callable[[MegaphoneError], None]

CODES_OF_HTTP = {404: "NOT_FOUND"}
METHODS = {
    ("POST", "/create"): "create",
    ("POST", "/write/{producer_address}/{stream_id}"): "write",
    ("POST", "/write-batch"): "write_batch",
    ("GET", "/read/{consumer_address}"): "read",
    ("POST", "/read"): "read_many",
    ("POST", "/ack/{consumer_address}"): "ack",
    ("POST", "/channelsExists"): "exists",
    ("DELETE", "/channel/{producer_address}"): "dispose",
}
"""What metrics call the calls of clients, by the routes of `rest.channels`."""


class StreamBegun(asyncio.CancelledError):
    """Ends the handler of a read: the answer has begun, and the connection has left aiohttp."""


def ignore(error: MegaphoneError) -> None:
    """Do nothing with an error."""


class Served(Protocol):
    """Makes the line of a call in the access log, when it is called."""

    response: web.StreamResponse | None
    """The answer, once it is known."""

    def __call__(self, method: str, code: str, seconds: float, waited_s: float) -> None: ...


class Access(Protocol):
    """What this module needs of the access log."""

    def begun(self, request: web.Request) -> Served:
        """Return what makes the line of a call."""


def with_error_responses(
    handler: Handler,
    on_error: OnError = ignore,
    calls: FaceCalls | None = None,
    access: Access | None = None,
) -> Handler:
    """Return a handler that answers the errors which `handler` raises, and calls `on_error` with
    them. It counts all calls in `calls`, and logs them in `access`, if that is given.

    This is not a middleware, because a middleware makes a write 5 % slower, and aiohttp does not
    call it if no route is found.
    """

    of_face = calls or FaceCalls()

    async def answer(request: Any) -> web.StreamResponse:
        call = Call(of_face.other)
        served = None
        if access is not None:
            call.on_end = served = access.begun(request)
        try:
            check_expectation(request)
            response = await handler(request)
            if served is not None:
                served.response = response
            call.end_as(calls_of(request, of_face))
            return response
        except StreamBegun:
            call.end_as(calls_of(request, of_face))
            raise
        except MegaphoneError as error:
            call.end_as(calls_of(request, of_face), error.code)
            on_error(error)
            return close_if_unread(request, error_answer(error))
        except web.HTTPException as error:
            call.end_as(of_face.other, code_of(error))
            is_target = request.path.startswith("/") or not isinstance(error, web.HTTPNotFound)
            refused = error if is_target else refused_target(request)
            return close_if_unread(request, http_error_answer(request, refused))
        except (asyncio.CancelledError, ConnectionError):
            call.end_as(calls_of(request, of_face), CANCELLED)
            raise
        except Exception:
            call.end_as(calls_of(request, of_face), INTERNAL)
            log.exception("%s failed", route_of(request))
            return internal_answer(request)

    return answer


def calls_of(request: web.Request, calls: FaceCalls) -> Calls:
    """Return where a request counts, by its route."""
    resource = request.match_info.route.resource
    if resource is None:
        return calls.other
    return calls.by_method[METHODS.get((request.method, resource.canonical), OTHER)]


def code_of(error: web.HTTPException) -> str:
    """Return the code of an error of aiohttp itself."""
    return CODES_OF_HTTP.get(error.status, BadRequest.code)


def check_expectation(request: web.BaseRequest) -> None:
    """Raises: HTTPExpectationFailed, if `Expect` is not even text. aiohttp, which refuses every
    other wrong value itself, would fail when it repeats this one."""
    try:
        request.headers.get(hdrs.EXPECT, "").encode()
    except UnicodeEncodeError:
        raise web.HTTPExpectationFailed from None


def route_of(request: web.Request) -> str:
    """Return the route of a request without the values in its path, because they are secrets."""
    resource = request.match_info.route.resource
    return "a request" if resource is None else resource.canonical


async def refuse_route(request: web.Request) -> web.StreamResponse:
    """Handle a request that no other route takes. Raises: HTTPNotFound or HTTPMethodNotAllowed."""
    allowed: set[str] = set()
    for resource in request.app.router.resources():
        _, methods = await resource.resolve(request)
        allowed |= methods
    allowed.discard(hdrs.METH_ANY)  # the route of this handler itself
    if allowed:
        raise web.HTTPMethodNotAllowed(request.method, allowed)
    raise web.HTTPNotFound


def refused_target(request: web.Request) -> web.HTTPMethodNotAllowed:
    """Return the error for a request that names no path, such as CONNECT or `OPTIONS *`."""
    methods = {route.method for route in request.app.router.routes()}
    return web.HTTPMethodNotAllowed(request.method, methods - {hdrs.METH_ANY})


def http_error_answer(request: web.BaseRequest, error: web.HTTPException) -> web.Response:
    """Return the answer for an error of aiohttp itself, in the form of our other errors."""
    match error:
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            message = f"{request.method} is not allowed here; allowed is {allowed}"
        case web.HTTPNotFound():
            message = "no such route"
        case _:
            message = error.reason
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
    body = json.error(code_of(error), message, error.status)
    return json_answer(body, error.status, headers)
