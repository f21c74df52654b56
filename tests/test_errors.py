"""How an error says what a decoder found wrong."""

import msgspec

from megaphone.errors import explain


def test_explain_makes_half_a_sentence() -> None:
    assert explain(msgspec.DecodeError("JSON is malformed: Odd thing")) == "odd thing"
    assert explain(msgspec.DecodeError("Expected `int`")) == "expected `int`"
    assert explain(msgspec.DecodeError("")) == ""
