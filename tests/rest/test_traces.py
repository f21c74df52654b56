"""Trace contexts over HTTP, where it is not like gRPC."""

import json

from tests.parity.test_traces import CONTEXT, TRACED
from tests.support.faces import JSON, HttpFace, read_all


async def test_server_sent_events_have_their_contexts(http: HttpFace) -> None:
    channel = await http.create()
    await http.traced(CONTEXT).write(channel.producer, "s", b"1")
    accept = {"Accept": "text/event-stream"}
    url = http.url(f"/read/{channel.consumer}?trace=true&wait_ms=0")
    async with http.session.get(url, headers=accept) as response:
        text = await response.text()
    [data] = [line for line in text.splitlines() if line.startswith("data:")]
    assert json.loads(data.removeprefix("data:"))["traceparent"] == CONTEXT


async def test_several_contexts_of_one_request_are_none(http: HttpFace) -> None:
    channel = await http.create()
    headers = [("traceparent", CONTEXT), ("traceparent", CONTEXT), *JSON.items()]
    url = http.url(f"/write/{channel.producer}/s")
    async with http.session.post(url, data=b"1", headers=headers) as response:
        assert response.status == 201
    [event] = await read_all(http, channel.consumer, TRACED)
    assert event.traceparent is None
