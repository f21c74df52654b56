"""Bodies in chunks, compressed or not, are accepted, or refused before they cost anything."""

import asyncio
import gzip
import json
import random
import zlib
from collections.abc import AsyncIterator, Callable
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaphone.app import App
from megaphone.errors import BadRequest, PayloadTooLarge
from megaphone.rest.inflation import OUTPUT_SLICE_BYTES, Inflater, inflater_for
from tests.support.faces import JSON, HttpFace, read_some
from tests.support.raw_http import Connection, Node, receive_head, request_of

BODY = json.dumps({"text": "".join(random.Random(1).choices("abcdefgh \n", k=5_000))}).encode()
TOO_LARGE = "the body is too large: at most 1048576 bytes are allowed"


def deflated(body: bytes, wbits: int) -> bytes:
    compressor = zlib.compressobj(wbits=wbits)
    return compressor.compress(body) + compressor.flush()


def zlib_form(body: bytes) -> bytes:
    return deflated(body, zlib.MAX_WBITS)


def raw_form(body: bytes) -> bytes:
    return deflated(body, -zlib.MAX_WBITS)


def two_members(body: bytes) -> bytes:
    return gzip.compress(body[:100]) + gzip.compress(body[100:])


FORMS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", gzip.compress),
    ("GZip", gzip.compress),
    ("x-gzip", two_members),
    ("deflate", zlib_form),
    ("deflate", raw_form),
]


def inflater(encoding: str) -> Inflater:
    found = inflater_for(encoding)
    assert found is not None
    return found


async def in_pieces(body: bytes, size: int = 100) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]
        await asyncio.sleep(0)


async def refusal(http: HttpFace, body: bytes, **headers: str) -> tuple[int, str]:
    """Post a batch. Returns: the status and the decoded answer."""
    url = http.url("/write-batch")
    async with http.session.post(url, data=body, headers=JSON | headers) as response:
        answer = await response.json()
        return response.status, answer.get("message", "")


# -- Accepted bodies


@pytest.mark.parametrize(("encoding", "compress"), FORMS)
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_compressed_body_is_taken_in_each_form(
    http: HttpFace, encoding: str, compress: Callable[[bytes], bytes], is_chunked: bool
) -> None:
    channel = await http.create()
    sent = compress(BODY)
    url = http.url(f"/write/{channel.producer}/s")
    headers = JSON | {"Content-Encoding": encoding}
    data = in_pieces(sent) if is_chunked else sent
    async with http.session.post(url, data=data, headers=headers) as response:
        assert response.status == 201, await response.text()
    (event,) = await read_some(http, channel.consumer, 1)
    assert event.body == BODY


async def test_a_body_that_comes_in_pieces_is_taken_whole(http: HttpFace) -> None:
    channel = await http.create()
    url = http.url(f"/write/{channel.producer}/s")
    async with http.session.post(url, data=in_pieces(BODY, 7), headers=JSON) as response:
        assert response.status == 201
    (event,) = await read_some(http, channel.consumer, 1)
    assert event.body == BODY


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
async def test_a_body_may_say_that_it_is_not_compressed(http: HttpFace, encoding: str) -> None:
    channel = await http.create()
    url = http.url(f"/write/{channel.producer}/s")
    headers = JSON | {"Content-Encoding": encoding}
    async with http.session.post(url, data=BytesIO(BODY), headers=headers) as response:
        assert response.status == 201
    (event,) = await read_some(http, channel.consumer, 1)
    assert event.body == BODY


async def test_no_body_may_have_any_encoding(http: HttpFace) -> None:
    headers = JSON | {"Content-Encoding": "gzip"}
    async with http.session.post(http.url("/create"), headers=headers) as response:
        assert response.status == 200


@pytest.mark.parametrize(("encoding", "compress"), FORMS)
@given(body=st.binary(max_size=300), repeats=st.integers(1, 900), step=st.integers(1, 5_000))
def test_compressed_bodies_are_inflated_in_short_steps(
    encoding: str, compress: Callable[[bytes], bytes], body: bytes, repeats: int, step: int
) -> None:
    body = body * repeats
    sent = compress(body)
    inflating = inflater(encoding)
    out = b""
    try:
        for start in range(0, len(sent), step):
            for piece in inflating.pieces(sent[start : start + step]):
                assert len(piece) <= OUTPUT_SLICE_BYTES
                out += piece
        inflating.finish()
    except PayloadTooLarge:
        assert len(body) > 65_536
        assert len(body) > 50 * len(sent)
        return
    assert out == body


