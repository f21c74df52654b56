"""Messages of the gRPC face say what the model says, and are counted before they are decoded."""

from datetime import UTC, datetime

import pytest
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from megaphone.errors import ReaderBusy, WriteTimeout
from megaphone.model import (
    DEFAULT_IN_FLIGHT,
    AgentInfo,
    AgentMode,
    BatchFailure,
    BatchWritten,
    ChannelBegun,
    ChannelDone,
    ChannelEvents,
    DrainProgress,
    Event,
    NewChannel,
    NewEvent,
    Part,
    ReadOptions,
    ReadProtocol,
    WriteFailure,
)
from megaphone.wire import protobuf as wire
from megaphone.wire.protobuf import has_more_members
from megaphone_api.v1 import admin_pb2 as admin
from megaphone_api.v1 import channels_pb2 as pb

# -- Requests


def test_the_events_of_a_request() -> None:
    batch = pb.WriteBatchRequest(
        messages=[pb.WriteBatchRequest.Message(stream_id="s", body=b"1")],
    )
    assert list(wire.batch_events(batch)) == [NewEvent("s", b"1")]
    events = [
        pb.WriteRequest(producer_address="a", stream_id="s", body=b"1", request_id="r"),
        pb.WriteRequest(producer_address="a", stream_id="s", body=b"2"),
    ]
    published = wire.writes(pb.PublishRequest(events=events), str.upper)
    assert list(published) == [
        ("a", NewEvent("s", b"1", "r")),
        ("a", NewEvent("s", b"2")),
    ]


def test_the_options_of_a_read() -> None:
    assert wire.read_options(pb.ReadRequest()) == ReadOptions(in_flight=DEFAULT_IN_FLIGHT)
    request = pb.ReadRequest(
        after_event_id="e1",
        acknowledge=True,
        window=5,
        take_over=True,
        reader="r",
        returning=True,
        limit=6,
        wait_ms=0,
        heartbeat_ms=1_500,
    )
    assert wire.read_options(request) == ReadOptions(
        cursor="e1",
        acknowledge=True,
        in_flight=5,
        take_over=True,
        reader="r",
        returning=True,
        limit=6,
        wait_s=0.0,
        heartbeat_s=1.5,
    )


# -- Answers


def test_the_members_of_answers() -> None:
    channel = NewChannel("a", "producer", "consumer", (ReadProtocol.GRPC_STREAM_V1,))
    assert wire.created(channel) == pb.CreateChannelResponse(
        producer_address="producer", consumer_address="consumer", protocols=["GRPC_STREAM_V1"]
    )
    assert wire.written("e1") == pb.WriteResponse(event_id="e1")
    assert wire.existing({"a": True}) == pb.ChannelsExistResponse(channels={"a": True})
    assert wire.acknowledged(3) == pb.AcknowledgeResponse(acknowledged=3)
    assert wire.drained(DrainProgress("a", 1, 2, 3, 4, 5, done=True)) == admin.DrainResponse(
        agent="a",
        agents_moved=1,
        agents_left=2,
        agents_failed=3,
        channels_moved=4,
        channels_left=5,
        done=True,
    )


def test_an_agent_of_the_list() -> None:
    since = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    info = AgentInfo("a", AgentMode.PIPED, since, warming_up=True, channels=4)
    [agent] = wire.agents([info]).agents
    assert agent.since.ToDatetime(tzinfo=UTC) == since
    assert (agent.name, agent.warming_up, agent.channels_count) == ("a", True, 4)


