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
from asyncio import CancelledError
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Final, TypeAlias

import httptools

from megaphone.core import traces
from megaphone.core.access import ANYONE, Action, Caller, Names
from megaphone.core.broker import Broker
from megaphone.core.pace import loop_time
from megaphone.core.ports import Doorkeeper, WouldBlock
from megaphone.core.traces import sampled
from megaphone.core.waits import measure
from megaphone.core.writing import Write
from megaphone.errors import MegaphoneError, StoreUnavailable
from megaphone.model import BatchWritten, ChannelOptions, NewEvent, ReadOptions
from megaphone.observe.calls import CANCELLED, INTERNAL, OK, Calls, FaceCalls
from megaphone.rest.connection.answer_bytes import (
    CREATED_LINE,
    OK_LINE,
    error_bytes,
    head_of_json,
    pieces_of_answer,
    with_json,
)
from megaphone.rest.connection.protocol import (
    Answered,
    Begun,
    Failed,
    Later,
    Opened,
    Outcome,
    Unanswered,
    Unfinished,
)
from megaphone.rest.connection.stream import Framing
from megaphone.rest.cors import Origins
from megaphone.rest.reads import framing_of, head_of_answer, of_events, options_of
from megaphone.wire import json

MAX_HEAD_BYTES: Final = 8_000
MAX_HEADERS = 100
"""Both limits are below those of aiohttp, so that aiohttp would have taken the head too."""
MAX_LENGTH_DIGITS = 9
MAX_BODY_BYTES = 1_048_576
"""A larger body is left to aiohttp, which receives it in pieces."""
KNOWN_FIELDS = 500
KNOWN_FIELDS_BYTES = 2_048
"""How many header sections the lane remembers, and how long each may be."""
KNOWN_LINES = 4_096
KNOWN_LINE_BYTES = 400
"""How many first lines of writes the lane remembers, and how long each may be."""
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

TRACEPARENT: Final = traces.TRACEPARENT.encode()
PAGES_HEADERS = frozenset((b"origin", b"sec-fetch-site"))
"""With one of these a page may make the request, which another origin may not do."""
ACTIONS: Final = {
    b"create": Action.CREATE,
    b"write": Action.WRITE,
    b"write-batch": Action.WRITE,
    b"ack": Action.ACK,
    b"channelsExists": Action.EXISTS,
}
"""The action of each request with a body, by the first part of its path."""

NOT_CERTAIN: Final = Unanswered(is_whole=False)
NOT_HERE: Final = Unanswered(is_whole=True)

_WRITE: Final = re.compile(rb"/write/([A-Za-z0-9_.-]+)/([A-Za-z0-9_.~-]+)")
_ACK = re.compile(rb"/ack/([A-Za-z0-9_.-]+)")
_READ = re.compile(rb"/read/([A-Za-z0-9_.-]+)(?:\?([A-Za-z0-9_=&-]+))?")
_WITH_BODY = re.compile(
    rb"/create|/write-batch|/channelsExists|/ack/[A-Za-z0-9_.-]+|/write/[A-Za-z0-9_.-]+/[A-Za-z0-9_.~-]+"
)
_FIRST_LINE: Final = re.compile(rb"(GET|POST) (/[A-Za-z0-9_.~/?=&-]*) HTTP/1\.1\r\n")
_DOTS: Final = (b".", b"..")


FirstLine: TypeAlias = tuple[bytes, bytes, tuple[str, str] | None]
"""What a first line means: the method, the path with its query, and the address and the stream in
the path of a write."""


