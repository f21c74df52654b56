"""How errors become HTTP answers, around the router and all handlers.

That is for answers that have not begun. What fails once a stream has begun can have no status any
more: it is logged, and the connection is cut so that the client sees that something is missing.
"""

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import hdrs, web

from megaphone.errors import MegaphoneError, Unauthenticated
from megaphone.rest.connection.answers import json_answer
from megaphone.rest.connection.peers import ignore_what_follows
from megaphone.wire import errors, json

log = logging.getLogger(__name__)

Handler = Callable[[Any], Awaitable[web.StreamResponse]]

CODES_OF_HTTP = {404: "NOT_FOUND"}


def answering(handler: Handler) -> Handler:
    """Wrap the handler of all requests so that it answers its errors.

    Not a middleware, which costs a write five parts in a hundred, and is not asked where no
    route is found.
    """

    async def answered(request: Any) -> web.StreamResponse:
        try:
            return await handler(request)
        except MegaphoneError as error:
            return last_if_unread(request, answer_of(error))
        except web.HTTPNotFound as error:
            refused = error if request.path.startswith("/") else refused_target(request)
            return last_if_unread(request, answer_of_http(request, refused))
        except web.HTTPException as error:
            return last_if_unread(request, answer_of_http(request, error))
        except ConnectionError:
            raise
        except Exception:
            log.exception("%s failed", route_of(request))
            return internal_answer(request)

    return answered


def route_of(request: web.Request) -> str:
    """Return the route of a request without the values in it, which are secrets."""
    resource = request.match_info.route.resource
    return "a request" if resource is None else resource.canonical


async def refuse_route(request: web.Request) -> web.StreamResponse:
    """Handle what no other route does. Raises: HTTPNotFound or HTTPMethodNotAllowed."""
    allowed: set[str] = set()
    for resource in request.app.router.resources():
        _, methods = await resource.resolve(request)
        allowed |= methods
    allowed.discard(hdrs.METH_ANY)  # that is this one
    if allowed:
        raise web.HTTPMethodNotAllowed(request.method, allowed)
    raise web.HTTPNotFound


def refused_target(request: web.Request) -> web.HTTPMethodNotAllowed:
    """Return the error for a request that names no path, as CONNECT and `OPTIONS *` do."""
    methods = {route.method for route in request.app.router.routes()}
    return web.HTTPMethodNotAllowed(request.method, methods - {hdrs.METH_ANY})


def last_if_unread(request: web.Request, answer: web.Response) -> web.Response:
    """Tell the client to call anew if what follows cannot be understood.

    That is so if its body was not read, and behind a CONNECT, for which it would be a tunnel. The
    rest is received and dropped for a while, because a client that is still sending would not see
    the answer if the connection was reset.
    """
    if not request.content.is_eof() or request.method == hdrs.METH_CONNECT:
        answer.force_close()
        if request.transport is not None:
            ignore_what_follows(request.transport)
    return answer


def internal_answer(request: web.BaseRequest) -> web.Response:
    """Answer what is our fault. Raises: ConnectionResetError, when another answer has begun."""
    if request.writer.output_size > 0:
        raise ConnectionResetError
    body = json.error(errors.INTERNAL_CODE, errors.INTERNAL_MESSAGE, errors.INTERNAL_HTTP_STATUS)
    return json_answer(body, errors.INTERNAL_HTTP_STATUS)


def answer_of(error: MegaphoneError) -> web.Response:
    status = errors.row_of(error).http_status
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, Unauthenticated):  # HTTP wants to know how to do better
        headers["WWW-Authenticate"] = "Megaphone-Node"
    return json_answer(json.error(error.code, str(error), status), status, headers)


def answer_of_http(request: web.Request, error: web.HTTPException) -> web.Response:
    """Answer what aiohttp itself refused, in our form."""
    match error:
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            message = f"{request.method} is not allowed here; allowed is {allowed}"
        case web.HTTPNotFound():
            message = "no such route"
        case _:
            message = error.reason
    code = CODES_OF_HTTP.get(error.status, "BAD_REQUEST")
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else None
    return json_answer(json.error(code, message, error.status), error.status, headers)
