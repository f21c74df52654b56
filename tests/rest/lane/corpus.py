"""The corpus: requests that are ordinary, and requests that are odd in every way, by construction.

Each function yields the exchanges of one group. They are the same in every run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from tests.rest.lane.exchange import (
    CONSUMER,
    FIRST,
    GONE_CONSUMER,
    GONE_PRODUCER,
    OTHER_CONSUMER,
    OTHER_PRODUCER,
    PRODUCER,
    SECOND,
    Exchange,
)

Lines = tuple[bytes, ...]

HOST: Lines = (b"Host: megaphone",)
JSON: Lines = (*HOST, b"Content-Type: application/json")
WRITE = b"/write/" + PRODUCER + b"/s"
READ = b"/read/" + CONSUMER
ACK = b"/ack/" + CONSUMER
BATCH_BODY = (
    b'{"channels":["%b","%b"],"messages":[{"streamId":"a","body":[1]},{"streamId":"b","body":{}}]}'
) % (PRODUCER, OTHER_PRODUCER)
ACK_BODY = b'{"eid":"%b"}' % FIRST


def request(
    method: bytes,
    target: bytes,
    lines: Sequence[bytes] = HOST,
    body: bytes | None = None,
    *,
    version: bytes = b"HTTP/1.1",
    line_end: bytes = b"\r\n",
) -> bytes:
    """Return a request. With a body it has a Content-Length."""
    head = [b" ".join((method, target, version)), *lines]
    if body is not None:
        head.append(b"Content-Length: %d" % len(body))
    return line_end.join([*head, b"", b""]) + (body or b"")


def post(target: bytes, body: bytes | None, *more: bytes) -> bytes:
    """Return a request as an ordinary client of JSON sends it."""
    return request(b"POST", target, (*JSON, *more), body)


def get(target: bytes, *more: bytes) -> bytes:
    return request(b"GET", target, (*HOST, *more))


CREATE_ONE = request(b"POST", b"/create")
WRITE_ONE = post(WRITE, b'{"a":1}')
BATCH_ONE = post(b"/write-batch", BATCH_BODY)
READ_ONE = get(READ + b"?limit=1")
ACK_ONE = post(ACK, ACK_BODY)
EXISTS_ONE = post(b"/channelsExists", b'{"channels":["%b"]}' % CONSUMER)
LIVE_ONE = get(b"/livez")
CHUNKED_ONE = (
    request(b"POST", WRITE, (*JSON, b"Transfer-Encoding: chunked")) + b"3\r\n[7]\r\n0\r\n\r\n"
)
MISSING_ONE = get(b"/nothing")
REFUSED_ONE = post(b"/write/" + GONE_PRODUCER + b"/s", b"1")
INVALID_ONE = b"GET /livez HTTP/1.1\r\nHost : x\r\n\r\n"
EXISTS = ("exists", EXISTS_ONE)
OF_LANE = {
    "create": CREATE_ONE,
    "write": WRITE_ONE,
    "batch": BATCH_ONE,
    "ack": ACK_ONE,
    "exists": EXISTS_ONE,
}
OF_AIOHTTP = {
    "live": LIVE_ONE,
    "chunked": CHUNKED_ONE,
    "missing": MISSING_ONE,
    "refused": REFUSED_ONE,
}
ENDING = {"read": READ_ONE, "invalid": INVALID_ONE}
ALL = OF_LANE | OF_AIOHTTP | ENDING


# -- Who calls

RIGHT_TOKEN = b"mgp_" + b"r" * 43
FEW_RIGHTS_TOKEN = b"mgp_" + b"f" * 43


def with_proofs() -> Iterator[Exchange]:
    """Requests with tokens: right ones, wrong ones, and headers that are odd."""
    proofs: dict[str, Lines] = {
        "no token": (),
        "the right token": (b"Authorization: Bearer " + RIGHT_TOKEN,),
        "the right token in small letters": (b"authorization: bearer " + RIGHT_TOKEN,),
        "spaces around the token": (b"Authorization:  \tBearer   %b \t" % RIGHT_TOKEN,),
        "few rights": (b"Authorization: Bearer " + FEW_RIGHTS_TOKEN,),
        "an unknown token": (b"Authorization: Bearer mgp_x",),
        "half a header": (b"Authorization: Bearer",),
        "an empty header": (b"Authorization:",),
        "another scheme": (b"Authorization: Basic " + RIGHT_TOKEN,),
        "not ASCII": (b"Authorization: Bearer \xc3\xa9\xff",),
        "two headers": (
            b"Authorization: Bearer " + RIGHT_TOKEN,
            b"Authorization: Bearer mgp_x",
        ),
        "a long header": (b"Authorization: Bearer " + b"x" * 3_000,),
    }
    for proof, lines in proofs.items():
        for name, data in ALL.items():
            head, end, body = data.partition(b"\r\n\r\n")
            yield Exchange(f"{proof} {name}", b"\r\n".join((head, *lines)) + end + body)
            if body:
                cut = len(head) + sum(len(line) + 2 for line in lines) + len(end)
                whole = b"\r\n".join((head, *lines)) + end + body
                yield Exchange(f"{proof} {name}, then its body", whole, (cut,))


# -- What the lane takes


def ordinary() -> Iterator[Exchange]:
    """Requests that the lane must answer."""
    for name, data in (*creates(), *writes(), *batches(), *reads(), *acks(), EXISTS):
        yield Exchange(f"ordinary {name}", data, by_lane=1, answers=1)


def creates() -> Iterator[tuple[str, bytes]]:
    yield "create without a body", CREATE_ONE
    yield "create of length 0", request(b"POST", b"/create", (*HOST, b"Content-Length: 0"))
    yield "create of JSON of length 0", post(b"/create", b"")
    yield "create of JSON by a page", post(b"/create", b"{}", b"Origin: https://example.com")
    for body in (
        b"{}",
        b' {"protocols": []}\n',
        b'{"protocols":["HTTP_STREAM_NDJSON_V1","Z"]}',
        b'{"ttlSecs":30,"capacity":7,"label":"orders of 5"}',
        b'{"ttlSecs":30.5}',
        b'{"ttlSecs":null,"capacity":null,"label":null}',
    ):
        yield f"create {body!r}", post(b"/create", body)


def writes() -> Iterator[tuple[str, bytes]]:
    bodies = (
        b"0",
        b"-1.5e300",
        b"null",
        b'""',
        b"{}",
        b'{"a":[1,2,{"b":"\\u00e9\\n"}]}',
        b'"\xc3\xa9\xf0\x9f\x98\x80"',
        b'\r\n[1,\r\n"a"\n]\t ',
        b"[" * 127 + b"]" * 127,
        b'"' + b"x" * 5_000 + b'"',
        b" " * 3_000 + b"1",
        b'{"a":1,"a":2}',
        b"[1" + b",1" * 400 + b"]",
    )
    for body in bodies:
        yield f"write {body[:20]!r}", post(WRITE, body)
    for stream_id in (b"0", b"a.b-c_d~e", b"...", b".a", b"x" * 1_024):
        target = b"/write/" + PRODUCER + b"/" + stream_id
        yield f"write to {stream_id[:20]!r}", post(target, b"1")
    for key in (b"k", b"a key"[:1], b"!~" * 100, b"550e8400-e29b-41d4-a716-446655440000"):
        yield f"write with the key {key[:20]!r}", post(WRITE, b"1", b"Idempotency-Key: " + key)
    for lines in harmless_lines():
        yield f"write with {lines[0][:30]!r}", post(WRITE, b"1", *lines)
    yield "write with 90 headers", post(WRITE, b"1", *(b"X-%d: 1" % one for one in range(90)))


def harmless_lines() -> Iterator[Lines]:
    """Headers that change nothing."""
    yield (b"Connection: keep-alive",)
    yield (b"connection: keep-alive",)
    yield (b"USER-AGENT: x",)
    yield (b"Accept: */*", b"Accept-Encoding: gzip, br", b"Accept-Language: de")
    yield (b"X-Forwarded-For: 1.2.3.4, 5.6.7.8", b"X-Real-IP: 1.2.3.4", b"Via: 1.1 proxy")
    yield (b"Authorization: Bearer abc.def",)
    yield (b"Cookie: a=b; c=d",)
    yield (b"Origin: https://example.com", b"Referer: https://example.com/a?b#c")
    yield (b"X-Empty:",)
    yield (b"X-Spaces:   a b   ",)
    yield (b"X-Tab:\ta\tb\t",)
    yield (b"X-Octets: \xc3\xa9\xff",)
    yield (b"X-Long: " + b"y" * 3_000,)
    yield (b"!#$%&'*+-.^_`|~09: token",)
    yield (b"Date: Sun, 06 Nov 1994 08:49:37 GMT",)
    yield (b"Range: bytes=0-1", b"If-None-Match: *", b"If-Modified-Since: x")
    for flags in (b"01", b"00", b"1"):  # sampled, not sampled, and not valid
        yield (b"traceparent: 00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-" + flags,)
    yield (b"traceparent:",)
    yield (b"Pragma: no-cache", b"Cache-Control: no-cache", b"Max-Forwards: 1")


def batches() -> Iterator[tuple[str, bytes]]:
    message = b'{"streamId":"s","body":1}'
    for named in (
        b'["%b"]' % PRODUCER,
        b'["%b","%b"]' % (PRODUCER, OTHER_PRODUCER),
        b'["%b","%b"]' % (PRODUCER, PRODUCER),
        b'["%b","%b"]' % (GONE_PRODUCER, PRODUCER),
        b'["%b"]' % CONSUMER,
        b'["x"]',
        b"[]",
    ):
        for messages in (message, b"", b",".join([message] * 3)):
            body = b'{"channels":%b,"messages":[%b]}' % (named, messages)
            yield f"batch {body!r}", post(b"/write-batch", body)
    old = BATCH_BODY.replace(b"channels", b"channelIds")
    yield "batch with channelIds", post(b"/write-batch", old)
    yield "batch with a key", post(b"/write-batch", BATCH_BODY, b"Idempotency-Key: k")
    many = b",".join(b'"x%d"' % one for one in range(1_500))
    body = b'{"channels":[%b],"messages":[%b]}' % (many, message)
    yield "batch with a long answer", post(b"/write-batch", body)


def reads() -> Iterator[tuple[str, bytes]]:
    queries = (
        b"",
        b"?wait_ms=0",
        b"?limit=1",
        b"?limit=1&wait_ms=0",
        b"?after=-&wait_ms=0",
        b"?after=%b&wait_ms=0" % FIRST,
        b"?after=%b&wait_ms=0" % SECOND,
        b"?after=unknown&wait_ms=0",
        b"?ack=explicit&wait_ms=0",
        b"?ack=explicit&window=1&wait_ms=0",
        b"?ack=none&takeover=true&wait_ms=0",
        b"?takeover=false&heartbeat_ms=100&wait_ms=0",
        b"?reader=a-B_1&returning=true&wait_ms=0",
        b"?trace=true&wait_ms=0",
    )
    kinds: tuple[Lines, ...] = (
        (),
        (b"Accept: */*",),
        (b"Accept: application/x-ndjson",),
        (b"Accept: text/event-stream",),
        (b"Accept: text/event-stream, application/x-ndjson",),
        (b"Accept: text/event-stream", b"Last-Event-ID: " + FIRST),
        (b"Last-Event-ID: " + SECOND,),
        (b"Last-Event-ID: -",),
    )
    for query, lines in product(queries, kinds):
        yield f"read {query!r} {lines}", get(READ + query, *lines)
    yield "read an empty channel", get(b"/read/" + OTHER_CONSUMER + b"?wait_ms=0")
    yield "read with length 0", get(READ + b"?wait_ms=0", b"Content-Length: 0")


def acks() -> Iterator[tuple[str, bytes]]:
    for event_id in (FIRST, SECOND, b"unknown", b"-"):
        yield f"ack {event_id!r}", post(ACK, b'{"eid":"%b"}' % event_id)
    yield "ack with spaces", post(ACK, b' { "eid" : "%b"} ' % FIRST)
    yield "ack in an empty channel", post(b"/ack/" + OTHER_CONSUMER, ACK_BODY)


# -- Every route with every method and version

ROUTES = (
    b"/create",
    WRITE,
    b"/write-batch",
    READ + b"?wait_ms=0",
    ACK,
    b"/channelsExists",
    b"/livez",
    b"/readyz",
    b"/readyz/create",
    b"/agents/node",
    b"/nothing",
    b"/",
)
METHODS = (
    b"GET",
    b"POST",
    b"HEAD",
    b"PUT",
    b"PATCH",
    b"DELETE",
    b"OPTIONS",
    b"TRACE",
    b"CONNECT",
    b"PRI",
    b"PROPFIND",
    b"M-SEARCH",
    b"QUERY",
    b"post",
    b"Post",
    b"POSTS",
    b"FOO",
    b"P0ST",
    b"",
    b"POST\x00",
    b"\xc3\xa9",
)
VERSIONS = (
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/0.9",
    b"HTTP/1.2",
    b"HTTP/2.0",
    b"HTTP/1",
    b"HTTP/1.1.1",
    b"HTTP/11",
    b"HTTP/01.1",
    b"http/1.1",
    b"HTTP/1.1 ",
    b" HTTP/1.1",
    b"HTTP/ 1.1",
    b"HTTP/1.1\t",
    b"HTTPS/1.1",
    b"ICE/1.0",
    b"RTSP/1.0",
    b"",
    b"\xff",
)


def body_for(target: bytes) -> bytes:
    if target.startswith(b"/write/"):
        return b"[1]"
    if target == ACK:
        return ACK_BODY
    if target == b"/channelsExists":
        return b'{"channels":["%b"]}' % CONSUMER
    return BATCH_BODY if target == b"/write-batch" else b"{}"


def methods() -> Iterator[Exchange]:
    for method, target in product(METHODS, ROUTES):
        name = f"{method!r} {target!r}"
        yield Exchange(f"{name} without a body", request(method, target))
        yield Exchange(f"{name} with a body", request(method, target, JSON, body_for(target)))


def versions() -> Iterator[Exchange]:
    for version, target in product(VERSIONS, ROUTES):
        method = b"GET" if target.startswith((b"/read", b"/live", b"/agents", b"/no")) else b"POST"
        body = None if method == b"GET" else body_for(target)
        data = request(method, target, JSON if body else HOST, body, version=version)
        yield Exchange(f"{version!r} {target!r}", data)
        data = request(method, target, (b"Connection: keep-alive",), body, version=version)
        yield Exchange(f"{version!r} {target!r} without Host", data)


# -- Odd headers

ODD_LINES: tuple[Lines, ...] = (
    # Host
    (b"Host: other",),
    (b"host: megaphone",),
    (b"Host:",),
    (b"Host: a b",),
    (b"Host: a/b",),
    (b"Host: [::1]:80",),
    (b"Host: \xc3\xa9",),
    # The form of a line
    (b"X",),
    (b"X y",),
    (b": value",),
    (b"X : y",),
    (b"X\t: y",),
    (b" X: y",),
    (b"\tX: y",),
    (b"X: y", b" folded"),
    (b"X: y", b"\tfolded"),
    (b"X:", b" folded"),
    (b"X(): y",),
    (b"X Y: z",),
    (b'"X": z',),
    (b"X\x00: y",),
    (b"X: \x00",),
    (b"X: a\x00b",),
    (b"X: a\x01b",),
    (b"X: a\x7fb",),
    (b"X: a\rb",),
    (b"X: a\nY: b",),
    (b"X: a\n b",),
    (b"X: a\r",),
    (b"X: a\r\r",),
    (b"X: a\x0bb\x0c",),
    (b"\xc3\xa9: y",),
    (b"X\xff: y",),
    (b"X:y:z",),
    (b"X: y", b"X: y"),
    (b"X: y", b"x: z"),
    (b"User-Agent: a", b"User-Agent: b"),
    (b"Accept: a", b"Accept: b"),
    (b"Cookie: a=b", b"Cookie: c=d"),
    (b"X: " + b"y" * 7_000,),
    (b"X: " + b"y" * 8_100,),
    (b"X: " + b"y" * 8_191,),
    (b"X: " + b"y" * 16_400,),
    (b"X" * 8_200 + b": y",),
    tuple(b"X-%d: 1" % number for number in range(98)),
    tuple(b"X-%d: 1" % number for number in range(130)),
    tuple(b"X-%d: 1" % number for number in range(600)),
    # How long the connection lasts
    (b"Connection: close",),
    (b"Connection: Close",),
    (b"Connection: Keep-Alive",),
    (b"Connection: keep-alive, close",),
    (b"Connection: close, keep-alive",),
    (b"Connection: keep-alive",),
    (b"Connection: keep-alive", b"Connection: close"),
    (b"Connection: close", b"Connection: keep-alive"),
    (b"Connection:",),
    (b"Connection: x",),
    (b"Connection: keep-alive ",),
    (b"Connection: keep-alive,",),
    (b"Connection: content-length",),
    (b"Connection: host",),
    (b"Connection: \x00",),
    (b"Keep-Alive: timeout=1, max=1",),
    (b"Proxy-Connection: close",),
    (b"Proxy-Connection: keep-alive",),
    # Other protocols
    (b"Connection: upgrade", b"Upgrade: websocket"),
    (b"Connection: Upgrade", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"),
    (b"Connection: keep-alive, upgrade", b"Upgrade: tcp"),
    (b"Connection: upgrade",),
    (b"Upgrade: websocket",),
    (b"Upgrade:",),
    (
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    ),
    (b"HTTP2-Settings: AA",),
    (b"TE: trailers",),
    (b"TE:",),
    (b"Trailer: X",),
    # Bytes before the body
    (b"Expect: 100-continue",),
    (b"expect: 100-Continue",),
    (b"Expect: 100-continue, x",),
    (b"Expect: 200-ok",),
    (b"Expect:",),
    (b"Expect: \xff",),
    (b"Expect: 100-continue", b"Expect: 100-continue"),
    # The form of the body
    (b"Content-Encoding: gzip",),
    (b"Content-Encoding: identity",),
    (b"Content-Encoding: br",),
    (b"Content-Encoding:",),
    (b"Content-Encoding: gzip, gzip",),
    (b"Content-Type: application/json",),
    (b"Content-Type: text/plain",),
    (b"Content-Disposition: attachment",),
    (b"Content-MD5: x", b"Digest: x", b"Content-Range: bytes 0-1/2"),
    # Keys and cursors
    (b"Idempotency-Key: valid",),
    (b"Idempotency-Key: two words",),
    (b"Idempotency-Key:",),
    (b"Idempotency-Key: " + b"k" * 201,),
    (b"Idempotency-Key: \xc3\xa9",),
    (b"Idempotency-Key: \xff",),
    (b"Idempotency-Key: a\tb",),
    (b"Idempotency-Key: a", b"Idempotency-Key: a"),
    (b"Idempotency-Key: a", b"Idempotency-Key: b"),
    (b"Last-Event-ID: \xc3\xa9",),
    (b"Last-Event-ID:",),
    (b"Last-Event-ID: two words",),
    (b"Last-Event-ID: " + b"e" * 201,),
    (b"Last-Event-ID: a", b"Last-Event-ID: b"),
    (b"Accept: \xff",),
    (b"Accept: TEXT/EVENT-STREAM",),
    (b"Accept: text/event-stream;q=0",),
    (b"Accept:",),
    # Others that an intermediary or a framework may know
    (b"X-HTTP-Method-Override: DELETE",),
    (b"X-Original-URL: /livez",),
    (b"Forwarded: for=1.2.3.4;host=x",),
    (b"Access-Control-Request-Method: POST", b"Origin: x"),
    (b"Sec-Fetch-Mode: cors",),
    # What a browser says of the page that makes a request
    (b"Origin: http://x",),
    (b"Origin: https://x:443",),
    (b"Origin: https://example.com",),
    (b"Origin: https://example.com", b"Origin: http://x"),
    (b"Origin: null",),
    (b"Origin:",),
    (b"Origin: \xff",),
    (b"Sec-Fetch-Site: cross-site",),
    (b"Sec-Fetch-Site: same-site", b"Origin: http://x"),
    (b"Sec-Fetch-Site: same-origin", b"Origin: https://evil.example"),
    (b"Sec-Fetch-Site: none",),
    (b"Sec-Fetch-Site: cross-site", b"Origin: https://example.com"),
    (b"Sec-Fetch-Site: \xff",),
)


def odd_headers() -> Iterator[Exchange]:
    for (name, data), lines in product(
        (OF_LANE | {"read": READ_ONE, "live": LIVE_ONE}).items(), ODD_LINES
    ):
        first, _, rest = data.partition(b"\r\n")
        before = b"\r\n".join((first, *lines, rest))
        yield Exchange(f"{name} with first {lines[0][:40]!r} {len(lines)}", before)
        behind = data.replace(b"\r\n\r\n", b"\r\n" + b"\r\n".join(lines) + b"\r\n\r\n", 1)
        yield Exchange(f"{name} with last {lines[0][:40]!r} {len(lines)}", behind)


CONTENT_TYPES = (
    b"application/json",
    b"Application/JSON",
    b"application/json; charset=utf-8",
    b"application/json;charset=latin-1",
    b"application/json;",
    b"application/json ; x=y",
    b"application/json, text/plain",
    b"application/problem+json",
    b"application/+json",
    b"application/jsonp",
    b"text/json",
    b"text/plain",
    b"application/x-www-form-urlencoded",
    b"multipart/form-data; boundary=x",
    b"",
    b" ",
    b"application / json",
    b"application/json\t",
    b"\xc3\xa9",
    b"\xff",
)


def content_types() -> Iterator[Exchange]:
    for kind, target in product(CONTENT_TYPES, (b"/create", WRITE, b"/write-batch", ACK)):
        lines = (*HOST, b"Content-Type: " + kind)
        for body in (body_for(target), b"", None):
            yield Exchange(
                f"{target!r} of {kind!r} with {body!r}", request(b"POST", target, lines, body)
            )
    for target in (READ + b"?wait_ms=0", b"/livez"):
        for body in (b"", b"{}", None):
            yield Exchange(f"GET {target!r} with {body!r}", request(b"GET", target, JSON, body))
            yield Exchange(f"GET {target!r} of {body!r}", request(b"GET", target, HOST, body))


# -- Odd lengths, and smuggling

LENGTHS: tuple[Lines, ...] = (
    (b"Content-Length: 3",),
    (b"content-length: 3",),
    (b"CONTENT-LENGTH:3",),
    (b"Content-Length:   3  ",),
    (b"Content-Length:\t3\t",),
    (b"Content-Length: 03",),
    (b"Content-Length: 003",),
    (b"Content-Length: 00",),
    (b"Content-Length: 0",),
    (b"Content-Length: 2",),
    (b"Content-Length: 4",),
    (b"Content-Length: 40",),
    (b"Content-Length: +3",),
    (b"Content-Length: -3",),
    (b"Content-Length: -0",),
    (b"Content-Length: 1_0",),
    (b"Content-Length: 3.0",),
    (b"Content-Length: 3e0",),
    (b"Content-Length: 0x3",),
    (b"Content-Length: 3 3",),
    (b"Content-Length: 3,3",),
    (b"Content-Length: 3, 3",),
    (b"Content-Length: 3, 4",),
    (b"Content-Length: 3;x",),
    (b"Content-Length:",),
    (b"Content-Length: three",),
    (b"Content-Length: \xd9\xa3",),
    (b"Content-Length: \xb3",),
    (b"Content-Length: 3\x00",),
    (b"Content-Length: \x003",),
    (b"Content-Length: 3\x0b",),
    (b"Content-Length : 3",),
    (b" Content-Length: 3",),
    (b"Content-Length: 3", b" "),
    (b"Content-Length:", b" 3"),
    (b"Content_Length: 3",),
    (b"Content-Length: 3", b"Content-Length: 3"),
    (b"Content-Length: 3", b"content-length: 3"),
    (b"Content-Length: 3", b"Content-Length: 4"),
    (b"Content-Length: 0", b"Content-Length: 3"),
    (b"Content-Length: 20000",),
    (b"Content-Length: 20001",),
    (b"Content-Length: 1048576",),
    (b"Content-Length: 1048577",),
    (b"Content-Length: 999999999",),
    (b"Content-Length: 1000000000",),
    (b"Content-Length: 4294967299",),
    (b"Content-Length: 18446744073709551615",),
    (b"Content-Length: 18446744073709551619",),
    (b"Content-Length: " + b"9" * 100,),
    (b"Transfer-Encoding: chunked",),
    (b"transfer-encoding: Chunked",),
    (b"Transfer-Encoding:chunked",),
    (b"Transfer-Encoding: \tchunked",),
    (b"Transfer-Encoding: chunked ",),
    (b"Transfer-Encoding : chunked",),
    (b" Transfer-Encoding: chunked",),
    (b"Transfer-Encoding:", b" chunked"),
    (b"Transfer-Encoding: identity",),
    (b"Transfer-Encoding: gzip",),
    (b"Transfer-Encoding: gzip, chunked",),
    (b"Transfer-Encoding: chunked, gzip",),
    (b"Transfer-Encoding: chunked, chunked",),
    (b"Transfer-Encoding: chunked, identity",),
    (b"Transfer-Encoding: identity, chunked",),
    (b"Transfer-Encoding: xchunked",),
    (b"Transfer-Encoding: chunkedx",),
    (b"Transfer-Encoding: chunked;x=y",),
    (b"Transfer-Encoding: \x0bchunked",),
    (b"Transfer-Encoding: chunked\x00",),
    (b'Transfer-Encoding: "chunked"',),
    (b"Transfer-Encoding:",),
    (b"Transfer-Encoding: \xff",),
    (b"X: y\nTransfer-Encoding: chunked",),
    (b"X: y\rTransfer-Encoding: chunked",),
    (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    (b"Transfer-Encoding: chunked", b"Transfer-Encoding: x"),
    (b"Transfer-Encoding: chunked", b"Content-Length: 3"),
    (b"Content-Length: 3", b"Transfer-Encoding: chunked"),
    (b"Content-Length: 13", b"Transfer-Encoding: identity"),
    (b"Transfer_Encoding: chunked", b"Content-Length: 3"),
    (b"Transfer-Encoding\x00: chunked", b"Content-Length: 3"),
)
SMUGGLED = request(b"POST", WRITE, (*JSON,), b'"smuggled"')
BODIES_BEHIND = {
    "a body": b"[1]",
    "chunks": b"3\r\n[1]\r\n0\r\n\r\n",
    "chunks and a request": b"3\r\n[1]\r\n0\r\n\r\n" + SMUGGLED,
    "a body and a request": b"[1]" + SMUGGLED,
    "a request": SMUGGLED,
    "an end of chunks and a request": b"0\r\n\r\n" + SMUGGLED,
}


def lengths() -> Iterator[Exchange]:
    """Requests whose end two readers may see at two places."""
    for lines, (name, behind) in product(LENGTHS, BODIES_BEHIND.items()):
        data = request(b"POST", WRITE, (*JSON, *lines)) + behind
        yield Exchange(f"write, {lines!r}, {name}", data)
    for lines, target in product(LENGTHS, (b"/create", b"/livez", READ + b"?wait_ms=0")):
        method = b"POST" if target == b"/create" else b"GET"
        for name in ("a body", "a request", "chunks and a request"):
            data = request(method, target, (*HOST, *lines)) + BODIES_BEHIND[name]
            yield Exchange(f"{target!r}, {lines!r}, {name}", data)


CHUNKS = (
    b"3\r\n[1]\r\n0\r\n\r\n",
    b"03\r\n[1]\r\n00\r\n\r\n",
    b"1\r\n[\r\n1\r\n1\r\n1\r\n]\r\n0\r\n\r\n",
    b"3;x=y\r\n[1]\r\n0;z\r\n\r\n",
    b'3;x="\r\n"\r\n[1]\r\n0\r\n\r\n',
    b"3 \r\n[1]\r\n0\r\n\r\n",
    b" 3\r\n[1]\r\n0\r\n\r\n",
    b"+3\r\n[1]\r\n0\r\n\r\n",
    b"-3\r\n[1]\r\n0\r\n\r\n",
    b"0x3\r\n[1]\r\n0\r\n\r\n",
    b"3\n[1]\n0\n\n",
    b"3\r[1]\r0\r\r",
    b"3\r\n[1]0\r\n\r\n",
    b"3\r\n[1]\r\n\r\n",
    b"4\r\n[1]\r\n0\r\n\r\n",
    b"2\r\n[1]\r\n0\r\n\r\n",
    b"\r\n[1]\r\n0\r\n\r\n",
    b"g\r\n[1]\r\n0\r\n\r\n",
    b"3\r\n[1]\r\n0\r\nX: y\r\n\r\n",
    b"3\r\n[1]\r\n0\r\nContent-Length: 5\r\n\r\n",
    b"3\r\n[1]\r\n0\r\nX : y\r\n\r\n",
    b"3\r\n[1]\r\n0\r\n",
    b"FFFFFFFFFFFFFFFF\r\n[1]",
    b"10000000000000003\r\n[1]\r\n0\r\n\r\n",
    b"3\x00\r\n[1]\r\n0\r\n\r\n",
    b"3\r\n[1]\r\n0\r\n\r\n" + b"0\r\n\r\n",
)


def chunks() -> Iterator[Exchange]:
    lines = (*JSON, b"Transfer-Encoding: chunked")
    for body, (name, behind) in product(CHUNKS, {"nothing": b"", **OF_LANE}.items()):
        data = request(b"POST", WRITE, lines) + body + behind
        yield Exchange(f"chunks {body!r} before {name}", data)


# -- Odd ends of lines


def line_ends() -> Iterator[Exchange]:
    for name, data in ALL.items():
        head, _, body = data.partition(b"\r\n\r\n")
        for end in (b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n ", b"\x00\r\n", b" \r\n", b"\x0b\r\n"):
            whole = head.replace(b"\r\n", end)
            yield Exchange(f"{name} with lines that end with {end!r}", whole + end + end + body)
            yield Exchange(f"{name} with a last line {end!r}", head + b"\r\n" + end + body)
            yield Exchange(f"{name} with headers that end with {end!r}", head + end + end + body)
            first = head.replace(b"\r\n", end, 1)
            yield Exchange(f"{name} with a first line {end!r}", first + b"\r\n\r\n" + body)
        for before in (
            b"\r\n",
            b"\r\n\r\n",
            b"\n",
            b"\r",
            b" ",
            b"\x00",
            b"\xef\xbb\xbf",
            b"\r\n\n",
        ):
            yield Exchange(f"{name} behind {before!r}", before + data)
        for behind in (
            b"\r\n",
            b"\r\n\r\n",
            b"\n",
            b"\r",
            b" ",
            b"\x00",
            b"x",
            b"\r\nX: y\r\n\r\n",
        ):
            yield Exchange(f"{name} before {behind!r}", data + behind)
            yield Exchange(f"{name} before {behind!r} later", data + behind, (len(data),))


# -- Odd targets

TARGETS = (
    b"",
    b"*",
    b"x",
    b"//",
    b"/./create",
    b"/../create",
    b"//create",
    b"/create/",
    b"/create//",
    b"/create?",
    b"/create?x=y",
    b"/create#x",
    b"/create#",
    b"/create;x",
    b"/Create",
    b"/%63reate",
    b"/create%20",
    b"/create%00",
    b"/create%",
    b"/create%zz",
    b"/create%2f",
    b"/create\t",
    b"/create\x00",
    b"/create\xc3\xa9",
    b"/create\xff",
    b"/create\x7f",
    b"/create x",
    b"create",
    b"http://megaphone/create",
    b"HTTP://megaphone/create",
    b"http://other/create",
    b"https://megaphone/create",
    b"http:///create",
    b"http://a@b/create",
    b"http://megaphone",
    b"megaphone:80",
    b"/create" + b"/" * 100,
    b"/" + b"x" * 8_000,
    b"/" + b"x" * 8_200,
    b"/" + b"x" * 70_000,
    b"/create?" + b"x" * 7_950,
    b"/write",
    b"/write/",
    b"/write//s",
    b"/write//",
    b"/write/" + PRODUCER,
    b"/write/" + PRODUCER + b"/",
    b"/write/" + PRODUCER + b"//s",
    b"/write/" + PRODUCER + b"/s/",
    b"/write/" + PRODUCER + b"/s/t",
    b"/write/" + PRODUCER + b"/.",
    b"/write/" + PRODUCER + b"/..",
    b"/write/" + PRODUCER + b"/...",
    b"/write/" + PRODUCER + b"/%2e",
    b"/write/" + PRODUCER + b"/%2e%2e",
    b"/write/" + PRODUCER + b"/a%2fb",
    b"/write/" + PRODUCER + b"/a%20b",
    b"/write/" + PRODUCER + b"/%80",
    b"/write/" + PRODUCER + b"/%c3%a9",
    b"/write/" + PRODUCER + b"/\xc3\xa9",
    b"/write/" + PRODUCER + b"/{x}",
    b"/write/" + PRODUCER + b"/a+b",
    b"/write/" + PRODUCER + b"/a:b@c!$&'()*,;=",
    b"/write/" + PRODUCER + b'/"a"',
    b"/write/" + PRODUCER + b"/a|b^c`d<e>f\\g",
    b"/write/" + PRODUCER + b"/s?x=y",
    b"/write/" + PRODUCER + b"/s?",
    b"/write/" + PRODUCER + b"/s#x",
    b"/write/" + PRODUCER + b"/" + b"x" * 1_024,
    b"/write/" + PRODUCER + b"/" + b"x" * 1_025,
    b"/write/" + PRODUCER + b"/" + b"x" * 7_000,
    b"/write/./s",
    b"/write/../s",
    b"/write/./" + PRODUCER + b"/s",
    b"/write/../write/" + PRODUCER + b"/s",
    b"/./write/" + PRODUCER + b"/s",
    b"/write/" + PRODUCER.replace(b".", b"%2e") + b"/s",
    b"/write/" + PRODUCER[:-1] + b"/s",
    b"/write/" + PRODUCER + b"x/s",
    b"/write/" + PRODUCER.upper() + b"/s",
    b"/write/" + PRODUCER.replace(b"node", b"elsewhere") + b"/s",
    b"/write/" + GONE_PRODUCER + b"/s",
    b"/write/" + CONSUMER + b"/s",
    b"/write/" + GONE_CONSUMER + b"/s",
    b"/write/x/s",
    b"/write/a.b/s",
    b"/write/a.b.c/s",
    b"http://megaphone/write/" + PRODUCER + b"/s",
    b"/WRITE/" + PRODUCER + b"/s",
    b"/write-batch",
    b"/write-batch/",
    b"/write-batch?x",
    b"/write%2dbatch",
    b"/ack/" + CONSUMER,
    b"/ack/" + CONSUMER + b"/",
    b"/ack/" + CONSUMER + b"?x=y",
    b"/ack/" + PRODUCER,
    b"/ack/" + GONE_CONSUMER,
    b"/ack/" + CONSUMER.replace(b".", b"%2E"),
    b"/ack/x",
    b"/ack/.",
    b"/ack/..",
    b"/ack/",
    b"/read/",
    b"/read/.",
    b"/read/..",
    b"/read/x",
    b"/read/" + PRODUCER,
    b"/read/" + GONE_CONSUMER,
    b"/read/" + CONSUMER + b"/",
    b"/read/" + CONSUMER + b"/x",
    b"/read/" + CONSUMER.replace(b".", b"%2e") + b"?wait_ms=0",
    b"/read/" + CONSUMER[:-1] + b"0?wait_ms=0",
    b"/read/" + CONSUMER[:-1] + b"2?wait_ms=0",
    b"/read/" + CONSUMER[:-1] + b"01?wait_ms=0",
    b"//read/" + CONSUMER,
    b"http://megaphone/read/" + CONSUMER + b"?wait_ms=0",
)


def targets() -> Iterator[Exchange]:
    for target in TARGETS:
        for body in (b"[1]", ACK_BODY, BATCH_BODY, b"{}"):
            yield Exchange(f"POST {target[:150]!r} {body[:20]!r}", post(target, body))
        yield Exchange(f"POST {target[:150]!r} alone", request(b"POST", target))
        yield Exchange(f"GET {target[:150]!r}", get(target))
        yield Exchange(f"GET {target[:150]!r} as SSE", get(target, b"Accept: text/event-stream"))


QUERIES = (
    b"",
    b"&",
    b"=",
    b"wait_ms",
    b"wait_ms=",
    b"wait_ms=0",
    b"wait_ms=0&",
    b"&wait_ms=0",
    b"wait_ms=0&&limit=1",
    b"wait_ms=0;limit=1",
    b"wait_ms=0&wait_ms=0",
    b"wait_ms=0&wait_ms=1",
    b"wait_ms=-1",
    b"wait_ms=+0",
    b"wait_ms=%30",
    b"wait_ms=0%20",
    b"wait_ms=0+",
    b"wait_ms=00",
    b"wait_ms=1_0",
    b"wait_ms=1.5",
    b"wait_ms=x",
    b"wait_ms=999999999",
    b"wait_ms=9999999999",
    b"wait_ms=\xd9\xa3",
    b"wait_ms=0==",
    b"wait_ms=0=1",
    b"wait%5fms=0",
    b"WAIT_MS=0&limit=1",
    b"wait_ms=0#x",
    b"wait_ms=0?x",
    b"wait_ms=0/..",
    b"limit=0",
    b"limit=1",
    b"limit=01",
    b"limit=-1",
    b"limit=",
    b"limit=x",
    b"limit=1000000000",
    b"limit=1&limit=2",
    b"after=",
    b"after=-",
    b"after=--",
    b"after=" + FIRST,
    b"after=%20",
    b"after=a+b",
    b"after=%",
    b"after=%zz",
    b"after=%ff",
    b"after=" + b"e" * 200,
    b"after=" + b"e" * 201,
    b"after=-&after=-",
    b"after=unknown",
    b"ack=explicit",
    b"ack=none",
    b"ack=",
    b"ack=Explicit",
    b"ack=true",
    b"ack=explicit&window=0",
    b"ack=explicit&window=1",
    b"ack=explicit&window=100000",
    b"ack=explicit&window=100001",
    b"window=0",
    b"window=1",
    b"window=x",
    b"takeover=true",
    b"takeover=false",
    b"takeover=",
    b"takeover=1",
    b"reader=a",
    b"reader=a&returning=true",
    b"returning=true",
    b"returning=1",
    b"heartbeat_ms=0",
    b"heartbeat_ms=99",
    b"heartbeat_ms=100",
    b"heartbeat_ms=x",
    b"x=y",
    b"x=y&x=z",
    b"x",
    b"x&y",
    b"a-b=c-d",
    b"__=__",
)


def queries() -> Iterator[Exchange]:
    kinds: tuple[Lines, ...] = (
        (),
        (b"Accept: text/event-stream",),
        (b"Accept: text/event-stream", b"Last-Event-ID: " + FIRST),
        (b"Last-Event-ID: unknown",),
    )
    for query, lines in product(QUERIES, kinds):
        yield Exchange(f"read ?{query!r} {lines}", get(READ + b"?" + query, *lines))


# -- Odd bodies

BODIES = (
    b"",
    b" ",
    b"\r\n",
    b"nul",
    b"nulll",
    b"null",
    b"true",
    b"True",
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"01",
    b"1.",
    b".5",
    b"1e400",
    b"-1e400",
    b"1" + b"0" * 400,
    b"1e-400",
    b"+1",
    b"--1",
    b"1 2",
    b"1,",
    b"[1,]",
    b"[,1]",
    b"[1",
    b"1]",
    b"{",
    b"{}",
    b"{}{}",
    b"{} x",
    b"{'a':1}",
    b"{a:1}",
    b'{"a"}',
    b'{"a":}',
    b'{"a":1,}',
    b'{"a":1 "b":2}',
    b'"',
    b'"a',
    b'"\\x"',
    b'"\\u12"',
    b'"\\ud800"',
    b'"\\udc00\\ud800"',
    b'"\t"',
    b'"\n"',
    b'"\x00"',
    b'"\x7f"',
    b'"\xff"',
    b'"\xc3"',
    b'"\xed\xa0\x80"',
    b'"\xc0\xaf"',
    b"\xef\xbb\xbf{}",
    b"{}\x00",
    b"\x00",
    b"/* x */ 1",
    b"[" * 128 + b"]" * 128,
    b'{"a":' * 127 + b"1" + b"}" * 127,
    b'{"a":' * 128 + b"1" + b"}" * 128,
    b"[" * 5_000 + b"]" * 5_000,
    b'"' + b"x" * 19_998 + b'"',
    b'"' + b"x" * 19_999 + b'"',
    b"[]",
    b'[""]',
    b"0",
    b'{"protocols":null}',
    b'{"protocols":"HTTP_STREAM_NDJSON_V1"}',
    b'{"protocols":[]}',
    b'{"protocols":[1]}',
    b'{"protocols":["x"]}',
    b'{"protocols":["HTTP_STREAM_NDJSON_V1"],"protocols":["x"]}',
    b'{"protocols":[%b"x"]}' % (b'"x",' * 100),
    b'{"protocols":[%b"HTTP_STREAM_NDJSON_V1"]}' % (b'"x",' * 99),
    b'{"Protocols":["x"]}',
    b'{"eid":""}',
    b'{"eid":null}',
    b'{"eid":1}',
    b'{"eid":"two words"}',
    b'{"eid":"\\u0065"}',
    b'{"eid":"\xc3\xa9"}',
    b'{"eid":"%b"}' % (b"e" * 200),
    b'{"eid":"%b"}' % (b"e" * 201),
    b'{"eid":"%b","eid":"%b"}' % (FIRST, SECOND),
    b'{"channels":["%b"]}' % PRODUCER,
    b'{"messages":[]}',
    b'{"channels":null,"messages":[]}',
    b'{"channels":null,"channelIds":["%b"],"messages":[{"streamId":"s","body":1}]}' % PRODUCER,
    b'{"channels":["%b"],"channelIds":["%b"],"messages":[{"streamId":"s","body":1}]}'
    % (PRODUCER, OTHER_PRODUCER),
    b'{"channels":[1],"messages":[]}',
    b'{"channels":{},"messages":[]}',
    b'{"channels":["%b"],"messages":[{"streamId":"s"}]}' % PRODUCER,
    b'{"channels":["%b"],"messages":[{"body":1}]}' % PRODUCER,
    b'{"channels":["%b"],"messages":[{"streamId":1,"body":1}]}' % PRODUCER,
    b'{"channels":["%b"],"messages":[{"streamId":"","body":1}]}' % PRODUCER,
    b'{"channels":["%b"],"messages":[{"streamId":"\\u0000","body":1}]}' % PRODUCER,
    b'{"channels":["%b"],"messages":[{"streamId":"\\ud800","body":1}]}' % PRODUCER,
    b'{"channels":["%b"],"messages":[{"streamId":"a/b \\u00e9","body":1}]}' % PRODUCER,
    b'{"channels":["%b"],"messages":[{"streamId":"s","body": 1 , "x":2}]}' % PRODUCER,
    b'{"channels":["%b"],"messages":[{"streamId":"s","body":\r\n[\n1]}]}' % PRODUCER,
    b'{"channels":["%b"],"messages":[{"streamId":"s","body":%b}]}'
    % (PRODUCER, b"[" * 127 + b"]" * 127),
    b'{"channels":["%b"],"messages":[{"streamId":"s","body":%b}]}'
    % (PRODUCER, b"[" * 128 + b"]" * 128),
    b'{"channels":["%b"],"messages":[{"streamId":"s","body":1e999}]}' % PRODUCER,
    b'{"channels":["%b"],"messages":[{"streamId":"s","body":"\xff"}]}' % PRODUCER,
    b'{"channels":["%b"],"messages":[{"streamId":"%b","body":1}]}' % (PRODUCER, b"x" * 1_025),
    b'{"channels":["%b"],"messages":[{"streamId":"s","body":1}]}' % (b"x" * 401),
    b'{"channels":["","%b","."],"messages":[{"streamId":"s","body":1}]}' % PRODUCER,
    BATCH_BODY + b" x",
    BATCH_BODY[:-1],
)


def bodies() -> Iterator[Exchange]:
    for body, target in product(BODIES, (b"/create", WRITE, b"/write-batch", ACK)):
        yield Exchange(f"{target!r} with {body[:80]!r}", post(target, body))
        yield Exchange(
            f"{target!r} with {body[:80]!r} later",
            data := post(target, body),
            (data.find(b"\r\n\r\n") + 4,),
        )


# -- Several requests on one connection


def pipelines() -> Iterator[Exchange]:
    """Pairs and triples, sent at once, and one after the other."""
    for pair in product(ALL.items(), repeat=2):
        yield from sequence(pair)
    few = {"write": WRITE_ONE, "batch": BATCH_ONE, "live": LIVE_ONE, "chunked": CHUNKED_ONE}
    for triple in product(few.items(), repeat=3):
        yield from sequence(triple)
    for triple in product({"create": CREATE_ONE, "ack": ACK_ONE, **ENDING}.items(), repeat=3):
        yield from sequence(triple)


def sequence(members: Sequence[tuple[str, bytes]]) -> Iterator[Exchange]:
    name = ", ".join(name for name, _ in members)
    data = b"".join(data for _, data in members)
    yield Exchange(f"at once {name}", data)
    ends = [sum(len(one) for _, one in members[:count]) for count in range(1, len(members))]
    yield Exchange(f"in turn {name}", data, tuple(ends))
    yield Exchange(f"crossed {name}", data, tuple(end - 3 for end in ends))
    yield Exchange(f"a little more {name}", data, tuple(end + 3 for end in ends))


def in_turn() -> Iterator[Exchange]:
    """Requests of the lane and of aiohttp in turn. The lane must answer its own, but none behind
    chunks, because it does not see their end."""
    for first, between, last in product(OF_LANE.items(), OF_AIOHTTP.items(), OF_LANE.items()):
        yield Exchange(
            f"the lane between: {first[0]}, {between[0]}, {last[0]}",
            first[1] + between[1] + last[1],
            (len(first[1]), len(first[1]) + len(between[1])),
            by_lane=1 if between[0] == "chunked" else 2,
        )


HALF_HEADS = {
    "half a request line": b"GET /livez?",
    "half a header": b"GET /livez HTTP/1.1\r\nHost: megaphone\r\nX: ",
    "a whole line": b"GET /livez HTTP/1.1\r\nHost: megaphone\r\n",
    "a head without its body": request(b"POST", b"/create", (*HOST, b"Content-Length: 99")),
    "half a chunk": request(b"POST", b"/create", (*HOST, b"Transfer-Encoding: chunked"))
    + b"5f\r\n",
}


def half_heads() -> Iterator[Exchange]:
    """Requests that look whole, but are the rest of another one, which began behind a request. No
    reader may take them for requests."""
    before = {"write": WRITE_ONE, "batch": BATCH_ONE} | OF_AIOHTTP
    behind = {"create": CREATE_ONE, "write": WRITE_ONE, "read": READ_ONE}
    for (first, data), (name, half), (last, rest) in product(
        before.items(), HALF_HEADS.items(), behind.items()
    ):
        end, begun = len(data), len(data) + len(half)
        for cuts in ((end, begun), (end - 1, begun), (begun,), (end + 3, begun)):
            yield Exchange(f"{first}, {name}, {last}, cut at {cuts}", data + half + rest, cuts)


def half_heads_slowly() -> Iterator[Exchange]:
    """The same, but the rest comes late."""
    for exchange in half_heads():
        if len(exchange.cuts) == 2:
            yield replace(exchange, slow_from=2)


def large() -> Iterator[Exchange]:
    """Requests whose bodies count against the budget while they arrive."""
    for size, parts in product((4_000, 12_000), (2, 10)):
        for name, data in large_requests(size):
            cuts = tuple(len(data) * part // parts for part in range(1, parts))
            for slow_from in (None, parts - 1):
                yield Exchange(f"{name} of {size} in {parts}", data, cuts, slow_from=slow_from)


def large_requests(size: int) -> Iterator[tuple[str, bytes]]:
    text = b'"%b"' % (b"x" * size)
    yield "write", post(WRITE, text)
    yield "refused", post(b"/write/" + GONE_PRODUCER + b"/s", text)
    yield "create", post(b"/create", b'{"x":%b}' % text)
    yield (
        "batch",
        post(
            b"/write-batch",
            b'{"channels":["%b"],"messages":[{"streamId":"s","body":%b}]}' % (PRODUCER, text),
        ),
    )
    yield "nothing", post(b"/nothing", text)
    yield "write and more", post(WRITE, text) + WRITE_ONE


# -- Every byte

EACH_BYTE = {
    "create": CREATE_ONE,
    "create with a body": post(b"/create", b"{}"),
    "write": WRITE_ONE,
    "write with a key": post(WRITE, b"1", b"Idempotency-Key: key"),
    "write to a channel that is gone": REFUSED_ONE,
    "write of what is not JSON": post(WRITE, b"{x}"),
    "write of text": request(b"POST", WRITE, (*HOST, b"Content-Type: text/plain"), b"text"),
    "write in chunks": CHUNKED_ONE,
    "write that closes": post(WRITE, b"1", b"Connection: close"),
    "write in HTTP/1.0": request(b"POST", WRITE, JSON, b"1", version=b"HTTP/1.0"),
    "batch": post(
        b"/write-batch",
        b'{"channels":["%b"],"messages":[{"streamId":"s","body":1}]}' % PRODUCER,
    ),
    "read": READ_ONE,
    "read as SSE": get(READ + b"?limit=1", b"Accept: text/event-stream"),
    "ack": ACK_ONE,
    "ack of what is not JSON": post(ACK, b"x"),
    "exists": EXISTS_ONE,
    "live": LIVE_ONE,
    "nothing": post(b"/nothing", b"{}"),
    "two writes": post(WRITE, b"1") + post(WRITE, b"2"),
    "live and write": LIVE_ONE + WRITE_ONE,
    "an invalid line": INVALID_ONE,
    "a length twice": request(b"POST", WRITE, (*JSON, b"Content-Length: 1"), b"1"),
}


def split(name: str, *, is_slow: bool) -> Iterator[Exchange]:
    """One request in two portions: split at each byte, or, if the second portion comes late, at
    some bytes."""
    data = EACH_BYTE[name]
    for at in range(1, len(data), 7 if is_slow else 1):
        yield Exchange(f"{name} split at {at}", data, (at,), slow_from=1 if is_slow else None)


def trickled() -> Iterator[Exchange]:
    """Requests in many portions."""
    for name, data in EACH_BYTE.items():
        for size in (7, 50):
            cuts = tuple(range(size, len(data), size))
            yield Exchange(f"{name} in portions of {size}", data, cuts)


ODD = (
    methods,
    versions,
    odd_headers,
    content_types,
    lengths,
    chunks,
    line_ends,
    targets,
    queries,
    bodies,
    pipelines,
    half_heads,
)
"""The groups of requests that are odd and come without a pause."""
