"""A client of a broker with TLS: whom it trusts, and by what the broker knows it."""

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from megaphone.app import App, running
from megaphone_client import ConnectionFailed, Megaphone, sync
from tests.support.certificates import Certificates
from tests.support.settings import certificates, fast_settings


@pytest.fixture
def made() -> Certificates:
    return certificates()


@pytest.fixture(params=["https", "grpcs"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def app() -> AsyncIterator[App]:
    async with running(fast_settings(tls=certificates().tls_for_known_clients)) as app:
        yield app


def url(app: App, scheme: str) -> str:
    return f"{scheme}://127.0.0.1:{app.http_port if scheme == 'https' else app.grpc_port}"


async def test_two_files_for_certificate_and_key(app: App, scheme: str, made: Certificates) -> None:
    own = (made.certificate, made.key)
    async with Megaphone.from_url(url(app, scheme), ca=made.authority, certificate=own) as client:
        channel = await client.create()
        await client.write(channel.producer, "s", 1)
        async with client.read(channel.consumer) as events:
            assert (await anext(events)).body == 1


async def test_one_file_for_both(app: App, scheme: str, made: Certificates, tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(made.certificate.read_bytes() + made.key.read_bytes())
    async with Megaphone.from_url(
        url(app, scheme), ca=str(made.authority), certificate=str(both)
    ) as client:
        assert await client.create()


async def test_the_environment_names_the_files(
    app: App, scheme: str, made: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEGAPHONE_CA", str(made.authority))
    monkeypatch.setenv("MEGAPHONE_CERTIFICATE", str(made.certificate))
    monkeypatch.setenv("MEGAPHONE_KEY", str(made.key))
    async with Megaphone.from_url(url(app, scheme)) as client:
        assert await client.create()


async def test_a_client_without_a_certificate_is_not_served(
    app: App, scheme: str, made: Certificates
) -> None:
    async with Megaphone.from_url(url(app, scheme), ca=made.authority, timeout_s=0.5) as client:
        with pytest.raises(ConnectionFailed):
            await client.create()


async def test_a_client_calls_no_broker_that_it_does_not_trust(
    app: App, scheme: str, made: Certificates
) -> None:
    own = (made.certificate, made.key)
    async with Megaphone.from_url(url(app, scheme), certificate=own, timeout_s=0.5) as client:
        with pytest.raises(ConnectionFailed):
            await client.create()


def test_the_client_without_asyncio_takes_the_same(made: Certificates) -> None:
    with pytest.raises(OSError, match="nowhere"):
        sync.Megaphone.from_url("https://localhost:1", ca="/nowhere/ca.pem")
    own = (made.certificate, made.key)
    sync.Megaphone.from_url("https://localhost:1", ca=made.authority, certificate=own).close()


def test_files_that_are_wrong_are_noticed_at_once(made: Certificates, tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    for scheme in ("https", "grpcs"):
        at = f"{scheme}://localhost:1"
        with pytest.raises(OSError, match="nowhere"):
            Megaphone.from_url(at, ca="/nowhere/ca.pem")
        with pytest.raises(ValueError, match="cannot be used"):
            Megaphone.from_url(at, ca=empty)
        with pytest.raises(ValueError, match="cannot be used"):
            Megaphone.from_url(at, ca=made.authority, certificate=(made.authority, made.key))


def test_what_is_not_clear_is_refused(made: Certificates) -> None:
    with pytest.raises(ValueError, match="are for https:// and grpcs://"):
        Megaphone.from_url("http://localhost:1", ca=made.authority)
    with pytest.raises(ValueError, match="put `ca` and `certificate` into it"):
        Megaphone.from_url(
            "https://localhost:1", ssl=ssl.create_default_context(), ca=made.authority
        )


def test_a_plain_client_does_not_mind_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MEGAPHONE_CA", "/nowhere/ca.pem")
    Megaphone.from_url("http://localhost:1")
