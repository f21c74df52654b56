"""A receiver of spans: what a collector of OpenTelemetry is to a node, over real HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

WITHIN_S = 20.0
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "20"}
"""The variable that lets a node send its spans after so many milliseconds."""
KINDS = {4: "producer", 5: "consumer"}


@dataclass(frozen=True, slots=True)
class Received:
    """A span, as it arrived. Ids are in hexadecimal form."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    """The trace id and the span id of each link."""
    linked_messages: list[str]
    """The id of the event of each link."""
    error: str
    """What the status says; empty if the span has not failed."""
    resource: dict[str, Any]
    took_ns: int

    @property
    def context(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-01"


@dataclass(slots=True)
class Collector:
    """Receives spans."""

    url: str = ""
    spans: list[Received] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    """What arrived, before it was decoded."""
    headers: list[dict[str, str]] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def variables(self) -> dict[str, str]:
        """The variables with which a node sends its spans here."""
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url, **SOON}

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = values_of(group.resource.attributes)
            for scope in group.scope_spans:
                self.spans += [received(span, resource) for span in scope.spans]
        self.arrived.set()
        answer = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=answer, content_type="application/x-protobuf")

    def named(self, operation: str) -> list[Received]:
        """Return the spans of an operation: send or receive."""
        return [span for span in self.spans if span.name.startswith(operation)]

    async def has(self, *, sends: int = 0, receives: int = 0) -> None:
        """Wait until so many spans of each operation have arrived, each from any node."""
        async with asyncio.timeout(WITHIN_S):
            while len(self.named("send")) < sends or len(self.named("receive")) < receives:
                self.arrived.clear()
                await self.arrived.wait()


def received(span: Any, resource: dict[str, Any]) -> Received:
    return Received(
        name=span.name,
        kind=KINDS[span.kind],
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        attributes=values_of(span.attributes),
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        linked_messages=[values_of(link.attributes)["messaging.message.id"] for link in span.links],
        error=span.status.message if span.status.code == span.status.STATUS_CODE_ERROR else "",
        resource=resource,
        took_ns=span.end_time_unix_nano - span.start_time_unix_nano,
    )


def values_of(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@asynccontextmanager
async def collector() -> AsyncIterator[Collector]:
    """Receive spans within this context."""
    one = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", one.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        one.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield one
    finally:
        await runner.cleanup()