def test_input_from_which_nothing_comes_takes_many_steps_too() -> None:
    empty_blocks = b"\x00\x00\x00\xff\xff" * 200_000
    steps = list(inflater("deflate").pieces(empty_blocks))
    assert b"".join(steps) == b""
    assert len(steps) > 50


# -- Refused bodies


async def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(app: App) -> None:
    connection = await Connection.open(Node(app.http_port, app.grpc_port))
    try:
        async with asyncio.timeout(5):
            head = JSON | {"Content-Length": "1048577"}
            await connection.send(request_of("POST", "/channelsExists", headers=head))
            answer = await receive_head(connection)
            body = await connection.receive_exactly(int(answer.headers["content-length"]))
    finally:
        connection.close()
    assert (answer.status, json.loads(body)["message"]) == (413, TOO_LARGE)
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("encoding", ["identity", "gzip", "deflate"])
async def test_a_body_that_turns_out_too_large_is_refused_at_once(app: App, encoding: str) -> None:
    """The chunks have no announced total, and some compressed ones inflate to little or nothing."""
    prefix = {
        "identity": b"",
        "gzip": gzip.compress(b"")[:10],
        "deflate": b"",
    }[encoding]
    filler = b"\x00\x00\x00\xff\xff" * 3_000  # in deflate: blocks that hold nothing
    connection = await Connection.open(Node(app.http_port, app.grpc_port))
    try:
        async with asyncio.timeout(10):
            head = JSON | {"Transfer-Encoding": "chunked", "Content-Encoding": encoding}
            await connection.send(request_of("POST", "/channelsExists", headers=head))
            for data in [prefix, *[filler] * 71]:
                await connection.send(b"%x\r\n%b\r\n" % (len(data), data) if data else b"")
            answer = await receive_head(connection)
            body = await connection.receive_exactly(int(answer.headers["content-length"]))
    finally:
        connection.close()
    assert (answer.status, json.loads(body)["message"]) == (413, TOO_LARGE)


async def test_a_body_that_inflates_to_too_much_is_refused(http: HttpFace) -> None:
    body = gzip.compress(random.Random(1).randbytes(16_384) * 65)
    assert await refusal(http, body, **{"Content-Encoding": "gzip"}) == (413, TOO_LARGE)


@pytest.mark.parametrize(("encoding", "compress"), FORMS)
async def test_a_small_body_that_inflates_to_a_large_one_is_refused(
    http: HttpFace, encoding: str, compress: Callable[[bytes], bytes]
) -> None:
    addresses = b'""' + b',""' * 340_000
    body = compress(b'{"channels":[%b],"messages":[]}' % addresses)
    assert len(body) < 2_500
    status, message = await refusal(http, body, **{"Content-Encoding": encoding})
    assert (status, message) == (
        413,
        "the body inflates to more than 100 times its size; send it as it is, or in parts that"
        " inflate to at most 65536 bytes",
    )


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "gzipé"])
async def test_an_encoding_that_is_not_known_is_named_as_the_reason(
    http: HttpFace, encoding: str
) -> None:
    assert await refusal(http, b"{}", **{"Content-Encoding": encoding}) == (
        400,
        "the Content-Encoding of the body is not supported; gzip and deflate are",
    )


@pytest.mark.parametrize(("encoding", "compress"), FORMS)
@pytest.mark.parametrize("damage", ["cut", "longer", "other"])
def test_malformed_compressed_bodies_are_refused(
    encoding: str, compress: Callable[[bytes], bytes], damage: str
) -> None:
    sent = compress(BODY)
    damaged = {"cut": sent[:-1], "longer": sent + b"x", "other": b"\xff" + sent[1:]}[damage]
    inflating = inflater(encoding)

    def inflate() -> None:
        list(inflating.pieces(damaged))
        inflating.finish()

    with pytest.raises(BadRequest, match="not encoded as its headers say"):
        inflate()
