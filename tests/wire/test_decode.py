"""Bodies that do not decode are refused in our words, and members are converted only when read."""

import json
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaphone.errors import BadRequest
from megaphone.wire.decode import Converted, decode_json, unknown


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


class Inner(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    some_name: int = 0


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    inner: Inner | None = None
    many: Annotated[list[Inner], msgspec.Meta(description="many")] = []
    way: Literal["up", "down"] = "up"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            b'{"iner":{}}',
            "it has the unknown member `iner`, did you mean `inner`?"
            " allowed are `inner`, `many`, `way`",
        ),
        (b'{"x":1}', "it has the unknown member `x`; allowed are `inner`, `many`, `way`"),
        (
            b'{"inner":{"someNam":1}}',
            "it has the unknown member `someNam`, did you mean `someName`? allowed are `someName`",
        ),
        (
            b'{"many":[{},{"some_name":1}]}',
            "it has the unknown member `some_name`, did you mean `someName`?"
            " allowed are `someName`",
        ),
        (b'{"%b":1}' % (b"x" * 41), "it has an unknown member; allowed are `inner`, `many`, `way`"),
        (b'{"way":"a secret"}', "a value is none of those that are allowed - at `$.way`"),
        (b'{"way":"x - at `$.inner"}', "a value is none of those that are allowed - at `$.way`"),
        (b'{"inner":1}', "expected `object | null`, got `int` - at `$.inner`"),
    ],
)
def test_a_misfit_is_refused_with_what_is_allowed(body: bytes, message: str) -> None:
    with pytest.raises(BadRequest) as refused:
        decode_json(body, Outer)
    assert str(refused.value) == f"the body does not fit: {message}"


NO_PATH = "a` - at `$["
PARTS = ["` - at `", "$", ".inner", ".many", "[0]", "[", "]", ".x", "`", " - at ", "\\", '"']


@pytest.mark.parametrize(
    "name", [NO_PATH, "x` - at `$.inner", "x` - at `$.x", "x` - at `$.many[0]"]
)
@pytest.mark.parametrize("escaped", [False, *NO_PATH[1:]])
def test_a_name_is_not_taken_for_a_path(name: str, escaped: str | bool) -> None:
    spelt = name.replace(escaped, f"\\u{ord(escaped):04X}") if isinstance(escaped, str) else name
    for spelling in (spelt, spelt.replace("002D", "002d")):
        with pytest.raises(BadRequest) as refused:
            decode_json(b'{"%b":1}' % spelling.encode(), Outer)
        assert str(refused.value) == "the body does not fit: it has an unknown member"


def test_text_like_a_path_elsewhere_does_no_harm() -> None:
    body = b'{"many":[{"x":"a `word` - at `once`"}]}'
    with pytest.raises(BadRequest, match="it has the unknown member `x`; allowed are `someName`"):
        decode_json(body, Outer)


@given(
    st.text() | st.lists(st.sampled_from(PARTS) | st.text(max_size=3)).map("".join),
    st.sampled_from(["{%s:1}", '{"inner":{%s:1}}', '{"many":[{},{%s:1}]}']),
    st.booleans(),
)
def test_any_unknown_name_is_refused_and_leaves_no_trace(
    name: str, around: str, is_ascii: bool
) -> None:
    spelt = json.dumps(f"{name}?", ensure_ascii=is_ascii)
    try:
        body = (around % spelt).encode()
    except UnicodeEncodeError:
        return  # half a surrogate pair is no text
    with pytest.raises(BadRequest) as refused:
        decode_json(body, Outer)
    assert refused.value.__context__ is None
    assert len(str(refused.value)) < 200


def test_where_nothing_is_allowed_it_is_said() -> None:
    said = "the unknown parameter `x`; no parameter is allowed here"
    assert unknown("parameter", "x", ()) == said


def test_a_long_name_is_not_searched_for_what_was_meant() -> None:
    known = "a" * 40
    said = f"the unknown parameter `{known[1:]}`, did you mean `{known}`? allowed are `{known}`"
    assert unknown("parameter", known[1:], [known]) == said
    assert (
        unknown("parameter", known + "a", [known]) == f"an unknown parameter; allowed are `{known}`"
    )
