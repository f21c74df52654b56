"""What each public route takes and answers, as `/openapi.json` describes it.

`OPERATIONS` has a row for each route, by its method and path. A route without a row fails
`tests/rest/test_openapi.py`, and so does a row without a route. `rest.openapi` makes the
description.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from megaphone import errors
from megaphone.errors import MegaphoneError
from megaphone.model import DEFAULT_IN_FLIGHT, READER_PATTERN, Action
from megaphone.rest.requests import MAX_DIGITS
from megaphone.wire import bodies

JSON = "application/json"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
TEXT = "text/plain"
HTML = "text/html"

Schema = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value in the path, the query or a header."""

    name: str
    place: Literal["path", "query", "header"]
    description: str
    schema: Schema = field(default_factory=lambda: {"type": "string"})


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer without an error."""

    status: int
    description: str
    contents: Mapping[str, Any] = field(default_factory=dict)
    """By content type, the type of the body: a class of `wire.bodies`, or `str` for text."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """By its name, the meaning of each header."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What one route takes and answers."""

    name: str
    """The name for which generated clients make a function."""
    group: str
    summary: str
    answer: Answer
    errors: tuple[type[MegaphoneError], ...] = ()
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    body: Any = None
    """The type of the body: a class of `wire.bodies`, or `Any` for any JSON value."""
    example: Any = None
    """A body that `/docs` offers to send."""
    needs_body: bool = True
    other_answers: tuple[Answer, ...] = ()
    """Errors in another form than the others."""
    action: Action | None = None
    """What the caller must be allowed to do. Such a call has the errors of `OF_CALLERS` too."""


# -- Groups


CHANNELS = "Channels"
NODE = "Node"
PAGES = "Pages"
GROUPS = {
    CHANNELS: "The calls of services and of readers.",
    NODE: "The questions of supervisors, proxies and Prometheus.",
    PAGES: "Pages for people, and the description of the API.",
}


# -- Errors that many routes have in common


OF_CALLERS = (
    errors.Unauthenticated,
    errors.TokenExpired,
    errors.PermissionDenied,
    errors.RateLimited,
    errors.KeysUnavailable,
)
UNAVAILABLE = (errors.ShuttingDown, errors.StoreUnavailable)
OF_BODIES = (
    errors.BadRequest,
    errors.TooSlow,
    errors.PayloadTooLarge,
    errors.UnsupportedMediaType,
    errors.LimitExceeded,
)
OF_CHANNELS = (errors.BadRequest, errors.ChannelNotFound, errors.AgentMoved)


# -- Parameters


def whole_number(least: int, **more: int) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": 10**MAX_DIGITS - 1, **more}


CONSUMER = Parameter("consumer_address", "path", "The consumer address of the channel.")
PRODUCER = Parameter("producer_address", "path", "The producer address of the channel.")
STREAM = Parameter(
    "stream_id",
    "path",
    "A name for a stream within the channel: 1 to 1,024 bytes of text without control characters.",
    {"type": "string", "minLength": 1, "maxLength": 1_024},
)
IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    "header",
    "A name for this request: 1 to 200 ASCII characters without spaces. If a request with the same"
    " key was accepted in the last 60 seconds, its answer is repeated, and nothing is stored.",
    {"type": "string", "pattern": "^[!-~]{1,200}$"},
)
TRACEPARENT = Parameter(
    "traceparent",
    "header",
    "The trace context of the writer, as in W3C Trace Context. The events keep one that is sampled;"
    " one that is not valid counts as none.",
)
READING = (
    CONSUMER,
    Parameter(
        "after",
        "query",
        "The id of the last event that the reader has, or `-` for none. The read starts after this"
        " event, which counts as acknowledged, as do all events before it.",
    ),
    Parameter(
        "ack",
        "query",
        "With `explicit`, an event keeps its place until `POST /ack` acknowledges it.",
        {"type": "string", "enum": ["none", "explicit"], "default": "none"},
    ),
    Parameter(
        "window",
        "query",
        "With `ack=explicit`: the largest number of events that are not acknowledged.",
        whole_number(1, default=DEFAULT_IN_FLIGHT),
    ),
    Parameter(
        "takeover",
        "query",
        "With `true`, the open read of the channel ends, as broken, and this one takes its place.",
        {"type": "string", "enum": ["false", "true"], "default": "false"},
    ),
    Parameter(
        "reader",
        "query",
        "A name that the reader gives itself: 1 to 64 letters, digits, `-` and `_`. It is the same"
        " in all its reads, and no other reader has it.",
        {"type": "string", "pattern": f"^{READER_PATTERN}$"},
    ),
    Parameter(
        "returning",
        "query",
        "With `true`, the reader that is named has read the channel before. An open read of its own"
        " ends, as broken, and this one takes its place. If another reader has the channel, this"
        " one has lost it: the answer is `TAKEN_OVER`, also with `takeover=true`.",
        {"type": "string", "enum": ["false", "true"], "default": "false"},
    ),
    Parameter("limit", "query", "The read ends after this many events.", whole_number(1)),
    Parameter(
        "wait_ms",
        "query",
        "The read ends after this many milliseconds instead of the poll duration; at most after the"
        " `max_read_secs` of the node. With 0 it returns the events that are ready.",
        whole_number(0),
    ),
    Parameter(
        "heartbeat_ms",
        "query",
        "The broker sends a heartbeat after this many milliseconds without an event: an empty line,"
        " or a comment in server-sent events (there every 10 s by default).",
        whole_number(1),
    ),
    Parameter(
        "stream",
        "query",
        "The read sends only the events of this stream. It may be repeated, up to 100 times.",
        {"type": "array", "items": {"type": "string"}, "maxItems": 100},
    ),
    Parameter(
        "trace",
        "query",
        "With `true`, each event whose writer sent a sampled trace context has it, as its last"
        " member, `traceparent`.",
        {"type": "string", "enum": ["false", "true"], "default": "false"},
    ),
    Parameter(
        "Last-Event-ID",
        "header",
        "The same as `after`, before which it comes. An `EventSource` sends it when it reconnects.",
    ),
)


