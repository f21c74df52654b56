"""The public HTTP API: the routes of the wire contract, each a translation to the broker.

POST /create
POST /write/{producerAddress}/{streamId}
POST /write-batch
GET  /read/{consumerAddress}
POST /ack/{consumerAddress}
POST /channelsExists
GET  /metrics   GET /livez   GET /readyz
"""

from aiohttp import web

from megaphone.core.broker import Broker
from megaphone.errors import BadRequest, ShuttingDown
from megaphone.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE
from megaphone.metrics import Metrics
from megaphone.model import DEFAULT_WINDOW, ReadOptions
from megaphone.rest.answers import OK, WrittenAnswer, json_answer
from megaphone.rest.requests import is_json, path_values, require_json, whole_number
from megaphone.rest.stream import stream_events
from megaphone.wire import json


class PublicApi:
    """The handlers of the public API."""

    def __init__(self, broker: Broker, metrics: Metrics) -> None:
        self._broker = broker
        self._metrics = metrics

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/create", self.create),
            web.post("/write/{producer_address}/{stream_id}", self.write),
            web.post("/write-batch", self.write_batch),
            web.get("/read/{consumer_address}", self.read, allow_head=False),
            web.post("/ack/{consumer_address}", self.acknowledge),
            web.post("/channelsExists", self.channels_exist),
            web.get("/metrics", self.metrics),
            web.get("/livez", self.live),
            web.get("/readyz", self.ready),
        ]

    async def create(self, request: web.Request) -> web.Response:
        body = await request.read() if is_json(request) else b""
        channel = await self._broker.create(json.parse_create(body) if body else ())
        return json_answer(json.created(channel))

    async def write(self, request: web.Request) -> web.StreamResponse:
        address, stream_id = path_values(request)
        require_json(request)
        event_id = await self._broker.write(
            address, stream_id, await request.read(), request.headers.get("Idempotency-Key")
        )
        return WrittenAnswer(event_id)

    async def write_batch(self, request: web.Request) -> web.Response:
        require_json(request)
        channels, messages = json.parse_batch(await request.read())
        failures = await self._broker.write_batch(
            channels, messages, request.headers.get("Idempotency-Key")
        )
        return json_answer(json.batch_written(failures), status=201)

    async def read(self, request: web.Request) -> web.StreamResponse:
        (address,) = path_values(request)
        async with await self._broker.open_reader(address, read_options(request)) as reader:
            return await stream_events(request, reader)

    async def acknowledge(self, request: web.Request) -> web.Response:
        (address,) = path_values(request)
        require_json(request)
        event_id = json.parse_ack(await request.read())
        count = await self._broker.acknowledge(address, event_id)
        return json_answer(json.acknowledged(count))

    async def channels_exist(self, request: web.Request) -> web.Response:
        require_json(request)
        channels = await self._broker.exists(json.parse_exists(await request.read()))
        return json_answer(json.existing(channels))

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=self._metrics.render(), headers={"Content-Type": METRICS_CONTENT_TYPE}
        )

    async def live(self, request: web.Request) -> web.Response:
        return json_answer(OK)

    async def ready(self, request: web.Request) -> web.Response:
        if self._broker.is_shutting_down:
            raise ShuttingDown
        return json_answer(OK)


def read_options(request: web.Request) -> ReadOptions:
    """Return what the query and the headers of a read ask for."""
    query = request.query
    after = query.get("after", request.headers.get("Last-Event-ID"))
    ack = query.get("ack", "none")
    if ack not in ("none", "explicit"):
        raise BadRequest("`ack` must be `explicit` or `none`")
    return ReadOptions(
        after_event_id=after,
        acknowledge=ack == "explicit",
        window=whole_number("window", query.get("window"), DEFAULT_WINDOW),
    )
