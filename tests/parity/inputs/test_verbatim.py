"""Proves that a body comes out as it went in, byte for byte, whichever face wrote and read it.

Only raw line breaks between tokens change: they become spaces, since events are lines on the wire.
"""

import json

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from megaphone.model import NewEvent
from tests.support.faces import Face, GrpcFace, HttpFace, read_some, write_request

pytestmark = pytest.mark.timeout(30)

BODIES = [
    *(b"null", b"true", b"false", b"0", b'""', b"[]", b"{}"),
    # Numbers keep all their digits and their spelling.
    *(b"9223372036854775807", b"-9223372036854775808", b"18446744073709551615"),
    *(b"18446744073709551617", b"9" * 300, b"-" + b"1" * 300, b"0." + b"3" * 300),
    *(b"1", b"1.0", b"1.00", b"-0", b"-0.0", b"1e2", b"1E+2", b"100", b"1e-999"),
    *(b"0.1000000000000000055", b"1.7976931348623157e308", b"5e-324", b"123456789012345678.9"),
    # Objects keep the order of their keys, and repeated ones.
    *(b'{"b":1,"a":2,"":3}', b'{"a":1,"a":2,"a":{"a":3}}'),
    # Strings keep their escapes.
    *(rb'"\u0041"', rb'"\/"', b'"/"', rb'"\ud83d\ude00"', rb'"\uD83D\uDE00"', rb'"\u0000\u001f"'),
    *(rb'"\n\r\t\b\f\"\\"', rb'"\u000a"', rb'"\u2028\u2029"', rb'{"\u0061":1,"a":2}'),
    *('"\u2028\u2029\x7f\x85\ufeff"'.encode(), '"é \N{SNOWMAN} \N{GRINNING FACE}"'.encode()),
    # Values keep the white space between their tokens.
    *(b'{ "a" :\t[ 1 , 2 ]  }', b"[1,\t 2]"),
    # What looks like the end of an event is none.
    *(rb'"\"}"', rb'{"sid":"x","body":{"body":"\",\"body\":"}}', b'"' + b"x" * 70_000 + b'"'),
    b"[" * 127 + b"]" * 127,
]
LINE_BREAKS = [
    (b'{\n  "a": 1,\r\n  "b": [\n  ]\n}', b'{   "a": 1,    "b": [   ] }'),
    (b"\n\r\n1\n", b"   1 "),
    (b'["\\n",\n"\\r\\n"]', b'["\\n", "\\r\\n"]'),
    ('["\u2028",\r"é"]'.encode(), '["\u2028", "é"]'.encode()),
]
STREAM_IDS = [
    *("a", "A-z_0.9~", "a b", " ", "a/b", "/", "//", "a%2Fb", "%", "%25", "?q=1#f", "+", "&;=:@"),
    *(
        "{",
        "{a}",
        "}{",
        '"',
        "\\",
        '","eid":"',
        "'",
        "<>",
        "[]",
        ".a",
        "a..",
        "é",
        "日本",
        "\U0001f600",
    ),
    *("\u2028", "\ufeff", "\xa0", "e\u0301", "\ufffd", "\uffff", "x" * 1024, "é" * 512),
]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**300), 10**300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)
spellings = st.fixed_dictionaries(
    {"ensure_ascii": st.booleans(), "indent": st.sampled_from([None, 0, 1, "\t"])}
)
few_examples = settings(
    max_examples=25,
    derandomize=True,
    database=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,  # one broker for all examples
        HealthCheck.too_slow,
    ],
)


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
async def test_body_is_not_touched(writer: Face, reader: Face, body: bytes) -> None:
    assert await passed_on(writer, reader, body) == body


@pytest.mark.parametrize("outer", [b" %b", b"%b ", b"\t %b\t"])
async def test_white_space_around_a_body_is_kept(writer: Face, reader: Face, outer: bytes) -> None:
    body = outer % b'{"a": 1}'
    assert await passed_on(writer, reader, body) == body


@pytest.mark.parametrize(("body", "expected"), LINE_BREAKS, ids=range(len(LINE_BREAKS)))
async def test_line_breaks_between_tokens_become_spaces(
    writer: Face, reader: Face, body: bytes, expected: bytes
) -> None:
    assert await passed_on(writer, reader, body) == expected


async def test_bodies_of_a_batch_are_not_touched(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    messages = [NewEvent("s", body) for body in BODIES]
    assert await writer.write_batch([channel.producer], messages) == []
    events = await read_some(reader, channel.consumer, len(BODIES))
    assert [event.body for event in events] == BODIES


async def test_line_breaks_in_bodies_of_a_batch_become_spaces(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    messages = [NewEvent("s", body) for body, _ in LINE_BREAKS]
    assert await writer.write_batch([channel.producer], messages) == []
    events = await read_some(reader, channel.consumer, len(LINE_BREAKS))
    # In the JSON of a batch, white space around a body belongs to the batch.
    assert [event.body.strip() for event in events] == [line.strip() for _, line in LINE_BREAKS]


async def test_published_bodies_are_not_touched(grpc: GrpcFace, reader: Face) -> None:
    channel = await grpc.create()
    (answer,) = await grpc.publish([write_request(channel.producer, "s", one) for one in BODIES])
    assert all(result.event_id for result in answer.results)
    events = await read_some(reader, channel.consumer, len(BODIES))
    assert [event.body for event in events] == BODIES


@few_examples
@given(value=json_values, spelling=spellings)
async def test_any_json_comes_out_as_it_went_in(
    http: HttpFace, grpc: GrpcFace, value: object, spelling: dict[str, object]
) -> None:
    body = json.dumps(value, **spelling).encode()  # type: ignore[arg-type]
    for writer in (http, grpc):
        for reader in (http, grpc):
            came_out = await passed_on(writer, reader, body)
            assert came_out == body.replace(b"\n", b" ")
            assert json.loads(came_out) == value


@pytest.mark.parametrize("stream_id", STREAM_IDS, ids=range(len(STREAM_IDS)))
async def test_stream_id_is_not_touched(writer: Face, reader: Face, stream_id: str) -> None:
    channel = await writer.create()
    await writer.write(channel.producer, stream_id, b"1")
    (event,) = await read_some(reader, channel.consumer, 1)
    assert event.stream_id == stream_id


async def test_stream_ids_of_a_batch_are_not_touched(writer: Face, reader: Face) -> None:
    channel = await writer.create()
    messages = [NewEvent(stream_id, b"1") for stream_id in STREAM_IDS]
    assert await writer.write_batch([channel.producer], messages) == []
    events = await read_some(reader, channel.consumer, len(STREAM_IDS))
    assert [event.stream_id for event in events] == STREAM_IDS


@few_examples
@example(stream_id="..")
@example(stream_id=".")
@given(stream_id=st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=40))
async def test_any_text_can_be_a_stream_id(http: HttpFace, grpc: GrpcFace, stream_id: str) -> None:
    for writer in (http, grpc):
        for reader in (http, grpc):
            channel = await writer.create()
            await writer.write(channel.producer, stream_id, b"1")
            (event,) = await read_some(reader, channel.consumer, 1)
            assert event.stream_id == stream_id


async def passed_on(writer: Face, reader: Face, body: bytes) -> bytes:
    """Return the body of an event that one face has written and another read."""
    channel = await writer.create()
    await writer.write(channel.producer, "s", body)
    (event,) = await read_some(reader, channel.consumer, 1)
    return event.body
