"""Events as lines of JSON, byte by byte: existing clients depend on them."""

from megaphone.errors import NoAgentAvailable
from megaphone.model import LINE_BODY_BYTES, ChannelBegun, ChannelDone, ChannelEvents, Event, Part
from megaphone.wire import lines, sse

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


MANY: list[Part] = [
    ChannelBegun(0, "-", None),
    ChannelBegun(1, "e0", False),
    ChannelDone(2, NoAgentAvailable("none")),
    ChannelDone(3, None),
]
NOTICES = [
    b'{"channel":0,"begun":true,"position":"-"}',
    b'{"channel":1,"begun":true,"position":"e0","recovered":false}',
    b'{"channel":2,"done":true,"code":"NO_AGENT","message":"none","retryAfter":1.0}',
    b'{"channel":3,"done":true}',
]


def test_each_line_of_many_channels_names_its_channel() -> None:
    assert b"".join(lines.part_lines(MANY)).split(b"\n") == [*NOTICES, b""]
    line = b'{"channel":7,' + EVENT_LINE[1:]
    assert b"".join(lines.part_lines([ChannelEvents(7, [event(), event()])])) == line + line


def test_the_body_of_a_large_event_of_many_channels_is_not_copied() -> None:
    large = event(b'"' + b"x" * LINE_BODY_BYTES + b'"')
    before, body, after = lines.part_lines([ChannelEvents(0, [large])])
    assert body is large.body
    assert before + b"[1]" + after == b'{"channel":0,' + EVENT_LINE[1:]


def test_server_sent_events_of_many_channels_have_no_ids() -> None:
    sent = sse.many_events([*MANY, ChannelEvents(7, [event()])])
    *notices, of_event, end = b"".join(sent).split(b"\n\n")
    assert notices == [b"event: channel\ndata: " + notice for notice in NOTICES]
    assert (of_event, end) == (b'data: {"channel":7,' + EVENT_LINE[1:-1], b"")


CONTEXT = f"00-{'a' * 32}-{'b' * 16}-01"
TRACED_LINE = EVENT_LINE[:-2] + b',"traceparent":"' + CONTEXT.encode() + b'"}\n'


def traced(body: bytes = b"[1]") -> Event:
    one = event(body, awaited=2)
    one.trace = CONTEXT
    return one


def test_only_a_client_that_asks_gets_trace_contexts() -> None:
    one = traced()
    assert lines.event_lines([one]) == [EVENT_LINE]
    assert lines.traced_event_lines([one, event()]) == [TRACED_LINE, EVENT_LINE]
    assert lines.event_lines([one]) == [EVENT_LINE]


def test_many_channels_have_trace_contexts_too() -> None:
    line = b'{"channel":7,' + TRACED_LINE[1:]
    assert b"".join(lines.traced_part_lines([ChannelEvents(7, [traced()])])) == line
    sent = sse.traced_many_events([ChannelEvents(7, [traced()])])
    assert b"".join(sent) == b"data: " + line + b"\n"
    assert b"".join(sse.traced_events([traced()])) == b"id: e1\ndata: " + TRACED_LINE + b"\n"


def test_the_body_of_a_large_event_with_a_context_is_not_copied() -> None:
    large = traced(b'"' + b"x" * LINE_BODY_BYTES + b'"')
    before, body, after = lines.traced_event_lines([large])
    assert body is large.body
    assert before + b"[1]" + after == TRACED_LINE
