"""Server-sent events, byte by byte."""

from megaphone.model import Event
from megaphone.wire import sse

LINE = b'{"sid":"s","eid":"e1","ts":"1970-01-01T00:00:00.000000Z","body":1}\n'


def test_an_event_has_its_id_and_the_line_of_other_readers() -> None:
    assert b"".join(sse.events([Event("e1", "s", 0, b"1")])) == b"id: e1\ndata: " + LINE + b"\n"


def test_a_read_begins_with_its_cursor_and_says_if_events_are_missing() -> None:
    begin = b"retry: 500\nid: e1\n\n"
    assert sse.preamble("e1", None) == sse.preamble("e1", True) == begin
    assert sse.preamble("e1", False) == begin + b'event: gap\ndata: {"recovered":false}\n\n'
