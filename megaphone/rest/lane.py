"""The lane: answers the most frequent requests from their bytes, without aiohttp's machinery.

It has no rules. It calls the same use cases of the broker as `rest.channels`, by their halves that
do not wait, and its answers are the same bytes. It never answers an error and never guesses: what
it is not sure of, what must wait and what is refused goes to aiohttp, which gets the very same
bytes. Until then nothing has happened.

Two readers of the same bytes must agree where a request ends, or one could smuggle a request past
the other. So the lane takes only requests of a strict form: HTTP/1.1, one message from the first
byte to the last, no header twice, no header that changes how a message is read, and a path of
characters that nobody encodes.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import httptools

from megaphone.core.broker import Broker
from megaphone.core.ports import WouldBlock
from megaphone.errors import MegaphoneError
from megaphone.model import NewEvent
from megaphone.rest.connection.answers import created, ok, pieces_of_answer
from megaphone.rest.connection.protocol import Later, Opened, Outcome, Unanswered, Unfinished
from megaphone.rest.reads import framing_of, head_of_answer, options_of
from megaphone.wire import json

MAX_HEAD_BYTES = 8_000
MAX_HEADERS = 100
"""Both limits are below those of aiohttp, so that aiohttp would have taken the head too."""
MAX_BODY_BYTES = 1_048_576
"""A larger body is left to aiohttp, which receives it in pieces."""
ODD_HEADERS = frozenset(
    (
        b"content-encoding",
        b"expect",
        b"http2-settings",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Headers that change how a message is read, or what may follow it."""

NOT_CERTAIN = Unanswered(is_whole=False)
NOT_HERE = Unanswered(is_whole=True)

_DIGITS = re.compile(rb"0|[1-9][0-9]{0,8}")
_WRITE = re.compile(rb"/write/([A-Za-z0-9_.-]+)/([A-Za-z0-9_.~-]+)")
_ACK = re.compile(rb"/ack/([A-Za-z0-9_.-]+)")
_READ = re.compile(rb"/read/([A-Za-z0-9_.-]+)(?:\?([A-Za-z0-9_=&-]+))?")
_DOTS = (b".", b"..")


class Request:
    """Reads a request of the strict form from its bytes. One object reads all requests, one after
    the other; its attributes describe the last one."""

    __slots__ = ("_headers", "_is_complete", "_is_odd", "_messages", "_parser", "body", "url")

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._reset()

    def _reset(self) -> None:
        self.url = b""
        self.body = b""
        self._headers: dict[bytes, bytes] = {}
        self._is_odd = False
        self._is_complete = False
        self._messages = 0

    def read(self, data: bytes) -> Unanswered | Unfinished | None:
        """Read a request. Returns: None if the bytes are one whole request of the strict form."""
        head_bytes = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES) + 4
        if head_bytes < 4:
            return NOT_CERTAIN
        self._reset()
        try:
            self._parser.feed_data(data)
            is_sound = self._is_sound()
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            is_sound = False
        if not is_sound:
            self._parser = httptools.HttpRequestParser(self)
            return NOT_CERTAIN
        length = int(self._headers.get(b"content-length", b"0"))
        missing = head_bytes + length - len(data)
        if missing == 0 and self._is_complete and len(self.body) == length:
            return None
        self._parser = httptools.HttpRequestParser(self)  # because it is within a message
        if 0 < missing <= MAX_BODY_BYTES and not self._is_complete:
            return Unfinished(missing)
        return NOT_CERTAIN

    def _is_sound(self) -> bool:
        headers = self._headers
        return (
            not self._is_odd
            and self._messages == 1
            and self._parser.get_http_version() == "1.1"
            and b"host" in headers
            and len(headers) <= MAX_HEADERS
            and _DIGITS.fullmatch(headers.get(b"content-length", b"0")) is not None
            and headers.get(b"connection", b"keep-alive") == b"keep-alive"
        )

    @property
    def method(self) -> bytes:
        method: bytes = self._parser.get_method()
        return method

    def header(self, name: bytes) -> str | None:
        """Return the value of a header by its name in small letters; None if it is missing.

        Raises: UnicodeDecodeError, if the value is not ASCII.
        """
        value = self._headers.get(name)
        return None if value is None else value.decode("ascii")

    @property
    def is_json(self) -> bool:
        """Whether the body is JSON by the word, which is what nearly every client sends."""
        return self._headers.get(b"content-type") == b"application/json"

    @property
    def has_no_body(self) -> bool:
        return not self.body and b"content-type" not in self._headers

    # -- Calls of the parser

    def on_message_begin(self) -> None:
        self._messages += 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in self._headers or name in ODD_HEADERS:
            self._is_odd = True
        self._headers[name] = value

    def on_body(self, body: bytes) -> None:
        self.body = self.body + body if self.body else body

    def on_message_complete(self) -> None:
        self._is_complete = True


