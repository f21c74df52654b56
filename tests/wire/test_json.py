"""The JSON of the HTTP face, member by member: existing clients depend on each of them."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from megaphone.errors import BadRequest
from megaphone.model import (
    NO_OPTIONS,
    AgentInfo,
    AgentMode,
    BatchFailure,
    BatchWritten,
    ChannelOptions,
    DrainProgress,
    Event,
    NewChannel,
    NewEvent,
    ReadOptions,
    ReadProtocol,
)
from megaphone.wire import json as wire

# -- Requests


def test_the_members_of_requests() -> None:
    assert wire.parse_create(b"") == wire.parse_create(b"{}") == ([], NO_OPTIONS)
    assert wire.parse_create(b'{"protocols":["x"]}') == (["x"], NO_OPTIONS)
    asked = b'{"ttlSecs":0.5,"capacity":7,"label":"orders"}'
    assert wire.parse_create(asked) == ([], ChannelOptions(7, 0.5, "orders"))
    assert wire.parse_create(b'{"ttlSecs":null,"capacity":null,"label":null}') == ([], NO_OPTIONS)
    assert wire.parse_exists(b'{"channels":["a","b"]}') == ["a", "b"]
    assert wire.parse_exists(b'{"channelIds":["a"]}') == ["a"]
    assert wire.parse_ack(b'{"eid":"e1"}') == "e1"
    assert wire.parse_agent_name(b'{"name":"n"}') == "n"
    assert wire.parse_pipe_agent(b'{"name":"n","target":"t"}') == ("n", "t")
    assert wire.parse_drain(b'{"target":"t"}') == "t"


@pytest.mark.parametrize("name", ["channels", "channelIds"])
def test_the_messages_of_a_batch_keep_their_bodies(name: str) -> None:
    body = b'{"%b":["a"],"messages":[{"streamId":"s","body":{"b": 1.00}}]}' % name.encode()
    channels, messages = wire.parse_batch(body)
    assert channels == ["a"]
    assert list(messages) == [NewEvent("s", b'{"b": 1.00}')]


@pytest.mark.parametrize(
    ("parse", "body"),
    [
        (wire.parse_exists, b"{}"),
        (wire.parse_batch, b'{"messages":[]}'),
        (wire.parse_ack, b'{"eid":""}'),
        (wire.parse_drain, b"{}"),
    ],
)
def test_a_request_that_lacks_a_member_is_refused(parse: Any, body: bytes) -> None:
    with pytest.raises(BadRequest, match="does not fit"):
        parse(body)


# -- Answers


def test_the_members_of_answers() -> None:
    channel = NewChannel("a", "producer", "consumer", (ReadProtocol.HTTP_STREAM_SSE_V1,))
    assert json.loads(wire.created(channel)) == {
        "channelId": "consumer",
        "producerAddress": "producer",
        "consumerAddress": "consumer",
        "agentName": "a",
        "protocols": ["HTTP_STREAM_SSE_V1"],
    }
    assert json.loads(wire.written("e1")) == {"status": "OK", "eid": "e1"}
    assert json.loads(wire.existing({"a": True})) == {"channels": {"a": True}}
    assert json.loads(wire.acknowledged(3)) == {"status": "OK", "acknowledged": 3}
    since = datetime(2026, 1, 2, tzinfo=UTC)
    info = AgentInfo("a", AgentMode.MASTER, since, warming_up=True, channels=4)
    assert json.loads(wire.agents([info])) == [
        {
            "name": "a",
            "since": "2026-01-02T00:00:00Z",
            "warmingUp": True,
            "mode": "MASTER",
            "channelsCount": 4,
        }
    ]
    assert json.loads(wire.drained(DrainProgress("a", 1, 2, 0, 3, 4))) == {
        "agent": "a",
        "agentsMoved": 1,
        "agentsLeft": 2,
        "agentsFailed": 0,
        "channelsMoved": 3,
        "channelsLeft": 4,
        "done": False,
    }
    assert json.loads(wire.error("NOT_FOUND", "no channel", 404)) == {
        "code": "NOT_FOUND",
        "message": "no channel",
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "no channel",
    }


@pytest.mark.parametrize("count", [0, 1, wire.MEMBERS_AT_ONCE, 2 * wire.MEMBERS_AT_ONCE + 1])
def test_the_pieces_of_a_list_are_one_list(count: int) -> None:
    addresses = [f"agent.{number}.1" for number in range(count)]
    pieces = list(wire.channels(addresses))
    expected = [{"address": one, "agentId": "agent"} for one in addresses]
    assert json.loads(b"".join(pieces)) == expected
    assert len(pieces) == -(-count // wire.MEMBERS_AT_ONCE) + 1
    failures = [BatchFailure(one, 0, "TIMEOUT") for one in addresses]
    events = [Event(f"e{number}", "s", 0, b"1") for number in range(count)]
    written = BatchWritten(events, count // 2, {0: "earlier"}, failures)
    ids = [f"e{number}" if number else "earlier" for number in range(count // 2)]
    assert json.loads(b"".join(wire.batch_written(written))) == {
        "failures": [{"channel": one, "index": 0, "reason": "TIMEOUT"} for one in addresses],
        "eids": ids + [None] * (count - count // 2),
    }


def test_a_read_of_many_channels_has_its_options() -> None:
    body = b"""{"channels":[{"address":"a","after":"e1"},{"address":"b"}],"ack":"explicit",
        "window":7,"takeover":true,"reader":"r","returning":true,"limit":3,"wait_ms":1500,"heartbeat_ms":200,"stream":["s","t"]}"""
    channels, options = wire.parse_read_many(body)
    assert channels == [("a", "e1"), ("b", None)]
    assert options == ReadOptions(
        acknowledge=True,
        in_flight=7,
        take_over=True,
        reader="r",
        returning=True,
        limit=3,
        wait_s=1.5,
        heartbeat_s=0.2,
        streams=frozenset(("s", "t")),
    )
    assert wire.parse_read_many(b'{"channels":[]}') == ([], ReadOptions())


@pytest.mark.parametrize("milliseconds", ["-1", "1000000000"])
def test_a_time_of_a_read_of_many_channels_has_limits(milliseconds: str) -> None:
    with pytest.raises(BadRequest, match="`wait_ms` must be a whole number from 0 to 999999999"):
        wire.parse_read_many(b'{"channels":[],"wait_ms":%b}' % milliseconds.encode())
