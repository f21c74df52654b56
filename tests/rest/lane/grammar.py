"""Requests made by hypothesis from the grammar of HTTP/1.1, mostly of the form that the lane takes,
with a few faults."""

import json
from collections.abc import Callable

from hypothesis import strategies as st

from tests.rest.lane import corpus
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

TOKEN = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
PRODUCERS = st.sampled_from((PRODUCER, PRODUCER, OTHER_PRODUCER, GONE_PRODUCER, CONSUMER))
CONSUMERS = st.sampled_from((CONSUMER, CONSUMER, OTHER_CONSUMER, GONE_CONSUMER, PRODUCER))
EVENT_IDS = st.sampled_from((FIRST, SECOND, b"-", b"unknown", b""))
MOST_REQUESTS = 3
MOST_CUTS = 2
ONE_IN_TWENTY = (False,) * 19 + (True,)
ONE_IN_FOUR = (False,) * 3 + (True,)


def rarely(
    ordinary: st.SearchStrategy[bytes], odd: st.SearchStrategy[bytes]
) -> st.SearchStrategy[bytes]:
    """Return a strategy that makes something odd now and then."""
    return st.sampled_from(ONE_IN_TWENTY).flatmap(lambda is_odd: odd if is_odd else ordinary)


def encoded(alphabet: str, **sizes: int) -> st.SearchStrategy[bytes]:
    return st.text(alphabet, **sizes).map(str.encode)


def joined(*parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*parts).map(b"".join)


def constant(text: bytes) -> st.SearchStrategy[bytes]:
    return st.just(text)


# -- The parts of a head

segments = rarely(
    encoded(TOKEN.replace("%", ""), min_size=1, max_size=8),
    st.one_of(
        encoded(TOKEN + '/:@()[]{}"\\ ,;=?%', max_size=6),
        st.sampled_from((b".", b"..", b"%2e", b"%41", b"%c3%a9", b"%ff", b"\xc3\xa9", b"a%2Fb")),
    ),
)
parameters = st.one_of(
    joined(constant(b"after="), EVENT_IDS),
    joined(constant(b"limit="), st.integers(-1, 3).map(b"%d".__mod__)),
    joined(constant(b"window="), st.integers(-1, 3).map(b"%d".__mod__)),
    st.sampled_from(
        (b"ack=explicit", b"ack=none", b"takeover=true", b"takeover=false", b"wait_ms=0")
    ),
    rarely(constant(b"wait_ms=1"), encoded("abc=&%+_-.09", max_size=8)),
)
queries = st.lists(parameters, max_size=3).map(lambda some: b"?" + b"&".join(some) if some else b"")
targets = rarely(
    st.one_of(
        constant(b"/create"),
        constant(b"/write-batch"),
        joined(constant(b"/write/"), PRODUCERS, constant(b"/"), segments),
        joined(constant(b"/read/"), CONSUMERS, queries),
        joined(constant(b"/ack/"), CONSUMERS),
    ),
    st.one_of(
        st.sampled_from((*corpus.TARGETS, *corpus.ROUTES)),
        joined(constant(b"/"), segments, constant(b"/"), segments, queries),
    ),
)
versions = rarely(constant(b"HTTP/1.1"), st.sampled_from(corpus.VERSIONS))
odd_methods = rarely(st.sampled_from(corpus.METHODS), encoded(TOKEN, max_size=6))
names = rarely(
    st.sampled_from(
        (
            b"Accept",
            b"Content-Type",
            b"Idempotency-Key",
            b"Last-Event-ID",
            b"Connection",
            b"User-Agent",
            b"X-Other",
        )
    ),
    st.one_of(
        encoded(TOKEN, max_size=6),
        st.sampled_from(
            (
                b"Content-Length",
                b"Transfer-Encoding",
                b"Content-Encoding",
                b"Expect",
                b"Upgrade",
                b"TE",
                b"Trailer",
                b"Keep-Alive",
                b"Proxy-Connection",
                b"Host",
            )
        ),
    ),
)
values = rarely(
    st.one_of(
        st.sampled_from(
            (
                b"application/json",
                b"text/event-stream",
                b"application/x-ndjson",
                b"keep-alive",
                b"close",
                b"*/*",
                b"chunked",
                b"100-continue",
                b"websocket",
                b"0",
                b"3",
            )
        ),
        EVENT_IDS,
        encoded(TOKEN + ' ,;="()/', max_size=12),
    ),
    st.binary(max_size=6).map(lambda raw: raw.replace(b"\r\n", b"")),
)
spaces = rarely(constant(b" "), st.sampled_from((b"", b"\t", b"  ", b" \t ")))
names_in_any_case = st.builds(
    lambda name, change: change(name),
    names,
    st.sampled_from((bytes.lower, bytes.upper, bytes.title, bytes)),
)
colons = rarely(constant(b":"), st.sampled_from((b" :", b"", b"::", b"\t:", b":\r\n ")))
odd_lines = joined(names_in_any_case, colons, spaces, values, st.sampled_from((b"", b"", b" ")))
hosts = rarely(constant(b"Host: megaphone"), st.sampled_from((b"Host:", b"X: y", b"host: a/b")))
types = rarely(
    constant(b"Content-Type: application/json"),
    st.sampled_from(corpus.CONTENT_TYPES).map(lambda kind: b"content-type: " + kind),
)