@dataclass(slots=True)
class Lane:
    """Fulfils `connection.protocol.Answering`."""

    broker: Broker
    max_body_bytes: int
    readers_headers: Mapping[str, str]
    """Further headers of answers to readers."""
    request: Request = field(default_factory=Request)

    def answer(self, data: bytes) -> Outcome:
        """Answer the request that these bytes are, or do nothing at all."""
        request = self.request
        if (refused := request.read(data)) is not None:
            return refused
        if len(request.body) > self.max_body_bytes:
            return NOT_HERE
        try:
            if request.method == b"POST":
                return self._post(request)
            if request.method == b"GET" and request.has_no_body:
                return self._read(request)
        except (MegaphoneError, WouldBlock, UnicodeDecodeError):
            return NOT_HERE
        return NOT_HERE

    def _post(self, request: Request) -> Outcome:
        url = request.url
        if url == b"/create":
            return self._create(request)
        if not request.is_json:
            return NOT_HERE
        if (found := _WRITE.fullmatch(url)) is not None:
            return self._write(request, *found.groups())
        if url == b"/write-batch":
            return Later(self._write_batch(request.body, request.header(b"idempotency-key")))
        if (found := _ACK.fullmatch(url)) is not None and not self.readers_headers:
            event_id = json.parse_ack(request.body)
            count = self.broker.acknowledge_nowait(found[1].decode(), event_id)
            return ok(json.acknowledged(count))
        return NOT_HERE

    def _create(self, request: Request) -> Outcome:
        if request.is_json and request.body:
            protocols = json.parse_create(request.body)
        elif request.is_json or request.has_no_body:
            protocols = []
        else:
            return NOT_HERE
        return ok(json.created(self.broker.create_nowait(protocols)))

    def _write(self, request: Request, address: bytes, stream_id: bytes) -> Outcome:
        if address in _DOTS or stream_id in _DOTS:
            return NOT_HERE
        event = NewEvent(stream_id.decode(), request.body, request.header(b"idempotency-key"))
        return created(json.written(self.broker.write_nowait(address.decode(), event)))

    async def _write_batch(self, body: bytes, key: str | None) -> Iterator[bytes] | None:
        try:
            channels, messages = json.parse_batch(body)
            failures = await self.broker.write_batch(channels, messages, key)
        except MegaphoneError:
            return None
        return pieces_of_answer(b"HTTP/1.1 201 Created\r\n", json.batch_written(failures))

    def _read(self, request: Request) -> Outcome:
        found = _READ.fullmatch(request.url)
        if found is None:
            return NOT_HERE
        query = query_of(found[2])
        if query is None:
            return NOT_HERE
        framing = framing_of(request.header(b"accept") or "")
        options = options_of(framing, query, request.header(b"last-event-id"))
        reader = self.broker.open_read_nowait(found[1].decode(), options)
        head = head_of_answer(framing, reader.recovered, self.readers_headers)
        return Opened(head, reader, framing)


def query_of(raw: bytes | None) -> dict[str, str] | None:
    """Return the parameters of a query; None if it is not one of the simple form: each parameter
    once, with a value."""
    if raw is None:
        return {}
    pairs = [pair.split("=") for pair in raw.decode().split("&")]
    if any(len(pair) != 2 or not pair[0] for pair in pairs):
        return None
    query = {pair[0]: pair[1] for pair in pairs}
    return query if len(query) == len(pairs) else None
