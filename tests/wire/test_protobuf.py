"""The members of a message are counted before it is decoded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaphone.wire.protobuf import has_more_members
from megaphone_api.v1 import channels_pb2 as pb

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
