"""What the lane remembers of requests: as much as it may, and only what it has read."""

import tracemalloc

from megaphone.rest.lane import KNOWN_LINES, Request

REST = b"Host: x\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n1"


def write_to(channel: str) -> bytes:
    return f"POST /write/{channel}/s HTTP/1.1\r\n".encode() + REST


def test_each_of_many_writes_is_read_rightly() -> None:
    request = Request()
    for number in [*range(3 * KNOWN_LINES), *range(3 * KNOWN_LINES), 7, 7, 8, 7]:
        assert request.read(write_to(f"a.{number}")) is None
        assert request.write == (f"a.{number}", "s")
        assert (request.method, request.body) == (b"POST", b"1")


def target(request: Request, data: bytes) -> tuple[bytes, bytes, tuple[str, str] | None]:
    assert request.read(data) is None
    return request.method, request.url, request.write


def test_a_request_has_nothing_of_the_one_before_it() -> None:
    request = Request()
    write, other = write_to("a.b"), b"POST /ack/a.b HTTP/1.1\r\n" + REST
    read = b"GET /write/a.b/s HTTP/1.1\r\nHost: x\r\n\r\n"
    for _ in range(3):
        assert target(request, write) == (b"POST", b"/write/a.b/s", ("a.b", "s"))
        assert target(request, other) == (b"POST", b"/ack/a.b", None)
        assert target(request, read)[0] == b"GET"
        assert request.body == b""


def test_many_channels_need_no_more_memory_than_some() -> None:
    request = Request()
    tracemalloc.start()
    try:
        sizes = []
        for turn in range(4):
            for number in range(KNOWN_LINES):
                request.read(write_to(f"{turn}.{number}"))
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[3] - sizes[1] < sizes[1] / 4
