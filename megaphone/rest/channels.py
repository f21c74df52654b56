"""The public HTTP API: the routes of the wire contract, each a translation to the broker.

POST /create
POST /write/{producerAddress}/{streamId}
POST /write-batch
GET  /read/{consumerAddress}
POST /ack/{consumerAddress}
POST /channelsExists
GET  /metrics   GET /livez   GET /readyz

and, for proxies before several nodes:

GET  /readyz/create
GET  /agents/{name}
"""

from dataclasses import replace

from aiohttp import web

from megaphone.core.broker import Broker
from megaphone.errors import AgentNotFound, ShuttingDown
from megaphone.model import DEFAULT_WINDOW, ReadOptions
from megaphone.observe.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE
from megaphone.observe.metrics import Metrics
from megaphone.rest.connection.answers import (
    OK,
    Answer,
    WrittenAnswer,
    json_answer,
    json_answer_in_pieces,
)
from megaphone.rest.reads import NDJSON, SSE, stream_events
from megaphone.rest.requests import (
    body_of,
    is_json,
    one_of,
    part,
    path_values,
    require_json,
    seconds_of_ms,
    wants_sse,
    whole_number,
)
from megaphone.wire import json

SSE_HEARTBEAT_S = 10.0
IDEMPOTENCY_KEY = "Idempotency-Key"


class PublicApi:
    """The handlers of the public API."""

    def __init__(self, broker: Broker, metrics: Metrics) -> None:
        self._broker = broker
        self._metrics = metrics

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/create", self.create),
            web.post(f"/write/{part('producer_address')}/{part('stream_id')}", self.write),
            web.post("/write-batch", self.write_batch),
            web.get(f"/read/{part('consumer_address')}", self.read, allow_head=False),
            web.post(f"/ack/{part('consumer_address')}", self.acknowledge),
            web.post("/channelsExists", self.channels_exist),
            web.get("/metrics", self.metrics),
            web.get("/livez", self.live),
            web.get("/readyz", self.ready),
            web.get("/readyz/create", self.ready_to_create),
            web.get(f"/agents/{part('name')}", self.owns_agent),
        ]

    async def create(self, request: web.Request) -> web.Response:
        body = await body_of(request) if is_json(request) else b""
        channel = await self._broker.create(json.parse_create(body) if body else ())
        return json_answer(json.created(channel))

    async def write(self, request: web.Request) -> web.StreamResponse:
        address, stream_id = path_values(request)
        require_json(request)
        event_id = await self._broker.write(
            address, stream_id, await body_of(request), request.headers.get(IDEMPOTENCY_KEY)
        )
        return WrittenAnswer(event_id)

    async def write_batch(self, request: web.Request) -> web.StreamResponse:
        require_json(request)
        channels, messages = json.parse_batch(await body_of(request))
        failures = await self._broker.write_batch(
            channels, messages, request.headers.get(IDEMPOTENCY_KEY)
        )
        return await json_answer_in_pieces(request, json.batch_written(failures), status=201)

    async def read(self, request: web.Request) -> web.StreamResponse:
        (address,) = path_values(request)
        framing, options = NDJSON, read_options(request)
        if wants_sse(request):
            framing, options = SSE, sse_options(request, options)
        async with await self._broker.open_reader(address, options) as reader:
            return await stream_events(request, reader, framing)

    async def acknowledge(self, request: web.Request) -> web.Response:
        (address,) = path_values(request)
        require_json(request)
        event_id = json.parse_ack(await body_of(request))
        count = await self._broker.acknowledge(address, event_id)
        return json_answer(json.acknowledged(count))

    async def channels_exist(self, request: web.Request) -> web.Response:
        require_json(request)
        channels = await self._broker.exists(json.parse_exists(await body_of(request)))
        return json_answer(json.existing(channels))

    async def metrics(self, request: web.Request) -> web.Response:
        return Answer(body=self._metrics.render(), headers={"Content-Type": METRICS_CONTENT_TYPE})

    async def live(self, request: web.Request) -> web.Response:
        return json_answer(OK)

    async def ready(self, request: web.Request) -> web.Response:
        if self._broker.is_shutting_down:
            raise ShuttingDown
        return json_answer(OK)

    async def ready_to_create(self, request: web.Request) -> web.Response:
        """Tell whether `/create` would make a channel now."""
        await self._broker.check_takes_channels()
        return json_answer(OK)

    async def owns_agent(self, request: web.Request) -> web.Response:
        """Tell whether calls for the channels of an agent belong to this node."""
        (name,) = path_values(request)
        if not await self._broker.owns(name):
            raise AgentNotFound("the agent is not this node's")
        return Answer(status=204)


def read_options(request: web.Request) -> ReadOptions:
    """Return what the query and the headers of a read ask for."""
    query = request.query
    # The header comes first: an EventSource repeats the query of its first request forever, and
    # tells by the header where it is.
    last = request.headers.get("Last-Event-ID")
    window = whole_number(query, "window")
    return ReadOptions(
        after_event_id=query.get("after") if last is None else last,
        acknowledge=one_of(query, "ack", {"none": False, "explicit": True}, default=False),
        window=DEFAULT_WINDOW if window is None else window,
        take_over=one_of(query, "takeover", {"false": False, "true": True}, default=False),
        limit=whole_number(query, "limit"),
        wait_s=seconds_of_ms(query, "wait_ms"),
        heartbeat_s=seconds_of_ms(query, "heartbeat_ms"),
    )


def sse_options(request: web.Request, options: ReadOptions) -> ReadOptions:
    """Fit a read to what an EventSource can do.

    It calls again only after its former connection has ended, and gives up for good on any error:
    so when it comes back, it takes over. And it is the browser that needs signs of life.
    """
    return replace(
        options,
        take_over=options.take_over or "Last-Event-ID" in request.headers,
        heartbeat_s=options.heartbeat_s or SSE_HEARTBEAT_S,
    )
