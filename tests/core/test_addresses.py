"""Addresses are read back as they were made, and nothing else passes for one."""

import re
import secrets
import string
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections import Counter
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from megaphone.core.addresses import (
    AddressKey,
    ConsumerAddress,
    SealedAddress,
    alphanumerics,
    is_consumer_shaped,
    is_producer_shaped,
)
from megaphone.errors import BadRequest
from megaphone.model import BatchFailure, NewChannel

KEY = AddressKey(bytes(range(32)))
CHANNEL_ID = bytes.fromhex("00112233445566778899aabbccddeeff")
SECRET = "Aa0" + "b" * 47
CONSUMER = f"node-1.{SECRET}.1"
PRODUCER = f"node_1.{KEY.seal(CHANNEL_ID)}"
BASE64URL = string.ascii_letters + string.digits + "-_"
STRANGE = ".=+/ %\n\x00é\uff11"

agents = st.text(BASE64URL, min_size=1)
channel_ids = st.binary(min_size=16, max_size=16)
texts = (
    st.text(st.characters())
    | st.from_regex(r"[A-Za-z0-9_-]*\.[A-Za-z0-9]{49,51}\.[0-9a-fA-F]{0,3}")
    | st.from_regex(r"[A-Za-z0-9_-]*\.[A-Za-z0-9_-]{58,60}=?")
)


def opened(producer_address: str, key: AddressKey = KEY) -> tuple[str, bytes]:
    """What a node makes of a producer address whose agent has this key."""
    sealed = SealedAddress.parse(producer_address)
    return sealed.agent, key.open(sealed.sealed)


def refusal(parse: Callable[[str], object], text: str) -> str:
    """What is said against a text, if anything."""
    try:
        parse(text)
    except BadRequest as error:
        return str(error)
    return ""


# Consumer addresses


def test_a_minted_consumer_address_is_read_back_as_it_was() -> None:
    minted = ConsumerAddress.mint("node-1")
    assert ConsumerAddress.parse(str(minted)) == minted
    assert re.fullmatch(r"node-1\.[A-Za-z0-9]{50}\.1", str(minted))


def test_no_two_minted_addresses_are_alike() -> None:
    assert len({ConsumerAddress.mint("a").secret for _ in range(1_000)}) == 1_000


def test_a_consumer_address_has_three_parts() -> None:
    assert ConsumerAddress.parse(CONSUMER) == ConsumerAddress("node-1", SECRET, "1")


def test_the_channel_id_is_the_md5_of_the_secret() -> None:
    address = ConsumerAddress("a", "a" * 50)
    assert address.channel_id == bytes.fromhex("6eb6a030bcce166534b95bc2ab45d9cf")


def test_the_channel_id_depends_on_the_secret_only() -> None:
    ids = {ConsumerAddress(agent, SECRET, bits).channel_id for agent in "ab" for bits in "12"}
    assert len(ids) == 1


@pytest.mark.parametrize("features", ["0", "1", "9", "a", "f", "10", "1f0"])
def test_features_are_lower_case_hex(features: str) -> None:
    text = f"a.{SECRET}.{features}"
    assert str(ConsumerAddress.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        SECRET,
        f"a.{SECRET}",
        f"a.{SECRET}.",
        f".{SECRET}.1",
        f"a.{SECRET[1:]}.1",
        f"a.{SECRET}x.1",
        f"a.{SECRET[1:]}-.1",
        f"a.{SECRET[1:]}é.1",
        f"a.{SECRET[1:]}\u0661.1",
        f"a.{SECRET}.A",
        f"a.{SECRET}.g",
        f"a.{SECRET}.01",
        f"a.{SECRET}.00",
        f"a.{SECRET}.-1",
        f"a.{SECRET}.1.1",
        f"a.b.{SECRET}.1",
        f"a b.{SECRET}.1",
        f"é.{SECRET}.1",
        f" a.{SECRET}.1",
        f"a.{SECRET}.1 ",
        f"a.{SECRET}.1\n",
        f"a.{SECRET}.1\x00",
    ],
)
def test_a_malformed_consumer_address_is_refused(text: str) -> None:
    assert not is_consumer_shaped(text)
    with pytest.raises(BadRequest, match="not an address"):
        ConsumerAddress.parse(text)


