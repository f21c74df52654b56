"""Which URLs a client takes, and what they mean."""

import pytest

from megaphone_client import Megaphone
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
    ],
)
def test_anything_else_is_refused_without_repeating_it(url: str) -> None:
    with pytest.raises(ValueError, match="URL of a broker") as refused:
        parse_url(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("timeout_s", [0, -1, 55.1])
def test_times_after_which_the_broker_has_forgotten_are_refused(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="at most 55"):
        Megaphone.from_url(timeout_s=timeout_s)
