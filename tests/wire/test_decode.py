"""Bodies that do not decode are refused in our words, and members are converted only when read."""

import pytest

from megaphone.errors import BadRequest
from megaphone.wire.decode import Converted, decode_json


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"a":"\xff"}', "not valid UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a":1}', "does not fit"),
        (b'{"a"', "not JSON"),
    ],
)
def test_a_body_is_refused_for_its_reason(body: bytes, message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        decode_json(body, object if message == "nested too deep" else dict[str, str])


def test_a_body_becomes_the_value_that_it_means() -> None:
    assert decode_json(b'{"a":"b"}', dict[str, str]) == {"a": "b"}


def test_members_are_converted_when_they_are_read() -> None:
    read: list[int] = []

    def double(number: int) -> int:
        read.append(number)
        return 2 * number

    doubled = Converted([1, 2, 3], double)
    assert len(doubled) == 3
    assert doubled[1] == 4
    assert read == [2]
    part = doubled[1:]
    assert read == [2]
    assert list(part) == [4, 6]
