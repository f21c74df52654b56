"""What one node says of its channels, the other understands."""

from dataclasses import replace

import pytest

from megaphone.errors import BadRequest
from megaphone.model import (
    START,
    ChannelAdded,
    ChannelChange,
    ChannelEnded,
    Event,
    EventAdded,
    EventsForgotten,
    KeyAdded,
    KeyOf,
    Progress,
    ProgressMade,
)
from megaphone.wire import sync
from megaphone_api import sync_pb2 as pb

CHANNEL = "node.secret.1"
EVENT = Event("e1", "stream", 1_700_000_000_123_456, '{"a":"é"}'.encode())
TRACED = Event("e2", "stream", 1_700_000_000_123_456, b"1", f"00-{'a' * 32}-{'b' * 16}-01")
KEY = KeyOf("request-1", 1.25)

EVERY_NODE_KNOWS: list[ChannelChange] = [
    ChannelAdded(CHANNEL, 7),
    ChannelAdded(CHANNEL, 7, 0.5, "orders", "shop"),
    ChannelAdded(CHANNEL),
    ChannelEnded(CHANNEL),
    EventAdded(CHANNEL, EVENT, 3, KEY),
    EventAdded(CHANNEL, EVENT, 0),
    EventAdded(CHANNEL, TRACED, 1),
]
EXTENSIONS: list[ChannelChange] = [
    KeyAdded(CHANNEL, "e1", KEY),
    ProgressMade(CHANNEL, Progress("e1", "e2", has_gap=True)),
    ProgressMade(CHANNEL, Progress(START, START)),
    EventsForgotten(CHANNEL, "e1", 5),
]


def comparable(change: ChannelChange) -> object:
    """Return a change whose event is compared by its members, not by its identity."""
    if not isinstance(change, EventAdded):
        return change
    event = change.event
    members = (event.id, event.stream_id, event.timestamp_us, event.body, event.trace)
    return replace(change, event=EVENT), members


@pytest.mark.parametrize("change", EVERY_NODE_KNOWS + EXTENSIONS)
def test_a_change_arrives_as_it_was_sent(change: ChannelChange) -> None:
    [sent] = sync.requests([change], extended=True)
    received = pb.SyncRequest.FromString(sent.SerializeToString())
    assert comparable(sync.change_of(received)) == comparable(change)


def test_a_node_without_the_extensions_gets_none() -> None:
    sent = sync.requests(EXTENSIONS + EVERY_NODE_KNOWS, extended=False)
    received = [comparable(sync.change_of(one)) for one in sent]
    assert received == [comparable(change) for change in EVERY_NODE_KNOWS]


def test_an_older_node_does_not_say_what_was_sent() -> None:
    position = pb.ChannelPosition(channel_id=CHANNEL, event_id="e1")
    change = sync.change_of(pb.SyncRequest(channel_position=position))
    assert change == ProgressMade(CHANNEL, Progress("e1", START))


def test_the_age_of_a_key_is_never_negative() -> None:
    early = KeyOf("request-1", -0.5)
    [sent] = sync.requests([KeyAdded(CHANNEL, "e1", early)], extended=True)
    assert sync.change_of(sent) == KeyAdded(CHANNEL, "e1", replace(early, age_s=0.0))


@pytest.mark.parametrize(
    "message", [pb.SyncRequest(), sync.start("agent", b"key", "source"), sync.end("agent")]
)
def test_a_message_without_a_change_is_refused(message: pb.SyncRequest) -> None:
    with pytest.raises(BadRequest, match="without a sync_event"):
        sync.change_of(message)


def test_an_agent_begins_and_ends() -> None:
    begun = sync.start("agent", b"key", "source").pipe_agent_start
    assert (begun.agent_id, begun.key, begun.source_id) == ("agent", b"key", "source")
    assert sync.end("agent").pipe_agent_end.agent_id == "agent"


def test_the_channels_in_use_arrive_with_their_cursors() -> None:
    reply = sync.in_use(["a", "b"], {"a": "e1"})
    assert list(reply.channel_ids) == ["a", "b"]
    assert sync.positions(reply) == {"a": "e1"}


def test_a_proof_is_found_in_metadata() -> None:
    assert sync.proof_of([("x", "1"), (sync.PROOF_KEY, "proof")]) == "proof"
    assert sync.proof_of([("x", "1")]) is None
