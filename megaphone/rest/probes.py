"""The questions of supervisors, proxies and Prometheus to a node.

GET /livez           the process answers
GET /readyz          the node takes requests; 503 once it is stopping, or has lost its store
GET /readyz/create   `/create` would make a channel now
GET /agents/{name}   calls for the channels of an agent belong to this node
GET /agents          the agents of this node, each with its mode and its number of channels
GET /metrics
"""

from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web

from megaphone.core.access import Action
from megaphone.core.broker import Broker
from megaphone.errors import AgentNotFound
from megaphone.model import AgentInfo
from megaphone.observe.rendering import CONTENT_TYPE as METRICS_CONTENT_TYPE
from megaphone.rest.callers import Callers
from megaphone.rest.connection.answers import OK, Answer, json_answer
from megaphone.rest.requests import path_values, segment
from megaphone.wire import json

HEALTH_PATHS = frozenset({"/livez", "/readyz", "/readyz/create", "/metrics"})
"""The paths that a node serves even on connections beyond its limit."""


class ProbeApi:
    """The handlers of the probes."""

    def __init__(
        self,
        broker: Broker,
        callers: Callers | None,
        metrics: Callable[[], Awaitable[bytes]],
        agents: Callable[[], Awaitable[Iterable[AgentInfo]]],
    ) -> None:
        """`metrics` returns what `/metrics` answers. Raises: TimeoutError, if it is not known.

        `agents` returns what `/agents` answers. Without `callers`, everybody may ask everything.
        """
        self._broker = broker
        self._callers = callers
        self._metrics = metrics
        self._agents = agents

    def routes(self, *, for_everybody: bool = False) -> list[web.RouteDef]:
        """Return the routes. With `for_everybody`, only those that say no more than whether the
        node is well."""
        health = [
            web.get("/livez", self.live),
            web.get("/readyz", self.ready),
            web.get("/readyz/create", self.ready_to_create),
        ]
        if for_everybody:
            return health
        return [
            *health,
            web.get(f"/agents/{segment('name')}", self.owns_agent),
            web.get("/agents", self.list_agents),
            web.get("/metrics", self.metrics),
        ]

    async def live(self, request: web.Request) -> web.Response:
        return json_answer(OK)

    async def ready(self, request: web.Request) -> web.Response:
        self._broker.check_serves()
        return json_answer(OK)

    async def ready_to_create(self, request: web.Request) -> web.Response:
        await self._broker.check_takes_channels()
        return json_answer(OK)

    async def owns_agent(self, request: web.Request) -> web.Response:
        (name,) = path_values(request)
        if not await self._broker.owns(name):
            raise AgentNotFound("the agent is not this node's")
        return Answer(status=204)

    async def list_agents(self, request: web.Request) -> web.Response:
        """Answer as long as the process lives, so that an operator sees what a stopping node has
        not moved yet."""
        await self._check_may_measure(request)
        return json_answer(json.agents(await self._agents()))

    async def _check_may_measure(self, request: web.Request) -> None:
        """Refuse a caller who may not know how much this node has to do."""
        if self._callers is not None:
            await self._callers.of(request, Action.METRICS)

    async def metrics(self, request: web.Request) -> web.Response:
        await self._check_may_measure(request)
        try:
            body = await self._metrics()
        except TimeoutError:
            return Answer(status=503, body=b"the other workers of this broker do not answer\n")
        return Answer(body=body, headers={"Content-Type": METRICS_CONTENT_TYPE})
