"""Bodies are strictly JSON and travel byte for byte; ids are bounded, visible text."""

import json
import re
import string
import sys
import tracemalloc
from collections.abc import Callable, Coroutine
from typing import TypeVar

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megaphone.core.content import (
    accepted_body,
    checked_bodies,
    checked_body,
    checked_id,
    checked_key,
    checked_stream_id,
    new_event_id,
    new_event_ids,
)
from megaphone.core.pace import SLICE
from megaphone.errors import BadRequest, PayloadTooLarge

T = TypeVar("T", bytes, str)

MAX_BYTES = 1_048_576


def checked(body: bytes) -> bytes:
    return checked_body(body, MAX_BYTES)


def run(check: Coroutine[None, None, bytes]) -> tuple[bytes, int]:
    """Run a check that waits for nothing. Returns: its result, and how often it gave way."""
    turns = 0
    while True:
        try:
            check.send(None)
        except StopIteration as ended:
            return ended.value, turns
        turns += 1


def checked_in_slices(body: bytes) -> bytes:
    """Check a body behind so much white space that it is a large one."""
    padding = b" " * SLICE
    travels, turns = run(accepted_body(padding + body, MAX_BYTES + len(padding)))
    assert turns > 0
    assert travels.startswith(padding)
    return travels.removeprefix(padding)


def checked_among_others(body: bytes) -> bytes:
    """Check a body with others before and after it."""
    first, travels, last = checked_bodies([b'{"a":1}', body, b'"z"'], MAX_BYTES)
    assert (first, last) == (b'{"a":1}', b'"z"')
    return travels


CHECKS = pytest.mark.parametrize(
    "checked",
    [checked, checked_in_slices, checked_among_others],
    ids=["at once", "in slices", "among others"],
)
Check = Callable[[bytes], bytes]


def refusal(check: Callable[[T], T], value: T) -> str:
    """What the check says against the value, if anything."""
    try:
        check(value)
    except BadRequest as error:
        return str(error)
    return ""


def strictly(body: bytes) -> object:
    def refuse(constant: str) -> object:
        raise ValueError(constant)

    return json.loads(body, parse_constant=refuse)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Lone surrogates are refused, so none are made.
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(string.printable), inner),
)


@st.composite
def documents(draw: st.DrawFn) -> bytes:
    """JSON as somebody may write it, over several lines or on one."""
    text = json.dumps(
        draw(values),
        indent=draw(st.sampled_from([None, 0, 1, "\t"])),
        ensure_ascii=draw(st.booleans()),
    )
    newline = draw(st.sampled_from(["\n", "\r", "\r\n"]))
    around = st.text(" \t\r\n", max_size=3)
    return f"{draw(around)}{text}{draw(around)}".replace("\n", newline).encode()


# Bodies: what travels


VALID = [
    b"null",
    b"true",
    b"false",
    b"0",
    b"-0",
    b'""',
    b"{}",
    b"[]",
    b' {"a" : [ 1 ,2]}\t',
    b"0.1000000000000000055511151231257827021181583404541015625",
    b"123456789012345678901234567890",
    b"18446744073709551616",
    b"-9223372036854775809",
    b"1.7976931348623157e308",
    b"1E+2",
    b"1e-999",
    b"0e999",
    b"0." + b"3" * 5_000,
    b'{"b":1,"a":2}',
    b'{"a":1,"a":2}',
    b'{"":null}',
    rb'"\u00e9\/\b\f\n\r\t\"\\ \u0000 \ud83d\ude00"',
    '"é漢😀\u2028\u2029\x7f\x85"'.encode(),
    '{"schlüssel":"ü"}'.encode(),
]


@CHECKS
@pytest.mark.parametrize("body", VALID, ids=lambda body: body[:30].decode())
def test_a_valid_body_travels_byte_for_byte(checked: Check, body: bytes) -> None:
    assert checked(body) == body