def test_a_producer_address_cannot_read() -> None:
    with pytest.raises(BadRequest, match="cannot read: use the channel's consumer address"):
        ConsumerAddress.parse(PRODUCER)


# Producer addresses


@given(agents, channel_ids)
def test_a_sealed_channel_id_is_opened_as_it_was(agent: str, channel_id: bytes) -> None:
    assert opened(f"{agent}.{KEY.seal(channel_id)}") == (agent, channel_id)


def test_a_seal_is_nonce_then_aes_gcm_then_tag_in_base64url() -> None:
    sealed = KEY.seal(CHANNEL_ID)
    assert re.fullmatch("[A-Za-z0-9_-]{59}", sealed)
    raw = urlsafe_b64decode(sealed + "=")
    assert len(raw) == 12 + 16 + 16
    assert AESGCM(KEY.secret).decrypt(raw[:12], raw[12:], None) == CHANNEL_ID


def test_a_seal_made_elsewhere_with_the_same_key_is_opened() -> None:
    nonce = b"\xff" * 12
    raw = nonce + AESGCM(bytes(range(32))).encrypt(nonce, CHANNEL_ID, None)
    assert KEY.open(urlsafe_b64encode(raw).decode().rstrip("=")) == CHANNEL_ID


def test_no_two_seals_of_one_channel_are_alike() -> None:
    assert len({KEY.seal(CHANNEL_ID)[:16] for _ in range(1_000)}) == 1_000


def test_another_key_does_not_open_a_seal() -> None:
    with pytest.raises(BadRequest):
        opened(PRODUCER, AddressKey(bytes(32)))


def test_every_change_of_one_character_is_refused_or_names_another_agent() -> None:
    agent, channel_id = opened(PRODUCER)
    for position, old in enumerate(PRODUCER):
        for new in set(BASE64URL + STRANGE) - {old}:
            changed = PRODUCER[:position] + new + PRODUCER[position + 1 :]
            try:
                other, same_id = opened(changed)
            except BadRequest:
                continue
            assert position < len(agent)
            assert other == changed.partition(".")[0] != agent
            assert same_id == channel_id


@pytest.mark.parametrize("cut", range(1, 60))
def test_a_shortened_producer_address_is_refused(cut: int) -> None:
    with pytest.raises(BadRequest):
        opened(PRODUCER[:-cut])


@given(st.text(BASE64URL + STRANGE, min_size=1, max_size=4), st.integers(7, len(PRODUCER)))
def test_a_lengthened_producer_address_is_refused(more: str, position: int) -> None:
    with pytest.raises(BadRequest):
        opened(PRODUCER[:position] + more + PRODUCER[position:])


def test_a_seal_has_one_spelling() -> None:
    """Its last character has two idle bits: of four characters that decode alike one is valid."""
    alphabet = string.ascii_uppercase + string.ascii_lowercase + string.digits + "-_"
    first = alphabet.index(PRODUCER[-1])
    assert first % 4 == 0
    for index in range(first + 1, first + 4):
        other = PRODUCER[:-1] + alphabet[index]
        same_bytes = urlsafe_b64decode(other.partition(".")[2] + "=")
        assert same_bytes == urlsafe_b64decode(PRODUCER.partition(".")[2] + "=")
        assert not is_producer_shaped(other)
        with pytest.raises(BadRequest):
            opened(other)


def test_a_consumer_address_cannot_write() -> None:
    with pytest.raises(BadRequest, match="cannot write: use the channel's producer address"):
        SealedAddress.parse(CONSUMER)


@pytest.mark.parametrize(
    "text",
    ["", ".", f".{PRODUCER}", PRODUCER + "=", PRODUCER + "\n"],
    ids=["empty", "dot", "dot before", "padding after", "line break after"],
)
def test_a_malformed_producer_address_is_refused(text: str) -> None:
    assert not is_producer_shaped(text)
    with pytest.raises(BadRequest, match="not an address"):
        SealedAddress.parse(text)


# Any text


@given(texts)
def test_no_text_leads_to_another_error(text: str) -> None:
    for parse in ConsumerAddress.parse, opened:
        assert refusal(parse, text).isprintable()