class Request:
    """Reads a request of the strict form from its bytes. One object reads all requests, one after
    the other; its attributes describe the last one.

    Clients repeat their headers, and write to the same channels again. So the object remembers what
    the parser has found in a header section, and what the first line of a write means. A request
    that has both needs no parser.
    """

    __slots__ = (
        "_begun",
        "_ended",
        "_feed",
        "_is_odd",
        "_known",
        "_lines",
        "_parser",
        "body",
        "headers",
        "length",
        "method",
        "names",
        "proof",
        "url",
        "write",
    )

    def __init__(self) -> None:
        self._renew()
        self.method = b""
        self.length = 0
        """How many bytes the body has."""
        self.url = b""
        self.write: tuple[str, str] | None = None
        """The address and the stream in the path of a write; None if it is another path."""
        self.body = b""
        self.headers: dict[bytes, bytes] = {}
        """The headers, by their names in small letters."""
        self.proof: str | None = None
        """The value of `Authorization`."""
        self.names: Names = ()
        """The names in the certificate of the client."""
        self._is_odd = False
        """Whether there is a header twice, or one of `ODD_HEADERS`."""
        self._begun = self._ended = 0
        """How many messages have begun and ended."""
        self._known: dict[bytes, tuple[dict[bytes, bytes], int, str | None]] = {}
        """By the bytes of a header section: its headers, the length of the body, and the proof."""
        self._lines: dict[bytes, FirstLine] = {}
        """By the bytes of a first line."""

    def _renew(self) -> None:
        """Drop the state of the parser, because the bytes did not end with a message."""
        self._parser = httptools.HttpRequestParser(self)
        self._feed = self._parser.feed_data

    def read(self, data: bytes) -> Unanswered | Unfinished | None:
        """Read a request. Returns: None if the bytes are one whole request of the strict form."""
        head_bytes = data.find(b"\r\n\r\n", 0, MAX_HEAD_BYTES) + 4
        if head_bytes < 4:
            return NOT_CERTAIN
        line = data[: data.find(b"\r\n") + 2]
        remembered = self._lines.get(line)
        first = self._first_line(line) if remembered is None else remembered
        if first is None:
            return self._parse(data, head_bytes)
        fields = data[len(line) : head_bytes]
        if (known := self._known.get(fields)) is not None:
            self.headers, self.length, self.proof = known
            if len(data) == head_bytes + self.length:
                self.method, self.url, self.write = first
                self.body = data[head_bytes:]
                if remembered is None:
                    self._remember(line, first)
                return None
        refused = self._parse(data, head_bytes)
        # A trace context differs in each request.
        is_usual = TRACEPARENT not in self.headers
        if refused is None and is_usual and len(fields) <= KNOWN_FIELDS_BYTES:
            if len(self._known) >= KNOWN_FIELDS:
                self._known.clear()
            self._known[fields] = (self.headers, self.length, self.proof)
        return refused

    def _first_line(self, line: bytes) -> FirstLine | None:
        """Return what a first line means; None if it has not the strict form."""
        found = _FIRST_LINE.fullmatch(line)
        if found is None:
            return None
        method, url = found.groups()
        return method, url, write_of(url)

    def _remember(self, line: bytes, first: FirstLine) -> None:
        """Remember the first line of a write."""
        if first[2] is None or len(line) > KNOWN_LINE_BYTES:
            return
        if len(self._lines) >= KNOWN_LINES:
            self._lines.clear()
        self._lines[line] = first

    def _parse(self, data: bytes, head_bytes: int) -> Unanswered | Unfinished | None:
        """Do the same as `read` by the parser. The head of the request has `head_bytes`."""
        headers = self.headers = {}
        self.body = self.url = b""
        self._is_odd = False
        self._begun = self._ended = 0
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._is_odd = True
        length = headers.get(b"content-length", b"0")
        if (
            self._is_odd
            or self._begun != 1
            or b"host" not in headers
            or headers.get(b"connection", b"keep-alive") != b"keep-alive"
            or not length.isdigit()
            or len(length) > MAX_LENGTH_DIGITS
            or len(headers) > MAX_HEADERS
            or self._parser.get_http_version() != "1.1"
        ):
            self._renew()
            return NOT_CERTAIN
        proof = headers.get(b"authorization")
        self.proof = None if proof is None else proof.decode("latin-1")
        self.method = self._parser.get_method()
        self.write = write_of(self.url)
        self.length = int(length)
        missing = head_bytes + self.length - len(data)
        if missing == 0 and self._ended == 1 and len(self.body) + head_bytes == len(data):
            return None
        self._renew()
        if 0 < missing <= MAX_BODY_BYTES and self._ended == 0:
            return Unfinished(missing)
        return NOT_CERTAIN

    def header(self, name: bytes) -> str | None:
        """Return the value of a header by its name in small letters; None if it is missing.

        Raises: UnicodeDecodeError, if the value is not ASCII.
        """
        value = self.headers.get(name)
        return None if value is None else value.decode("ascii")

    @property
    def has_no_body(self) -> bool:
        return not self.body and b"content-type" not in self.headers

    # -- Calls of the parser

    def on_message_begin(self) -> None:
        self._begun += 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in self.headers or name in ODD_HEADERS:
            self._is_odd = True
        self.headers[name] = value

    def on_body(self, body: bytes) -> None:
        self.body = self.body + body if self.body else body

    def on_message_complete(self) -> None:
        self._ended += 1


