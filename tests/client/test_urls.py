"""Which URLs a client takes, and what they mean."""

import asyncio
from base64 import b64encode

import pytest

from megaphone_client import Megaphone
from megaphone_client.publishing import Sent
from megaphone_client.state import Ask
from megaphone_client.transport import Message, Part
from megaphone_client.urls import DEFAULT, Target, parse_url


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://host:3000", Target(False, False, "host", 3000, "", None)),
        ("https://host/a/b/", Target(False, True, "host", 443, "/a/b", None)),
        ("grpc://host", Target(True, False, "host", 3001, "", None)),
        ("grpcs://[::1]:9", Target(True, True, "::1", 9, "", None)),
        ("http://me:p%40ss@host", Target(False, False, "host", 80, "", "Basic bWU6cEBzcw==")),
    ],
)
def test_urls(url: str, target: Target) -> None:
    assert parse_url(url) == target


def test_without_a_url_the_environment_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEGAPHONE_URL", raising=False)
    assert parse_url(None) == parse_url(DEFAULT)
    monkeypatch.setenv("MEGAPHONE_URL", "grpc://broker")
    assert parse_url(None).endpoint == "broker:3001"


@pytest.mark.parametrize(
    "url",
    [
        "host:3000",
        "ftp://me:secret@host",
        "http://",
        "http://me:secret@host/?a=1",
        "http://me:secret@host/#a",
        "grpc://me:secret@host/prefix",
        "http://me:secret@host:99999",
        "http://me:secret@host:x",
        f"http://me:secret@{'a' * 64}.example",
        "http://me:secret@a..b",
        "grpc://me:secret@\udcff",
        "http://me:secret@[host",
        "http://me:secret\u2100@host",
    ],
)
def test_anything_else_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="URL of a broker") as refused:
        parse_url(url)
    assert "secret" not in str(refused.value)


async def test_what_the_client_keeps_shows_no_secret() -> None:
    message = Message("secret", "s", b"secret", "secret")
    for value in (
        parse_url("http://secret:secret@host"),
        message,
        Sent(message, asyncio.get_running_loop().create_future()),
        Ask("secret", None, True, False, None, 1.0, ()),
        Part(0, [("s", "1", 0, b"secret", None)]),
    ):
        assert "secret" not in repr(value)
        assert b64encode(b"secret:secret").decode() not in repr(value)


@pytest.mark.parametrize("timeout_s", [0, -1, 55.1])
def test_times_after_which_the_broker_has_forgotten_are_refused(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="at most 55"):
        Megaphone.from_url(timeout_s=timeout_s)