# -- Answers


OK = Answer(200, "It is so.", {JSON: bodies.Done})

OPERATIONS: Mapping[tuple[str, str], Operation] = {
    ("POST", "/create"): Operation(
        "create",
        CHANNELS,
        "Create a channel",
        Answer(200, "The channel was created on this node.", {JSON: bodies.Created}),
        (*OF_BODIES, errors.NoAgentAvailable, *UNAVAILABLE),
        body=bodies.CreateRequest,
        example={"protocols": ["HTTP_STREAM_NDJSON_V1"], "ttlSecs": 60, "label": "orders"},
        needs_body=False,
        action=Action.CREATE,
    ),
    ("POST", "/write/{producer_address}/{stream_id}"): Operation(
        "write",
        CHANNELS,
        "Write an event",
        Answer(201, "The event is in the buffer of the owning node.", {JSON: bodies.Written}),
        (*OF_CHANNELS, *OF_BODIES, errors.WriteTimeout, *UNAVAILABLE),
        "If the channel is full, the request waits for a place, first come, first served. After the"
        " write timeout of the node it fails with `TIMEOUT`: the event was not accepted.",
        (PRODUCER, STREAM, IDEMPOTENCY_KEY, TRACEPARENT),
        body=Any,
        example={"hello": "world"},
        action=Action.WRITE,
    ),
    ("POST", "/write-batch"): Operation(
        "writeBatch",
        CHANNELS,
        "Write the same events to many channels",
        Answer(
            201,
            "The batch was written, except for the events that the answer names.",
            {JSON: bodies.BatchWritten},
        ),
        (*OF_BODIES, *UNAVAILABLE),
        "The node writes to the channels at the same time, and to each channel in order. After the"
        " first `TIMEOUT` on a channel, the remaining events for that channel are `SKIPPED`.",
        (IDEMPOTENCY_KEY, TRACEPARENT),
        body=bodies.BatchRequest,
        example={
            "channels": ["a producer address"],
            "messages": [{"streamId": "greetings", "body": {"hello": "world"}}],
        },
        action=Action.WRITE,
    ),
    ("GET", "/read/{consumer_address}"): Operation(
        "read",
        CHANNELS,
        "Read a channel",
        Answer(
            200,
            "The events that are ready, and then each event when it is written: one line of JSON"
            " each or, for a client that accepts only `text/event-stream`, server-sent events. The"
            " answer ends when the read time is over: then read again.",
            {NDJSON: bodies.Event, SSE: bodies.Event},
            {
                "Megaphone-Position": "The event before the first one of this read, or `-`. A"
                " client that gets no event names it as `after` in its next read.",
                "Megaphone-Recovered": "`false` if events may be missing before the first one;"
                " `true` if the event that `after` names was still known; otherwise absent.",
            },
        ),
        (
            *OF_CHANNELS,
            errors.ReaderBusy,
            errors.TakenOver,
            errors.PayloadTooLarge,
            errors.LimitExceeded,
            *UNAVAILABLE,
        ),
        parameters=READING,
        action=Action.READ,
    ),
    ("POST", "/read"): Operation(
        "readMany",
        CHANNELS,
        "Read many channels over one connection",
        Answer(
            200,
            "For each channel a line with `begun`, then its events, then a line with `done`. A"
            " channel that is refused has only the last one. The answer ends when all channels are"
            " done.",
            {NDJSON: bodies.PartOfMany, SSE: bodies.PartOfMany},
        ),
        (*OF_BODIES, errors.ShuttingDown),
        "Each channel has its own lease, cursor and acknowledgements, as in a read of its own. What"
        " happens to one channel does not disturb the others.",
        body=bodies.ReadManyRequest,
        example={"channels": [{"address": "a consumer address", "after": "-"}]},
        action=Action.READ,
    ),
    ("POST", "/ack/{consumer_address}"): Operation(
        "acknowledge",
        CHANNELS,
        "Acknowledge an event and all before it",
        Answer(200, "The acknowledgement was taken.", {JSON: bodies.Acknowledged}),
        (*OF_CHANNELS, *OF_BODIES, *UNAVAILABLE),
        "A reader may repeat it, and may send it while its read is open or after it has ended.",
        (CONSUMER,),
        body=bodies.AckRequest,
        example={"eid": "the id of an event"},
        action=Action.ACK,
    ),
    ("POST", "/channelsExists"): Operation(
        "channelsExist",
        CHANNELS,
        "Ask which channels exist",
        Answer(200, "Whether each channel exists.", {JSON: bodies.Existing}),
        (*OF_BODIES, *UNAVAILABLE),
        body=bodies.ExistsRequest,
        example={"channels": ["an address"]},
        action=Action.EXISTS,
    ),
    ("DELETE", "/channel/{producer_address}"): Operation(
        "dispose",
        CHANNELS,
        "Remove a channel with all its events",
        Answer(200, "The channel was removed.", {JSON: bodies.Done}),
        (*OF_CHANNELS, *UNAVAILABLE),
        "Its open read ends cleanly, and writers that wait get `NOT_FOUND`. If the request is"
        " repeated, it is answered `NOT_FOUND`.",
        (PRODUCER,),
        action=Action.DISPOSE,
    ),
    ("GET", "/livez"): Operation("live", NODE, "Ask whether the process answers", OK),
    ("GET", "/readyz"): Operation(
        "ready", NODE, "Ask whether the node takes requests", OK, UNAVAILABLE
    ),
    ("GET", "/readyz/create"): Operation(
        "readyToCreate",
        NODE,
        "Ask whether the node would create a channel now",
        OK,
        (errors.LimitExceeded, errors.NoAgentAvailable, *UNAVAILABLE),
    ),
    ("GET", "/agents/{name}"): Operation(
        "ownsAgent",
        NODE,
        "Ask whether calls for an agent belong to this node",
        Answer(204, "They do."),
        (errors.BadRequest, errors.AgentNotFound, *UNAVAILABLE),
        parameters=(Parameter("name", "path", "The name of the agent."),),
    ),
    ("GET", "/agents"): Operation(
        "listAgents",
        NODE,
        "List the agents of this node, each with its number of channels",
        Answer(200, "The agents, oldest first.", {JSON: list[bodies.Agent]}),
        (errors.StoreUnavailable,),
        action=Action.METRICS,
    ),
    ("GET", "/metrics"): Operation(
        "metrics",
        NODE,
        "Get the metrics of the node",
        Answer(200, "The metrics, in the text format of Prometheus.", {TEXT: str}),
        other_answers=(
            Answer(503, "The other workers of this broker do not answer.", {TEXT: str}),
        ),
        action=Action.METRICS,
    ),
    ("GET", "/"): Operation(
        "home", PAGES, "A page about this broker", Answer(200, "The page.", {HTML: str})
    ),
    ("GET", "/docs"): Operation(
        "docs", PAGES, "This description, as a page", Answer(200, "The page.", {HTML: str})
    ),
    ("GET", "/openapi.json"): Operation(
        "description",
        PAGES,
        "This description, in OpenAPI 3.1",
        Answer(200, "The description.", {JSON: dict[str, Any]}),
    ),
    ("GET", "/site/{version}/{name}"): Operation(
        "file",
        PAGES,
        "A file of the pages",
        Answer(
            200,
            "The file.",
            {"text/css": str, "text/javascript": str, "image/svg+xml": str, "text/plain": str},
        ),
        (errors.BadRequest,),
        parameters=(
            Parameter("version", "path", "Changes when a file changes."),
            Parameter("name", "path", "The name of the file."),
        ),
        other_answers=(Answer(404, "There is no such file.", {JSON: bodies.Error}),),
    ),
}