def write_of(url: bytes) -> tuple[str, str] | None:
    """Return the address and the stream in the path of a write; None if it is another path."""
    found = _WRITE.fullmatch(url)
    if found is None or found[2] in _DOTS:  # which aiohttp takes for folders
        return None
    return found[1].decode(), found[2].decode()


@dataclass(slots=True)
class Lane:
    """Fulfils `connection.protocol.Answering`."""

    broker: Broker
    doorkeeper: Doorkeeper
    max_body_bytes: int
    origins: Origins
    """The other origins whose pages may read."""
    calls: FaceCalls = field(default_factory=FaceCalls)
    """Counts the calls that the lane answers itself."""
    request: Request = field(default_factory=Request)

    def answer(self, data: bytes, names: Names) -> Outcome:
        """Answer the request that these bytes are, or do nothing at all. `names` are those in the
        certificate of the client."""
        request = self.request
        request.names = names
        if (refused := request.read(data)) is not None:
            if isinstance(refused, Unfinished) and not self._may_take(request):
                return NOT_CERTAIN
            return refused
        if len(request.body) > self.max_body_bytes:
            return NOT_HERE
        caller = self.doorkeeper.known(request.proof, names)
        if caller is None:
            return NOT_HERE
        try:
            match request.method:
                case b"POST":
                    return self._post(caller, request)
                case b"GET" if request.has_no_body:
                    return self._read(caller, request)
                case _:
                    return NOT_HERE
        except (MegaphoneError, WouldBlock, UnicodeDecodeError):
            return NOT_HERE

    def complete(self, outcomes: list[Outcome], began_at: float) -> None:
        """Make each `Write` in a list, and put its answer in its place; or `Begun`, if the store is
        elsewhere; or `NOT_HERE`, if it must wait or is refused. `began_at` is when the turn of the
        requests began."""
        writes: list[Write] = []
        numbers: list[int] = []
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, Write):
                writes.append(outcome)
                numbers.append(number)
        if not writes:
            return
        if self.broker.has_remote_store:
            for index, write in enumerate(writes):
                outcomes[numbers[index]] = self._begin(write, began_at)
            return
        head, length, written = b"", -1, 0
        for index, result in enumerate(self.broker.write_all_nowait(writes)):
            if not isinstance(result, str):
                outcomes[numbers[index]] = NOT_HERE
                continue
            body = json.written(result)
            if len(body) != length:  # all ids are alike, and so are the answers
                length = len(body)
                head = head_of_json(CREATED_LINE, length)
            outcomes[numbers[index]] = head + body
            written += 1
        if written:
            self.calls.write.succeeded(monotonic() - began_at, written)

    def _may_take(self, request: Request) -> bool:
        """Return whether the lane may answer a request whose body is incomplete. aiohttp refuses
        others at once, also those of callers who may not call."""
        return (
            request.method == b"POST"
            and request.length <= self.max_body_bytes
            and request.headers.get(b"content-type") == b"application/json"
            and _WITH_BODY.fullmatch(request.url) is not None
            and self._may_call(request)
        )

    def _may_call(self, request: Request) -> bool:
        """Return whether the caller of a request may do what the request is for."""
        caller = self.doorkeeper.known(request.proof, request.names)
        if caller is None or caller is ANYONE:
            return caller is ANYONE
        try:
            caller.check(ACTIONS[request.url.split(b"/", 2)[1]], loop_time())
        except MegaphoneError:
            return False
        return True

    def _post(self, caller: Caller, request: Request) -> Outcome:
        url = request.url
        if url == b"/create":
            return self._create(caller, request)
        if request.headers.get(b"content-type") != b"application/json":
            return NOT_HERE
        if request.write is not None:
            return self._write(caller, request, *request.write)
        if url == b"/channelsExists":
            return self._exist(caller, request)
        if url == b"/write-batch":
            return self._write_batch(caller, request)
        if (ack := _ACK.fullmatch(url)) is not None and not self.origins.are_any:
            return self._acknowledge(caller, request, ack[1].decode())
        return NOT_HERE

    def _exist(self, caller: Caller, request: Request) -> Outcome:
        began_at = monotonic()
        addresses = json.parse_exists(request.body)
        if self.broker.has_remote_store:
            return Later(answered(self._found(caller, addresses), self.calls.exists, began_at))
        answer = with_json(OK_LINE, json.existing(self.broker.exists_nowait(caller, addresses)))
        self.calls.exists.succeeded(monotonic() - began_at)
        return answer

    def _acknowledge(self, caller: Caller, request: Request, address: str) -> Outcome:
        began_at = monotonic()
        event_id = json.parse_ack(request.body)
        if self.broker.has_remote_store:
            call = self._acknowledged(caller, address, event_id)
            return Later(answered(call, self.calls.ack, began_at))
        count = self.broker.acknowledge_nowait(caller, address, event_id)
        self.calls.ack.succeeded(monotonic() - began_at)
        return with_json(OK_LINE, json.acknowledged(count))

    def _create(self, caller: Caller, request: Request) -> Outcome:
        if request.headers.get(b"content-type") != b"application/json" and not (
            request.has_no_body and PAGES_HEADERS.isdisjoint(request.headers)
        ):
            return NOT_HERE
        began_at = monotonic()
        protocols, options = json.parse_create(request.body)
        if self.broker.has_remote_store:
            call = self._created(caller, protocols, options)
            return Later(answered(call, self.calls.create, began_at))
        created = self.broker.create_nowait(caller, protocols, options)
        self.calls.create.succeeded(monotonic() - began_at)
        return with_json(OK_LINE, json.created(created))

    def _write(self, caller: Caller, request: Request, address: str, stream_id: str) -> Outcome:
        trace: str | None = None
        # A write that has a span takes longer anyway.
        if TRACEPARENT in request.headers:
            trace = sampled(request.header(TRACEPARENT))
            if trace is not None and self.broker.tracing.makes_spans:
                return NOT_HERE
        key = request.header(b"idempotency-key")
        return Write(caller, address, NewEvent(stream_id, request.body, key, trace))

    def _write_batch(self, caller: Caller, request: Request) -> Outcome:
        began_at = monotonic()
        calls = self.calls.write_batch
        trace = sampled(request.header(TRACEPARENT))
        if trace is not None and self.broker.tracing.makes_spans:
            return NOT_HERE
        channels, messages = json.parse_batch(request.body, trace)
        key = request.header(b"idempotency-key")
        if key is None:
            with suppress(WouldBlock):
                written = self.broker.begin_batch(caller, channels, messages)
                if isinstance(written, BatchWritten):
                    calls.succeeded(monotonic() - began_at)
                    return with_json(CREATED_LINE, b"".join(json.batch_written(written)))
                return Later(answered(pieces_when_written(written), calls, began_at))
        writing = self.broker.write_batch(caller, channels, messages, key)
        return Later(answered(pieces_when_written(writing), calls, began_at))

    def _read(self, caller: Caller, request: Request) -> Outcome:
        began_at = monotonic()
        found = _READ.fullmatch(request.url)
        if found is None:
            return NOT_HERE
        query = query_of(found[2])
        if query is None:
            return NOT_HERE
        framing = framing_of(request.header(b"accept") or "")
        streams = (query["stream"],) if "stream" in query else ()
        options = options_of(framing, query, request.header(b"last-event-id"), streams)
        origin = request.header(b"origin")
        if self.broker.has_remote_store:
            call = self._opened(caller, found[1].decode(), options, framing, origin)
            return Later(answered(call, self.calls.read, began_at))
        reader = self.broker.open_read_nowait(caller, found[1].decode(), options)
        head = head_of_answer(framing, reader, self.origins.headers(origin))
        self.calls.read.succeeded(monotonic() - began_at)
        return Opened(head, reader, of_events(framing, options))

    # -- The same with a store elsewhere, whose answers come in a later turn

    def _begin(self, write: Write, began_at: float) -> Outcome:
        """Begin a write. The most frequent call has no task, because that costs as much as the rest
        of a write."""
        begun, calls = Begun(), self.calls.write
        try:
            self.broker.begin_write(
                write.caller,
                write.address,
                write.event,
                lambda result: begun.conclude(outcome_of(result, calls, began_at)),
            )
        except (MegaphoneError, WouldBlock):
            return NOT_HERE
        return begun

    async def _created(
        self, caller: Caller, protocols: list[str], options: ChannelOptions
    ) -> Answered:
        return whole(OK_LINE, json.created(await self.broker.create(caller, protocols, options)))

    async def _found(self, caller: Caller, addresses: list[str]) -> Answered:
        return whole(OK_LINE, json.existing(await self.broker.exists(caller, addresses)))

    async def _acknowledged(self, caller: Caller, address: str, event_id: str) -> Answered:
        return whole(
            OK_LINE, json.acknowledged(await self.broker.acknowledge(caller, address, event_id))
        )

    async def _opened(
        self,
        caller: Caller,
        address: str,
        options: ReadOptions,
        framing: Framing,
        origin: str | None,
    ) -> Answered:
        reader = await self.broker.open_read(caller, address, options)
        head = head_of_answer(framing, reader, self.origins.headers(origin))
        return Opened(head, reader, of_events(framing, options))


