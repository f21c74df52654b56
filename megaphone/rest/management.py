"""The management API, on a Unix socket that only its owner may use.

GET    /vagent/list
POST   /vagent/add
GET    /channel/list?skip=0&limit=50
DELETE /channel/{consumerAddress}
"""

from aiohttp import web

from megaphone.core.broker import Broker
from megaphone.rest.answers import OK, json_answer
from megaphone.rest.requests import body_of, part, path_values, require_json, whole_number
from megaphone.wire import json

DEFAULT_LIMIT = 50


class ManagementApi:
    """The handlers of the management API."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/vagent/list", self.list_agents),
            web.post("/vagent/add", self.add_agent),
            web.get("/channel/list", self.list_channels),
            web.delete(f"/channel/{part('address')}", self.dispose_channel),
        ]

    async def list_agents(self, request: web.Request) -> web.Response:
        return json_answer(json.agents(await self._broker.list_agents()))

    async def add_agent(self, request: web.Request) -> web.Response:
        require_json(request)
        self._broker.add_agent(json.parse_add_agent(await body_of(request)))
        return json_answer(OK, status=201)

    async def list_channels(self, request: web.Request) -> web.Response:
        skip = whole_number(request.query, "skip") or 0
        limit = whole_number(request.query, "limit")
        addresses = await self._broker.list_channels(
            skip, DEFAULT_LIMIT if limit is None else limit
        )
        return json_answer(json.channels(addresses))

    async def dispose_channel(self, request: web.Request) -> web.Response:
        (address,) = path_values(request)
        await self._broker.dispose(address)
        return json_answer(OK)