@pytest.mark.parametrize("count", [0, 1, wire.MEMBERS_AT_ONCE, 2 * wire.MEMBERS_AT_ONCE + 1])
def test_the_pieces_of_a_list_are_one_message(count: int) -> None:
    addresses = [f"agent.{number}.1" for number in range(count)]
    listed = admin.ListChannelsResponse.FromString(b"".join(wire.channels(addresses)))
    assert [(one.address, one.agent) for one in listed.channels] == [
        (address, "agent") for address in addresses
    ]
    failures = [BatchFailure(address, 2, "TIMEOUT") for address in addresses]
    events = [Event(f"e{number}", "s", 0, b"1") for number in range(count)]
    written = BatchWritten(events, count // 2, {}, failures)
    answer = pb.WriteBatchResponse.FromString(b"".join(wire.batch_written(written)))
    ids = [f"e{number}" for number in range(count // 2)]
    assert list(answer.event_ids) == ids + [""] * (count - count // 2)
    assert [(one.channel, one.index, one.reason) for one in answer.failures] == [
        (address, 2, "TIMEOUT") for address in addresses
    ]


def test_a_published_event_has_its_id_or_a_reason() -> None:
    published = b"".join(wire.published(["e1", WriteFailure("TIMEOUT", "full")]))
    assert pb.PublishResponse.FromString(published) == pb.PublishResponse(
        results=[
            pb.PublishResponse.Result(event_id="e1"),
            pb.PublishResponse.Result(reason="TIMEOUT", message="full"),
        ]
    )


def test_an_event_of_a_read() -> None:
    event_bytes = wire.events([Event("e1", "s", 1_700_000_000_123_456, b"1")])
    [event] = pb.ReadResponse.FromString(event_bytes).events
    assert (event.event_id, event.stream_id, event.body) == ("e1", "s", b"1")
    assert event.timestamp.ToMicroseconds() == 1_700_000_000_123_456


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300)
EVENTS = st.builds(
    Event,
    event_id=TEXTS,
    stream_id=TEXTS,
    timestamp_us=st.integers(-(10**15), 250_000_000_000_000_000),
    body=st.binary(min_size=1) | st.integers(100, 300_000).map(bytes),
    trace=st.none() | TEXTS,
)


@given(st.lists(EVENTS, max_size=5))
def test_the_bytes_of_events_are_those_of_the_library(batch: list[Event]) -> None:
    expected = pb.ReadResponse()
    for one in batch:
        event = expected.events.add(event_id=one.id, stream_id=one.stream_id, body=one.body)
        event.timestamp.FromMicroseconds(one.timestamp_us)
    assert pb.ReadResponse.FromString(wire.events(batch)) == expected


@given(st.lists(TEXTS))
def test_the_bytes_of_results_are_those_of_the_library(ids: list[str]) -> None:
    results = [pb.PublishResponse.Result(event_id=one) for one in ids]
    expected = pb.PublishResponse(results=results).SerializeToString()
    assert b"".join(wire.published(ids)) == expected


@pytest.mark.parametrize("retry_after_s", [None, 1.5])
def test_the_details_of_an_error(retry_after_s: float | None) -> None:
    status = Status.FromString(wire.error_status(5, "NOT_FOUND", "no channel", retry_after_s))
    assert (status.code, status.message) == (5, "no channel")
    info, retry = ErrorInfo(), RetryInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == "NOT_FOUND"
    assert len(status.details) == (1 if retry_after_s is None else 2)
    if retry_after_s is not None:
        assert status.details[1].Unpack(retry)
        assert retry.retry_delay.ToMilliseconds() == 1_500


def test_the_details_of_an_error_name_the_limit() -> None:
    details = wire.error_status(8, "RATE_LIMITED", "too many", 0.25, "writes_per_s")
    status, info, retry = Status.FromString(details), ErrorInfo(), RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert dict(info.metadata) == {"limit": "writes_per_s"}
    assert retry.retry_delay.ToMilliseconds() == 250


# -- Members are counted before a message is decoded

texts = st.lists(st.sampled_from(["", "a", "\n", "\x12\n\n", "\n\x00" * 20]), max_size=12)


@given(channels=texts, bodies=texts, most=st.integers(0, 24))
def test_members_are_counted_whatever_they_hold(
    channels: list[str], bodies: list[str], most: int
) -> None:
    request = pb.WriteBatchRequest(
        channels=channels,
        messages=[pb.WriteBatchRequest.Message(body=body.encode()) for body in bodies],
        request_id="\n\n\x12",
    )
    message = request.SerializeToString()
    assert has_more_members(message, most) == (len(channels) + len(bodies) > most)


@pytest.mark.parametrize("unit", [b"\n\x00", b"\x12\x00", b"\n\x02\n\x00"])
def test_empty_members_are_members(unit: bytes) -> None:
    assert has_more_members(unit * 1_001, 1_000)
    assert not has_more_members(unit * 1_000, 1_000)


def test_a_message_without_lists_has_no_members() -> None:
    write = pb.WriteRequest(body=b"\n" * 5_000)
    assert not has_more_members(write.SerializeToString(), 1_000)


def test_the_parts_of_many_channels_are_one_message() -> None:
    parts: list[Part] = [
        ChannelBegun(0, "-", None),
        ChannelBegun(1, "e0", False),
        ChannelEvents(0, [Event("e1", "s", 0, b"1"), Event("e2", "s", 0, b"2")]),
        ChannelEvents(99, [Event("e3", "s", 0, b"3")]),
        ChannelDone(2, ReaderBusy("busy")),
        ChannelDone(3, WriteTimeout()),
        ChannelDone(4, None),
    ]
    answer = pb.ReadManyResponse.FromString(wire.parts(parts))
    assert [part.channel for part in answer.parts] == [0, 1, 0, 99, 2, 3, 4]
    begun, other, two, one, busy, late, clean = answer.parts
    assert (begun.begun.position, begun.begun.HasField("recovered")) == ("-", False)
    assert (other.begun.position, other.begun.HasField("recovered")) == ("e0", True)
    assert [event.event_id for event in (*two.events, *one.events)] == ["e1", "e2", "e3"]
    assert (busy.done.code, busy.done.message) == ("BUSY", "busy")
    assert not busy.done.HasField("retry_delay")
    assert late.done.retry_delay.seconds == 1
    assert clean.HasField("done")
    assert not clean.done.code


@given(st.lists(EVENTS, max_size=5))
def test_a_client_that_asks_gets_trace_contexts_too(batch: list[Event]) -> None:
    expected = pb.ReadResponse.FromString(wire.events(batch))
    for one, event in zip(batch, expected.events, strict=True):
        event.traceparent = one.trace or ""
    assert pb.ReadResponse.FromString(wire.traced_events(batch)) == expected
    parts: list[Part] = [ChannelBegun(0, "-", None), ChannelEvents(1, batch)]
    answer = pb.ReadManyResponse.FromString(wire.traced_parts(parts))
    assert [part.channel for part in answer.parts] == [0, 1]
    assert answer.parts[1].events == expected.events