def outcome_of(result: str | Exception, calls: Calls, began_at: float) -> Outcome:
    """Return what to do with a write that has ended, with the id of its event or an error; count it
    if the lane answers it."""
    if isinstance(result, str):
        calls.succeeded(monotonic() - began_at)
        return with_json(CREATED_LINE, json.written(result))
    if isinstance(result, StoreUnavailable) and result.may_have_happened:
        calls.ended(result.code, monotonic() - began_at)
        return error_bytes(result)
    if isinstance(result, (MegaphoneError, WouldBlock)):
        return NOT_HERE
    calls.ended(INTERNAL, monotonic() - began_at)
    return Failed(result)


def whole(status_line: bytes, body: bytes) -> Iterator[bytes]:
    return iter((with_json(status_line, body),))


async def answered(call: Coroutine[Any, Any, Answered], calls: Calls, began_at: float) -> Answered:
    """Return what a call returns, and count the call; None if it was refused, and nothing has
    happened. Then it does not count, because aiohttp answers it.

    This is the one error that the lane answers itself: the store may have done what it was asked,
    and must not be asked again.
    """
    waits = measure()
    code = OK
    try:
        return await call
    except StoreUnavailable as error:
        code = error.code if error.may_have_happened else ""
        return iter((error_bytes(error),)) if error.may_have_happened else None
    except (MegaphoneError, WouldBlock):
        code = ""
        return None
    except CancelledError:
        code = CANCELLED
        raise
    except Exception:
        code = INTERNAL
        raise
    finally:
        if code:
            calls.ended(code, max(0.0, monotonic() - began_at - waits.seconds))


async def pieces_when_written(writing: Coroutine[Any, Any, BatchWritten]) -> Iterator[bytes]:
    """Return the answer to a batch. Raises: MegaphoneError, if it was refused as a whole."""
    return pieces_of_answer(CREATED_LINE, json.batch_written(await writing))


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
