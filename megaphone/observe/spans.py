"""The spans of a node: `send` for what a writer hands over, and `receive` for a batch of a reader.

They follow the messaging conventions of OpenTelemetry. Only events whose writers sent a sampled
trace context have spans. No attribute has an address: channels have their short ids.

A `receive` span belongs to the trace of the first traced event of its batch, and has links to the
`send` spans of all of them, up to a number.

Needs the extra `otel`. `observe.tracing` decides whether a node makes spans.
"""

from asyncio import CancelledError
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from megaphone.core.traces import sampled
from megaphone.errors import MegaphoneError
from megaphone.model import Event

MAX_LINKS: Final = 32
"""How many links a `receive` span has at most, because each costs some microseconds."""
MAX_SENDS: Final = 32
"""How many `send` spans one call has at most. Events beyond them keep the contexts of their writers
themselves."""
TEMPLATE: Final = "{channel}"
"""What stands for the address of each channel."""
INTERNAL: Final = "INTERNAL"
CANCELLED: Final = "CANCELLED"
BROKEN: Final = "BROKEN"


def attributes(operation: str) -> dict[str, AttributeValue]:
    return {
        "messaging.system": "megaphone",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.template": TEMPLATE,
    }


OF_SEND: Final = attributes("send")
OF_RECEIVE: Final = attributes("receive")
CHANNEL: Final = "megaphone.channel"
FACE: Final = "megaphone.face"
MESSAGE_ID: Final = "messaging.message.id"
MESSAGES: Final = "messaging.batch.message_count"
ERROR_TYPE: Final = "error.type"


class Spans:
    """Makes the spans of a node. Fulfils `core.ports.Tracing`."""

    makes_spans: Final = True

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def sending(self, face: str) -> "SendSpans":
        return SendSpans(self._tracer, face)

    def receive(self, events: Sequence[Event], short_id: str) -> "ReceiveSpan | None":
        traced: dict[str, str] = {}
        """The ids of events, by the contexts that are to be linked."""
        for event in events:
            if event.trace is not None and event.trace not in traced:
                traced[event.trace] = event.id
                if len(traced) == MAX_LINKS:
                    break
        if not traced:
            return None
        links = [
            Link(span_context(trace), {MESSAGE_ID: event_id}) for trace, event_id in traced.items()
        ]
        more: dict[str, AttributeValue] = {CHANNEL: short_id, MESSAGES: len(events)}
        if len(events) == 1:
            more = {CHANNEL: short_id, MESSAGE_ID: events[0].id}
        span = self._tracer.start_span(
            f"receive {TEMPLATE}",
            context_with(links[0].context),
            SpanKind.CONSUMER,
            OF_RECEIVE | more,
            links,
        )
        return ReceiveSpan(span) if span.is_recording() else None


class ReceiveSpan:
    """The span of a batch, from when its reader is handed it until the connection has its bytes.
    Fulfils `core.ports.Receiving`."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def end(self, *, is_sent: bool) -> None:
        if not is_sent:
            fail(self._span, BROKEN)
        self._span.end()


class Send:
    """A `send` span, and what became of its events."""

    __slots__ = ("event_id", "events", "failure", "span", "trace")

    def __init__(self, span: Span) -> None:
        self.span = span
        self.trace = traceparent_of(span.get_span_context())
        self.event_id: str | None = None
        self.events = 0
        self.failure: str | None = None

    def end(self, failure: str | None) -> None:
        if self.events > 1:
            self.span.set_attribute(MESSAGES, self.events)
        elif self.event_id is not None:
            self.span.set_attribute(MESSAGE_ID, self.event_id)
        if failure is not None or self.failure is not None:
            fail(self.span, failure or self.failure or INTERNAL)
        self.span.end()


class SendSpans:
    """The `send` spans of one call: one for each context that its writer sent. Fulfils
    `core.ports.Sending`."""

    __slots__ = ("_face", "_sends", "_tracer")

    def __init__(self, tracer: Tracer, face: str) -> None:
        self._tracer = tracer
        self._face = face
        self._sends: dict[str, Send] = {}
        """By what the writer sent."""

    @property
    def has_spans(self) -> bool:
        return bool(self._sends)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        failure = None if error is None else code_of(error)
        for send in self._sends.values():
            send.end(failure)

    def trace_of(self, traceparent: str | None) -> str | None:
        if traceparent is None:
            return None
        if (known := self._sends.get(traceparent)) is not None:
            return known.trace
        parent = sampled(traceparent)
        if parent is None or len(self._sends) >= MAX_SENDS:
            return parent
        span = self._tracer.start_span(
            f"send {TEMPLATE}",
            context_with(span_context(parent)),
            SpanKind.PRODUCER,
            OF_SEND | {FACE: self._face},
        )
        if not span.is_recording():  # the sampler of this node does not want it
            return parent
        send = self._sends[traceparent] = Send(span)
        return send.trace

    def to_channel(self, short_id: str | None) -> None:
        if short_id is not None:
            for send in self._sends.values():
                send.span.set_attribute(CHANNEL, short_id)

    def note(
        self,
        traceparent: str | None,
        event_id: str | None = None,
        *,
        failure: str | None = None,
        events: int = 1,
    ) -> None:
        if traceparent is None or (send := self._sends.get(traceparent)) is None:
            return
        send.events += events
        send.event_id = send.event_id or event_id
        send.failure = send.failure or failure


def fail(span: Span, code: str) -> None:
    span.set_attribute(ERROR_TYPE, code)
    span.set_status(Status(StatusCode.ERROR, code))


def code_of(error: BaseException) -> str:
    """Return why a call has failed. The message of an error stays out of its span."""
    if isinstance(error, MegaphoneError):
        return error.code
    return CANCELLED if isinstance(error, CancelledError) else INTERNAL


def span_context(trace: str) -> SpanContext:
    """Return what a trace context says, which must be a valid one of version 00."""
    _, trace_id, span_id, flags = trace.split("-")
    return SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
    )


def context_with(parent: SpanContext) -> Context:
    return set_span_in_context(NonRecordingSpan(parent), Context())


def traceparent_of(span: SpanContext) -> str:
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