@CHECKS
@pytest.mark.parametrize(
    ("body", "travels"),
    [
        (b"[1,\n2]", b"[1, 2]"),
        (b"{\r\n  \"a\":\r1\n}\n", b'{    "a": 1 } '),
        (b"\n\n1\r", b"  1 "),
        (b'[\n\t"a\\nb\\r"\n]', b'[ \t"a\\nb\\r" ]'),
    ],
)  # fmt: skip
def test_line_breaks_between_tokens_become_spaces(
    checked: Check, body: bytes, travels: bytes
) -> None:
    assert checked(body) == travels


@CHECKS
@given(documents())
@example(b'{"a": "\\n", \r\n "a": 2}')
def test_a_body_keeps_its_meaning_its_length_and_all_but_line_breaks(
    checked: Check, body: bytes
) -> None:
    travels = checked(body)
    assert json.loads(travels) == json.loads(body)
    assert travels == body.replace(b"\n", b" ").replace(b"\r", b" ")


@CHECKS
@given(documents(), st.data())
def test_whatever_is_accepted_is_strictly_json(
    checked: Check, document: bytes, data: st.DataObject
) -> None:
    position = data.draw(st.integers(0, len(document)))
    inserted = data.draw(st.binary(max_size=2) | st.sampled_from([b"NaN", b"e999", b"\n", b","]))
    removed = data.draw(st.integers(0, 2))
    damaged = document[:position] + inserted + document[position + removed :]
    try:
        travels = checked(damaged)
    except BadRequest:
        return
    assert travels == damaged.translate(bytes.maketrans(b"\r\n", b"  "))
    assert strictly(travels) == strictly(damaged)


@CHECKS
@given(st.binary())
def test_no_bytes_lead_to_another_error(checked: Check, body: bytes) -> None:
    assert refusal(checked, body).isprintable()


# Bodies: what is refused


REFUSED = [
    pytest.param(b"", id="nothing"),
    pytest.param(b" \n", id="white space only"),
    pytest.param(b"1 2", id="two values"),
    pytest.param(b"{}{}", id="two objects"),
    pytest.param(b"1\x00", id="NUL behind"),
    pytest.param(b"NaN", id="NaN"),
    pytest.param(b"[NaN]", id="NaN inside"),
    pytest.param(b"Infinity", id="Infinity"),
    pytest.param(b"-Infinity", id="-Infinity"),
    pytest.param(b"1e999", id="1e999"),
    pytest.param(b"-1e999", id="-1e999"),
    pytest.param(b'{"a":[1e400]}', id="1e400 inside"),
    pytest.param(b"1.7976931348623159e308", id="just beyond a double"),
    pytest.param(b"1" * 4_301, id="4,301 digits"),
    pytest.param(b"-" + b"1" * 10_000, id="10,000 digits"),
    pytest.param(b"[" + b"9" * 5_000 + b"]", id="5,000 digits inside"),
    pytest.param(b"01", id="leading zero"),
    pytest.param(b"-01", id="leading zero behind a sign"),
    pytest.param(b"+1", id="plus sign"),
    pytest.param(b".5", id="no integer part"),
    pytest.param(b"1.", id="no fraction"),
    pytest.param(b"1e", id="no exponent"),
    pytest.param(b"0x10", id="hexadecimal"),
    pytest.param(b"1_000", id="underscore"),
    pytest.param(b"[1,]", id="trailing comma in an array"),
    pytest.param(b'{"a":1,}', id="trailing comma in an object"),
    pytest.param(b"[,1]", id="leading comma"),
    pytest.param(b"[1 2]", id="no comma"),
    pytest.param(b"[1", id="open array"),
    pytest.param(b'{"a":', id="open object"),
    pytest.param(b'"a', id="open string"),
    pytest.param(b"[1}", id="mismatched brackets"),
    pytest.param(b"{a:1}", id="bare key"),
    pytest.param(b"{1:1}", id="number as key"),
    pytest.param(b"'a'", id="single quotes"),
    pytest.param(b"True", id="True"),
    pytest.param(b"undefined", id="undefined"),
    pytest.param(b"// no\n1", id="comment"),
    pytest.param(b"\x0c1", id="form feed"),
    pytest.param("\xa01".encode(), id="no-break space"),
    pytest.param(b"\xef\xbb\xbf1", id="byte order mark"),
    pytest.param('"a"'.encode("utf-16"), id="UTF-16"),
    pytest.param(rb'"\x41"', id="unknown escape"),
    pytest.param(rb'"\u12"', id="short escape"),
    pytest.param(rb'"\ud800"', id="lone high surrogate"),
    pytest.param(rb'"\udc00"', id="lone low surrogate"),
    pytest.param(rb'"\ud800 \udc00"', id="surrogates apart"),
    pytest.param(rb'"\ud800\ud800"', id="two high surrogates"),
    pytest.param(rb'{"\udfff":1}', id="lone surrogate in a key"),
    pytest.param(b'"\xff"', id="no UTF-8"),
    pytest.param(b'"\xe2\x82"', id="cut UTF-8"),
    pytest.param(b'"\xc0\xaf"', id="overlong UTF-8"),
    pytest.param(b'"\xe0\x80\xaf"', id="overlong UTF-8 of three"),
    pytest.param(b'"\xed\xa0\x80"', id="surrogate in UTF-8"),
    pytest.param(b'"\xf4\x90\x80\x80"', id="beyond Unicode"),
    pytest.param(b'{"\xff":1}', id="no UTF-8 in a key"),
    *(pytest.param(b'"a%cb"' % code, id=f"raw control character {code}") for code in range(0x20)),
    pytest.param(b'{"a\nb":1}', id="raw line break in a key"),
]


