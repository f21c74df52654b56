"""The calls of clients over HTTP, translated to the broker and back.

POST /create
POST /write/{producerAddress}/{streamId}
POST /write-batch
GET  /read/{consumerAddress}
POST /read                      many channels over one connection
POST /ack/{consumerAddress}
POST /channelsExists
DELETE /channel/{producerAddress}
"""

from collections.abc import Mapping

from aiohttp import hdrs, web

from megaphone.core.access import Action, Caller
from megaphone.core.broker import Broker
from megaphone.core.traces import TRACEPARENT
from megaphone.model import NewEvent
from megaphone.rest.callers import Callers
from megaphone.rest.connection.answers import OK, WrittenAnswer, json_answer, json_answer_in_pieces
from megaphone.rest.cors import ORIGINS
from megaphone.rest.reads import (
    LAST_EVENT_ID,
    framing_of,
    of_framing,
    options_of,
    stream_events,
    stream_many,
)
from megaphone.rest.requests import (
    body_of,
    is_json,
    path_values,
    require_json,
    segment,
    without_query,
)
from megaphone.wire import json

IDEMPOTENCY_KEY = "Idempotency-Key"
FACE = "http"


class ChannelApi:
    """The handlers of the calls of clients."""

    def __init__(self, broker: Broker, callers: Callers) -> None:
        self._broker = broker
        self._callers = callers

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/create", without_query(self.create)),
            web.post(
                f"/write/{segment('producer_address')}/{segment('stream_id')}",
                without_query(self.write),
            ),
            web.post("/write-batch", without_query(self.write_batch)),
            web.get(f"/read/{segment('consumer_address')}", self.read, allow_head=False),
            web.post("/read", without_query(self.read_many)),
            web.post(f"/ack/{segment('consumer_address')}", without_query(self.acknowledge)),
            web.post("/channelsExists", without_query(self.channels_exist)),
            web.delete(f"/channel/{segment('producer_address')}", without_query(self.dispose)),
        ]

    async def create(self, request: web.Request) -> web.Response:
        if not is_json(request):  # which a page of another origin can send without a preflight
            request.app[ORIGINS].check(request)
        caller = await self._callers.of(request, Action.CREATE)
        body = await body_of(request) if is_json(request) else b""
        caller = await self._callers.again(caller, request, Action.CREATE)
        protocols, options = json.parse_create(body)
        ip = self._callers.peer_of(request).ip if self._broker.peers.limit_creates else None
        channel = await self._broker.create(caller, protocols, options, ip)
        return json_answer(json.created(channel))

    async def write(self, request: web.Request) -> web.StreamResponse:
        caller, body = await self._received(request, Action.WRITE)
        address, stream_id = path_values(request)
        key, given = request.headers.get(IDEMPOTENCY_KEY), traceparent_of(request)
        with self._broker.tracing.sending(FACE) as sending:
            event = NewEvent(stream_id, body, key, sending.trace_of(given))
            if sending.has_spans:
                sending.to_channel(self._broker.short_id_of(address))
            event_id = await self._broker.write(caller, address, event)
            sending.note(given, event_id)
        return WrittenAnswer(event_id)

    async def write_batch(self, request: web.Request) -> web.StreamResponse:
        caller, body = await self._received(request, Action.WRITE)
        key, given = request.headers.get(IDEMPOTENCY_KEY), traceparent_of(request)
        with self._broker.tracing.sending(FACE) as sending:
            channels, messages = json.parse_batch(body, sending.trace_of(given))
            written = await self._broker.write_batch(caller, channels, messages, key)
            sending.note(given, failure=written.failure, events=len(messages))
        return await json_answer_in_pieces(request, json.batch_written(written), status=201)

    async def read(self, request: web.Request) -> web.StreamResponse:
        caller = await self._callers.of(request, Action.READ)
        (address,) = path_values(request)
        framing = framing_of(request.headers.get("Accept", ""))
        query = request.query
        options = options_of(
            framing, query, request.headers.get(LAST_EVENT_ID), query.getall("stream", ())
        )
        reader = await self._broker.open_read(caller, address, options)
        stream_events(request, reader, framing, readers_headers(request), options)

    async def read_many(self, request: web.Request) -> web.StreamResponse:
        caller, body = await self._received(request, Action.READ)
        channels, options = json.parse_read_many(body)
        framing = framing_of(request.headers.get("Accept", ""))
        reader = await self._broker.open_many(caller, channels, of_framing(framing, options))
        stream_many(request, reader, framing, readers_headers(request), options)

    async def acknowledge(self, request: web.Request) -> web.Response:
        caller, body = await self._received(request, Action.ACK)
        (address,) = path_values(request)
        event_id = json.parse_ack(body)
        count = await self._broker.acknowledge(caller, address, event_id)
        return json_answer(json.acknowledged(count))

    async def channels_exist(self, request: web.Request) -> web.Response:
        caller, body = await self._received(request, Action.EXISTS)
        channels = await self._broker.exists(caller, json.parse_exists(body))
        return json_answer(json.existing(channels))

    async def dispose(self, request: web.Request) -> web.Response:
        caller = await self._callers.of(request, Action.DISPOSE)
        (address,) = path_values(request)
        await self._broker.dispose(caller, address)
        return json_answer(OK)

    async def _received(self, request: web.Request, action: Action) -> tuple[Caller, bytes]:
        """Return who calls, and the body of the request, which nobody reads for a stranger."""
        caller = await self._callers.of(request, action)
        require_json(request)
        body = await body_of(request)
        return await self._callers.again(caller, request, action), body


def traceparent_of(request: web.Request) -> str | None:
    """Return the trace context that a writer sent; None if it sent none, or several."""
    values = request.headers.getall(TRACEPARENT, ())
    return values[0] if len(values) == 1 else None


def readers_headers(request: web.Request) -> Mapping[str, str]:
    """Return further headers of the answer to a reader."""
    return request.app[ORIGINS].headers(request.headers.get(hdrs.ORIGIN))
