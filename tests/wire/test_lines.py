"""Events as lines of JSON, byte by byte: existing clients depend on them."""

from megaphone.model import LINE_BODY_BYTES, Event
from megaphone.wire import lines

EVENT_LINE = b'{"sid":"a\\"b","eid":"e1","ts":"2023-11-14T22:13:20.000001Z","body":[1]}\n'


def event(body: bytes = b"[1]", awaited: int = 1) -> Event:
    one = Event("e1", 'a"b', 1_700_000_000_000_001, body)
    one.awaited = awaited
    return one


def test_an_event_is_a_line() -> None:
    assert lines.event_lines([event(), event()]) == [EVENT_LINE, EVENT_LINE]


def test_a_line_is_kept_only_for_other_channels() -> None:
    alone, shared = event(), event(awaited=2)
    assert lines.event_line(alone) == lines.event_line(shared) == EVENT_LINE
    assert (alone.rendered, shared.rendered) == (None, EVENT_LINE)
    assert lines.event_line(shared) is shared.rendered


def test_the_body_of_a_large_event_is_not_copied() -> None:
    large = event(b'"' + b"x" * LINE_BODY_BYTES + b'"')
    before, body, after = lines.line_parts(large)
    assert body is large.body
    assert before + b"[1]" + after == EVENT_LINE
