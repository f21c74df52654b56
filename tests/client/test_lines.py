"""Lines that come in any pieces are the events that were sent."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaphone_client.errors import ProtocolError
from megaphone_client.lines import Splitter, events_of

EVENTS = st.lists(
    st.tuples(st.text(max_size=5), st.text(max_size=5), st.text(max_size=40)), max_size=10
)


def line(stream: str, event_id: str, body: object) -> bytes:
    return json.dumps({"sid": stream, "eid": event_id, "ts": "t", "body": body}).encode() + b"\n"


@given(EVENTS, st.data())
def test_pieces_of_any_size(events: list[tuple[str, str, str]], data: st.DataObject) -> None:
    sent = b"\n".join(line(*event) for event in events)
    splitter = Splitter()
    got: list[Any] = []
    while sent:
        size = data.draw(st.integers(1, len(sent)))
        piece, sent = sent[:size], sent[size:]
        got += events_of(splitter.whole_lines(piece))
    assert [(stream, event_id, json.loads(raw)) for stream, event_id, _, raw, _ in got] == events


def test_a_cut_line_is_no_event() -> None:
    splitter = Splitter()
    assert events_of(splitter.whole_lines(line("s", "e1", 1) + b'{"sid":"s"')) == [
        ("s", "e1", "t", b"1", None)
    ]


def test_there_is_no_longest_line() -> None:
    splitter = Splitter()
    whole = line("s", "e1", "x" * 5_000_000)
    for at in range(0, len(whole) - 1, 1_000):
        assert not splitter.whole_lines(whole[at : at + 1_000].removesuffix(b"\n"))
    [(_, event_id, _, raw, _)] = events_of(splitter.whole_lines(b"\n"))
    assert (event_id, len(raw)) == ("e1", 5_000_002)


@pytest.mark.parametrize("bad", [b"secret", b'{"sid":"secret"}', b'{"sid":"\xff"}', b"[1]", b"{"])
def test_a_whole_line_that_is_no_event_is_reported_by_its_length(bad: bytes) -> None:
    lines = line("s", "e1", 1) + bad + b"\n" + line("s", "e2", 2)
    with pytest.raises(ProtocolError, match=f"a line of {len(bad)} bytes") as refused:
        events_of(lines)
    assert "secret" not in str(refused.value)
