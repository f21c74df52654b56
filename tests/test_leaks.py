"""The filter over all tests finds each kind of secret, and nothing else."""

import logging

import pytest

from megaphone.core.addresses import AddressKey, ConsumerAddress
from megaphone.settings import Nodes, Settings, Webhook
from tests.support.leaks import LOGGED, leak_in
from tests.support.settings import fast_settings

SECRET = "the-node-secret-of-this-very-test"
ENDPOINT = "https://example.com/?token=of-this-very-test"
CONSUMER = ConsumerAddress("node-1", "aZ09bY18cX" * 5)


@pytest.mark.parametrize(
    "secret",
    [
        str(CONSUMER),
        f"/read/{CONSUMER}?limit=1",
        "mgp_" + "a-_Z" * 10,
        "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.c2lnbmF0dXJl",
        "-----BEGIN EC PRIVATE KEY-----",
    ],
)
def test_a_secret_is_known_by_its_form(secret: str) -> None:
    assert leak_in(f"it went to {secret}, twice") is not None


def test_a_producer_address_is_known_by_its_form() -> None:
    sealed = AddressKey(bytes(32)).seal(CONSUMER.channel_id)
    assert leak_in(f"it went to node-1.{sealed}, twice") is not None


def test_a_secret_of_the_settings_is_known() -> None:
    fast_settings(nodes=Nodes(secret=SECRET), webhooks={"a": Webhook(endpoint=ENDPOINT)})
    assert leak_in(f"nodes.secret={SECRET}") is not None
    assert leak_in(f"cannot reach {ENDPOINT}") is not None
    assert leak_in(repr(Settings(nodes=Nodes(secret=SECRET)))) is None


@pytest.mark.parametrize(
    "text",
    [
        "node-1.example.com:3000 serves",
        f"event {'e' * 23}, id {'0' * 64}, sha256 {'a' * 64}",
        "a" * 200,
        "/metrics of example.org",
    ],
)
def test_what_is_no_secret_is_not_taken_for_one(text: str) -> None:
    assert leak_in(text) is None


def test_log_records_of_every_level_and_their_exceptions_are_looked_at() -> None:
    log = logging.getLogger("megaphone.of.this.test")
    log.debug("reads %s", CONSUMER)
    try:
        raise ValueError(str(CONSUMER))
    except ValueError:
        log.info("failed", exc_info=True)
    log.warning("fine", extra={"agent": "node-1"})
    log.warning("a field", extra={"channel": str(CONSUMER)})
    assert len(LOGGED.take()) == 3