@CHECKS
@pytest.mark.parametrize("body", REFUSED)
def test_what_is_not_strictly_json_is_refused(checked: Check, body: bytes) -> None:
    with pytest.raises(BadRequest):
        checked(body)


LARGEST = int(sys.float_info.max)
"""The largest integer that a double holds; it has 309 digits."""


@CHECKS
@pytest.mark.parametrize("form", ["%d", "-%d", "[0,%d]", '{"a":%d}', "[\n%d\n]", '["%d0",%d]'])
def test_an_integer_that_no_double_holds_is_refused(checked: Check, form: str) -> None:
    """The parser of existing clients would end their reads at it, as it does at 1e999."""
    for allowed in LARGEST, 10**308:
        assert checked(form.replace("%d", str(allowed)).encode())
    for beyond in 2 * LARGEST, 10**309, 10**400, 10**4_000:
        with pytest.raises(BadRequest, match="out of range"):
            checked(form.replace("%d", str(beyond)).encode())


@CHECKS
@pytest.mark.parametrize(
    "form", ['"%s"', '{"%s":1}', r'"\"%s\""', r'["\\","%s"]', "0.%s", "1.%s0e5", "%se-4000"]
)
def test_as_many_digits_elsewhere_are_allowed(checked: Check, form: str) -> None:
    body = form.replace("%s", "9" * 4_000).encode()
    assert checked(body) == body