@given(texts)
def test_no_text_is_an_address_of_both_kinds(text: str) -> None:
    assert not (is_consumer_shaped(text) and is_producer_shaped(text))


@given(agents, st.text(BASE64URL, min_size=58, max_size=58), st.sampled_from("AEIMQUYcgkosw048"))
def test_a_well_formed_seal_that_nobody_made_is_refused(agent: str, most: str, last: str) -> None:
    text = f"{agent}.{most}{last}"
    assert is_producer_shaped(text)
    with pytest.raises(BadRequest, match="not an address"):
        opened(text)


@given(st.from_regex(r"[A-Za-z0-9_-]+\.[A-Za-z0-9]{50}\.(0|[1-9a-f][0-9a-f]*)", fullmatch=True))
def test_a_consumer_address_that_is_read_is_the_whole_text(text: str) -> None:
    assert str(ConsumerAddress.parse(text)) == text


# Keys


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_a_key_has_32_bytes(size: int) -> None:
    with pytest.raises(BadRequest, match=f"32 bytes, not {size}"):
        AddressKey(bytes(size))


def test_random_keys_differ() -> None:
    keys = [AddressKey.random() for _ in range(10)]
    assert len({key.secret for key in keys}) == 10
    assert {len(key.secret) for key in keys} == {32}


def test_a_key_is_rebuilt_from_its_secret() -> None:
    key = AddressKey.random()
    assert AddressKey(key.secret).open(key.seal(CHANNEL_ID)) == CHANNEL_ID


@given(st.text(BASE64URL + STRANGE) | st.text(BASE64URL, min_size=57, max_size=61))
def test_a_key_opens_nothing_that_nobody_sealed(sealed: str) -> None:
    with pytest.raises(BadRequest, match="not an address"):
        KEY.open(sealed)


def test_a_key_gives_the_same_answer_every_time() -> None:
    sealed, foreign = KEY.seal(CHANNEL_ID), AddressKey.random().seal(CHANNEL_ID)
    for _ in range(2):
        assert KEY.open(sealed) == CHANNEL_ID
        with pytest.raises(BadRequest):
            KEY.open(foreign)


# Random text


def test_random_text_is_letters_and_digits_each_as_likely_as_any_other() -> None:
    text = alphanumerics(4 * 62, lambda count: bytes(range(256)))
    assert Counter(text) == dict.fromkeys(string.ascii_letters + string.digits, 4)


def test_random_text_has_its_length_however_many_bytes_are_of_no_use() -> None:
    source = iter([b"\xff" * 10, b"\x00\xf8\x01", b"\x02" * 10])
    assert alphanumerics(5, lambda count: next(source)) == "abccc"


@pytest.mark.parametrize("length", [0, 1, 23, 50, 1_000])
def test_random_text_is_as_long_as_asked_for(length: int) -> None:
    assert re.fullmatch(rf"[A-Za-z0-9]{{{length}}}", alphanumerics(length, secrets.token_bytes))


# Secrets


@pytest.mark.parametrize(
    "value",
    [
        ConsumerAddress.parse(CONSUMER),
        SealedAddress.parse(PRODUCER),
        NewChannel("node-1", PRODUCER, CONSUMER, ()),
        BatchFailure(PRODUCER, 0, "TIMEOUT"),
        BatchFailure(CONSUMER, 0, "TIMEOUT"),
        KEY,
    ],
    ids=lambda value: type(value).__name__,
)
def test_no_secret_shows_in_a_repr(value: object) -> None:
    shown = repr(value)
    assert SECRET not in shown
    assert PRODUCER.partition(".")[2] not in shown
    assert repr(KEY.secret) not in shown
    assert KEY.secret.hex() not in shown


@pytest.mark.parametrize(
    "text",
    [CONSUMER + "0x", PRODUCER[:-1] + "B", CONSUMER, PRODUCER],
    ids=["consumer, longer", "producer, altered", "consumer", "producer"],
)
def test_no_error_repeats_the_text_it_refuses(text: str) -> None:
    another_key = AddressKey(bytes(32))
    for parse in ConsumerAddress.parse, lambda text: opened(text, another_key):
        said = refusal(parse, text)
        assert text not in said
        assert text.split(".")[1] not in said
