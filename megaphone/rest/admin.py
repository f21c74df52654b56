"""The calls of operators over HTTP, on a Unix socket that only the owner of the node may use.

GET    /vagent/list
POST   /vagent/add
POST   /vagent/promote
POST   /vagent/pipe
POST   /vagent/unpipe
POST   /vagent/remove
POST   /node/drain
GET    /node/watch?interval_ms=1000&limit=50&sort=depth
GET    /channel/list?skip=0&limit=50&agent=
GET    /channel/{channel}
DELETE /channel/{consumerAddress}
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TypeVar

from aiohttp import web

from megaphone.core.admin import Admin
from megaphone.core.listing import Asked
from megaphone.errors import MegaphoneError
from megaphone.rest.connection.answers import (
    OK,
    StreamedAnswer,
    json_answer,
    json_answer_in_pieces,
)
from megaphone.rest.reads import NDJSON, YES_OR_NO
from megaphone.rest.requests import (
    body_of,
    check_parameters,
    choice,
    path_values,
    require_json,
    seconds_of_ms,
    segment,
    whole_number,
    without_query,
)
from megaphone.wire import json
from megaphone.wire.errors import row_of

T = TypeVar("T")


class AdminApi:
    """The handlers of the calls of operators."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/vagent/list", without_query(self.list_agents)),
            web.post("/vagent/add", without_query(self.add_agent)),
            web.post("/vagent/promote", without_query(self.promote_agent)),
            web.post("/vagent/pipe", without_query(self.pipe_agent)),
            web.post("/vagent/unpipe", without_query(self.unpipe_agent)),
            web.post("/vagent/remove", without_query(self.remove_agent)),
            web.post("/node/drain", without_query(self.drain)),
            web.get("/node/watch", self.watch),
            web.get("/channel/list", self.list_channels),
            web.get(f"/channel/{segment('channel')}", without_query(self.show_channel)),
            web.delete(f"/channel/{segment('address')}", without_query(self.dispose_channel)),
        ]

    async def list_agents(self, request: web.Request) -> web.Response:
        return json_answer(json.agents(await self._admin.list_agents()))

    async def add_agent(self, request: web.Request) -> web.Response:
        require_json(request)
        await self._admin.add_agent(json.parse_agent_name(await body_of(request)))
        return json_answer(OK, status=201)

    async def promote_agent(self, request: web.Request) -> web.Response:
        require_json(request)
        self._admin.promote_agent(json.parse_agent_name(await body_of(request)))
        return json_answer(OK)

    async def pipe_agent(self, request: web.Request) -> web.Response:
        require_json(request)
        name, target = json.parse_pipe_agent(await body_of(request))
        await self._admin.pipe_agent(name, target)
        return json_answer(OK, status=202)

    async def unpipe_agent(self, request: web.Request) -> web.Response:
        require_json(request)
        name, target, force = json.parse_unpipe_agent(await body_of(request))
        await self._admin.unpipe_agent(name, target, force=force)
        return json_answer(OK)

    async def remove_agent(self, request: web.Request) -> web.Response:
        require_json(request)
        name, force = json.parse_remove_agent(await body_of(request))
        await self._admin.remove_agent(name, force=force)
        return json_answer(OK)

    async def drain(self, request: web.Request) -> web.StreamResponse:
        """Answer with a line for each step. An error after the first step is the last line."""
        require_json(request)
        target = json.parse_drain(await body_of(request))
        return await streamed_lines(request, self._admin.drain(target), json.drained)

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """Answer with a line at each tick, until the client leaves."""
        query = request.query
        check_parameters(query, ("interval_ms", "limit", "sort"))
        watching = self._admin.watch(
            seconds_of_ms(query, "interval_ms"), whole_number(query, "limit"), query.get("sort")
        )
        return await streamed_lines(request, watching, json.node_view)

    async def list_channels(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        check_parameters(query, ("skip", "limit", "agent", "blocked", "sort", "details"))
        skip, limit = whole_number(query, "skip") or 0, whole_number(query, "limit")
        agent, sort = query.get("agent"), query.get("sort")
        blocked = choice(query, "blocked", YES_OR_NO, default=False)
        if blocked or sort or choice(query, "details", YES_OR_NO, default=False):
            infos = await self._admin.show_channels(Asked(skip, limit, agent, sort, blocked))
            pieces = json.shown_channels(infos)
        else:
            pieces = json.channels(await self._admin.list_channels(skip, limit, agent))
        return await json_answer_in_pieces(request, pieces, status=200)

    async def show_channel(self, request: web.Request) -> web.Response:
        (name,) = path_values(request)
        return json_answer(json.shown_channel(await self._admin.show_channel(name)))

    async def dispose_channel(self, request: web.Request) -> web.Response:
        (address,) = path_values(request)
        await self._admin.dispose(address)
        return json_answer(OK)


async def streamed_lines(
    request: web.Request, members: AsyncGenerator[T, None], rendered: Callable[[T], bytes]
) -> web.StreamResponse:
    """Answer with a line for each member. An error after the first one is the last line."""
    response = StreamedAnswer(headers={"Content-Type": NDJSON.content_type})
    async with aclosing(members) as steps:
        first = await anext(steps)
        await response.prepare(request)
        await response.write(rendered(first))
        try:
            async for one in steps:
                await response.write(rendered(one))
        except MegaphoneError as error:
            line = json.error(error.code, str(error), row_of(error).http_status)
            await response.write(line + b"\n")
    await response.write_eof()
    return response