def arrays(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


def objects(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


@CHECKS
@pytest.mark.parametrize("nested", [arrays, objects])
def test_127_levels_are_allowed_and_128_are_not(
    checked: Check, nested: Callable[[int], bytes]
) -> None:
    assert checked(nested(127)) == nested(127)
    with pytest.raises(BadRequest, match="at most 127 levels"):
        checked(nested(128))


@CHECKS
@pytest.mark.parametrize("levels", [129, 1_000, 5_000, 100_000])
def test_any_depth_beyond_is_refused_alike(checked: Check, levels: int) -> None:
    with pytest.raises(BadRequest, match="at most 127 levels"):
        checked(arrays(levels))


@CHECKS
def test_mixed_levels_are_counted_together(checked: Check) -> None:
    assert checked(b'{"a":' + arrays(126) + b"}")
    with pytest.raises(BadRequest, match="levels"):
        checked(b'[1,{"a":' + arrays(126) + b"}]")


@CHECKS
def test_the_deepest_branch_counts(checked: Check) -> None:
    with pytest.raises(BadRequest, match="levels"):
        checked(b'{"a":1,"b":[0,' + arrays(127) + b',[]],"c":[]}')


@CHECKS
@pytest.mark.parametrize(
    "body",
    [b'"' + b"[" * 1_000 + b'"', b"[" + b"[]," * 1_000 + b"{}]", b'{"' + b"{" * 1_000 + b'":1}'],
    ids=["in a string", "side by side", "in a key"],
)
def test_brackets_that_are_not_nested_do_not_count(checked: Check, body: bytes) -> None:
    assert checked(body) == body


@CHECKS
def test_the_depth_of_a_repeated_key_s_first_value_counts_too(checked: Check) -> None:
    """It travels, and the parser of existing clients goes through it."""
    with pytest.raises(BadRequest, match="levels"):
        checked(b'{"a":' + arrays(127) + b',"a":1}')


@CHECKS
@pytest.mark.parametrize("filler", [rb"\"[", rb"\\", rb"]", rb"\u005b["])
def test_depth_is_not_misled_by_what_strings_hold(checked: Check, filler: bytes) -> None:
    text = b'"' + filler * 200 + b'"'
    assert checked(b"[" * 126 + b"[]," + text + b"]" * 126)
    with pytest.raises(BadRequest, match="levels"):
        checked(b"[" + text + b"," + arrays(127) + b"," + text + b"]")


def filled(value: bytes) -> bytes:
    """Return a list of as many values as find room in the largest body."""
    count = (MAX_BYTES - 2) // (len(value) + 1)
    return b"[" + b",".join([value] * count) + b"]"


HOSTILE = {
    "empty lists": b"[]",
    "deep lists": arrays(126),
    "deep objects": objects(126),
    "the largest numbers": b"1.7976931348623157e308",
    "many digits": b"9" * 300,
    "strings of brackets": b'"[{[{[{[{"',
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_while_the_worst_bodies_are_checked_others_get_their_turn(value: bytes) -> None:
    body = filled(value)
    travels, turns = run(accepted_body(body, MAX_BYTES))
    assert travels == body
    assert turns >= len(body) // SLICE - 1


def test_long_strings_are_looked_through_in_slices_too() -> None:
    body = b"[" * 127 + b'"' + rb"\"[" * 340_000 + b'"' + b"]" * 127
    travels, turns = run(accepted_body(body, MAX_BYTES))
    assert travels == body
    assert turns >= len(body) // SLICE


def test_the_check_of_a_large_body_makes_no_objects_of_it() -> None:
    body = filled(b"[]")
    tracemalloc.start()
    try:
        run(accepted_body(body, MAX_BYTES))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 4 * len(body)


@given(documents(), st.integers(0, 8))
def test_where_the_slices_of_a_body_end_makes_no_difference(document: bytes, shift: int) -> None:
    """However long the white space before it is, so that it is cut anywhere."""
    padding = b" " * (SLICE - len(document) // 8 * shift)
    deep = padding + b'{"a":' + document + b',"b":' + arrays(127) + b"}"
    with pytest.raises(BadRequest, match="levels"):
        checked_in_slices(deep)
    large = padding + b'{"a":' + document + b',"b":' + arrays(126) + b',"c":1e309}'
    with pytest.raises(BadRequest, match="out of range"):
        checked_in_slices(large)
    fits = padding + b'{"a":' + document + b',"b":' + arrays(126) + b',"c":1e308}'
    assert checked_in_slices(fits) == fits.translate(bytes.maketrans(b"\r\n", b"  "))


def test_a_body_of_the_largest_size_is_accepted_and_a_larger_one_is_not() -> None:
    assert checked_body(b'"abc"', 5) == b'"abc"'
    with pytest.raises(PayloadTooLarge, match="6 bytes; at most 5"):
        checked_body(b'"abcd"', 5)


def test_a_body_too_large_is_not_even_parsed() -> None:
    with pytest.raises(PayloadTooLarge):
        checked_body(b"no JSON", 5)


def test_the_refusal_says_what_is_wrong_and_where() -> None:
    with pytest.raises(BadRequest) as refused:
        checked(b'{"a":01}')
    assert str(refused.value) == "the body is not JSON: invalid number (byte 6)"


# Ids


@pytest.mark.parametrize("halves", [(b"[1", b"2]"), (b"[1,", b"2]"), (b"1 2", b""), (b'"a', b'b"')])
def test_two_bodies_do_not_make_up_for_each_other(halves: tuple[bytes, bytes]) -> None:
    with pytest.raises(BadRequest):
        checked_bodies([b"1", *halves], MAX_BYTES)


def test_no_bodies_are_checked_too() -> None:
    assert checked_bodies([], MAX_BYTES) == []


def test_many_event_ids_are_different() -> None:
    ids = [one for count in (0, 1, 250, 99) for one in new_event_ids(count)]
    assert len(set(ids)) == 350
    assert {len(one) for one in ids} == {23}


def test_an_event_id_is_23_letters_and_digits() -> None:
    ids = {new_event_id() for _ in range(1_000)}
    assert len(ids) == 1_000
    assert all(re.fullmatch("[A-Za-z0-9]{23}", event_id) for event_id in ids)


@pytest.mark.parametrize(
    "stream_id",
    ["a", "new message", "a/b?c#d%20", ".", "é漢😀", "\xa0", "x" * 1_024, "é" * 512, "😀" * 256],
)
def test_a_stream_id_is_returned_as_it_is(stream_id: str) -> None:
    assert checked_stream_id(stream_id) == stream_id


@pytest.mark.parametrize("stream_id", ["", "x" * 1_025, "é" * 512 + "x", "😀" * 257])
def test_a_stream_id_is_neither_empty_nor_longer_than_1024_bytes(stream_id: str) -> None:
    with pytest.raises(BadRequest, match="stream id"):
        checked_stream_id(stream_id)


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0)])
def test_a_stream_id_holds_no_control_character(code: int) -> None:
    with pytest.raises(BadRequest, match="control character"):
        checked_stream_id(f"a{chr(code)}b")


@given(st.text(st.characters()))
@example("\ud800")
def test_no_stream_id_leads_to_another_error(stream_id: str) -> None:
    assert refusal(checked_stream_id, stream_id).isprintable()


@pytest.mark.parametrize("text", ["a", "!", "~", "550e8400-e29b-41d4-a716-446655440000", "x" * 200])
def test_an_id_is_returned_as_it_is(text: str) -> None:
    assert checked_id("event id", text) == text


@pytest.mark.parametrize(
    "text", ["", "x" * 201, "a\n", "\ta", "\x00", "\x7f", "é", "\u0661", "\ud800"]
)
def test_an_id_is_1_to_200_visible_ascii_characters(text: str) -> None:
    with pytest.raises(BadRequest, match=r"^the event id must be 1 to 200 visible ASCII"):
        checked_id("event id", text)


@pytest.mark.parametrize("text", [" ", " a", "a b"])
def test_a_space_in_an_id_is_not_visible(text: str) -> None:
    with pytest.raises(BadRequest):
        checked_id("request id", text)


@pytest.mark.parametrize("text", ["a", "a 0", "~ 123456", "x" * 200 + " 7"])
def test_a_key_is_a_request_id_or_one_and_the_index_of_an_event(text: str) -> None:
    assert checked_key(text) == text


@pytest.mark.parametrize(
    "text", ["", " ", " 1", "a b", "a -1", "a 1 2", "a  1", "a \u0661", "a 1\n", "a " + "1" * 50]
)
def test_another_text_is_not_the_key_of_an_event(text: str) -> None:
    with pytest.raises(BadRequest):
        checked_key(text)