# -- Bodies

documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
).map(lambda document: json.dumps(document).encode())
messages = st.lists(
    st.builds(
        lambda name, body: b'{"streamId":"%b","body":%b}' % (name, body), segments, documents
    ),
    max_size=3,
).map(b",".join)
batches = st.builds(
    lambda named, messages: b'{"channels":[%b],"messages":[%b]}' % (named, messages),
    st.lists(PRODUCERS.map(lambda one: b'"%b"' % one), max_size=3).map(b",".join),
    messages,
)
bodies = st.one_of(
    documents,
    batches,
    EVENT_IDS.map(lambda one: b'{"eid":"%b"}' % one),
    st.sampled_from(corpus.BODIES),
    st.binary(max_size=20),
)


def body_for(target: bytes) -> st.SearchStrategy[bytes]:
    """Return the bodies that fit a target, and, rarely, others."""
    if target == b"/write-batch":
        return rarely(batches, bodies)
    if target.startswith(b"/ack/"):
        return rarely(EVENT_IDS.map(lambda one: b'{"eid":"%b"}' % one), bodies)
    return rarely(documents, bodies)


# -- Whole requests


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Make a request that fits its target, or nearly so."""
    target = draw(targets)
    is_read = target.startswith(b"/read/")
    method = draw(rarely(constant(b"GET" if is_read else b"POST"), odd_methods))
    lines = [draw(hosts)]
    has_body = is_read == draw(st.sampled_from(ONE_IN_TWENTY))
    if has_body:
        lines.append(draw(types))
    if draw(st.sampled_from(ONE_IN_FOUR)):
        lines.append(draw(odd_lines))
    lines = draw(st.permutations(lines))
    version = draw(versions)
    if not has_body:
        return corpus.request(method, target, lines, version=version)
    body = draw(body_for(target))
    if not draw(st.sampled_from(ONE_IN_TWENTY)):
        return corpus.request(method, target, lines, body, version=version)
    framing, framed = draw(framings(body))
    return corpus.request(method, target, (*lines, *framing), version=version) + framed


def framings(body: bytes) -> st.SearchStrategy[tuple[corpus.Lines, bytes]]:
    """Make headers that say where a body ends, rightly or wrongly, with the body as it is sent."""
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return st.one_of(
        st.just(((b"Transfer-Encoding: chunked",), chunked)),
        st.sampled_from(corpus.LENGTHS).map(lambda lines: (lines, body)),
    )


def cut_out(data: bytes, at: int, count: int, instead: bytes) -> bytes:
    at %= len(data) + 1
    return data[:at] + instead + data[at + count :]


faults: st.SearchStrategy[Callable[[bytes], bytes]] = st.builds(
    lambda at, count, instead: lambda data: cut_out(data, at, count, instead),
    st.integers(0, 2_000),
    st.integers(0, 3),
    st.one_of(
        st.sampled_from((b"", b"\r\n", b"\n", b"\r", b" ", b"\x00", b":", b"\t", b"\r\n\r\n")),
        st.binary(min_size=1, max_size=2),
    ),
)


@st.composite
def exchanges(draw: st.DrawFn) -> Exchange:
    """Make one or a few requests on one connection, in a few portions, perhaps with a fault."""
    some = draw(st.lists(requests(), min_size=1, max_size=MOST_REQUESTS))
    data = b"".join(some)
    cuts = {sum(map(len, some[:count])) for count in range(1, len(some))}
    if draw(st.sampled_from(ONE_IN_FOUR)):
        cuts = draw(st.sets(st.integers(1, len(data)), max_size=MOST_CUTS))
    if draw(st.sampled_from(ONE_IN_TWENTY)):
        data = draw(faults)(data)
    return Exchange("of the grammar", data, tuple(sorted(at for at in cuts if at < len(data))))
