"""The client sends a token, and goes on with another one when it expires."""

import asyncio
import time

import pytest

from megaphone.access.tokens import digest_of
from megaphone.app import App
from megaphone.model import Action
from megaphone.settings import Auth, Issuer, Token
from megaphone_client import (
    Megaphone,
    PermissionDenied,
    TokenExpired,
    Unauthenticated,
)
from megaphone_client.sync import Megaphone as SyncMegaphone
from tests.client.conftest import url_of
from tests.support.issuer import AUDIENCE, SECRET, claims, secret, token

STATIC, NO_CREATOR = "mgp_" + "s" * 43, "mgp_" + "n" * 43
AUTH = Auth(
    require=tuple(Action),
    tokens={
        "shop": Token(sha256=digest_of(STATIC), actions=tuple(Action)),
        "other": Token(sha256=digest_of(NO_CREATOR), actions=(Action.READ,)),
    },
    issuers={"main": Issuer(issuer="main", audience=AUDIENCE, secret=SECRET, leeway_secs=0)},
)
pytestmark = [pytest.mark.settings(auth=AUTH), pytest.mark.timeout(60)]


def jwt(lasts_s: float) -> str:
    scope = " ".join(f"megaphone:{action}" for action in Action)
    made = claims(iss="main", scope=scope, exp=time.time() + lasts_s)
    return token(made, secret(), "HS256")


async def test_a_token_goes_with_every_call(app: App, protocol: str) -> None:
    async with Megaphone.from_url(url_of(app, protocol), token=STATIC) as megaphone:
        channel = await megaphone.create()
        event_id = await megaphone.write(channel.producer, "s", 1)
        assert await megaphone.write_batch([channel.producer], [("s", 2)]) == []
        async with megaphone.publisher() as publisher:
            await publisher.send(channel.producer, "s", 3)
        async with megaphone.read(channel.consumer) as reader:
            got = [(await anext(reader)).body for _ in range(3)]
        assert got == [1, 2, 3]
        async with megaphone.read_many([channel.consumer]) as reader:
            await megaphone.write(channel.producer, "s", 4)
            assert (await anext(reader)).body == 4
        assert await megaphone.ack(channel.consumer, event_id) == 0
        assert await megaphone.exists([channel.consumer]) == {channel.consumer: True}
        assert await megaphone.dispose(channel.producer)
        assert not await megaphone.dispose(channel.producer)


async def test_a_refusal_has_the_class_of_its_code(app: App, protocol: str) -> None:
    for wrong, error in {
        None: Unauthenticated,
        "mgp_x": Unauthenticated,
        NO_CREATOR: PermissionDenied,
        jwt(-10): TokenExpired,
    }.items():
        async with Megaphone.from_url(url_of(app, protocol), token=wrong) as megaphone:
            with pytest.raises(error) as raised:
                await megaphone.create()
        assert str(wrong) not in str(raised.value)
    assert issubclass(TokenExpired, Unauthenticated)


async def test_the_environment_may_have_the_token(
    app: App, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEGAPHONE_TOKEN", f"{STATIC}\n")
    async with Megaphone.from_url(url_of(app, protocol)) as megaphone:
        await megaphone.create()
    async with Megaphone.from_url(url_of(app, protocol), token=NO_CREATOR) as megaphone:
        with pytest.raises(PermissionDenied):
            await megaphone.create()
    headers = {"authorization": f"Bearer {NO_CREATOR}"}
    async with Megaphone.from_url(url_of(app, protocol), headers=headers) as megaphone:
        with pytest.raises(PermissionDenied):
            await megaphone.create()


@pytest.mark.parametrize("wrong", ["", "two words", "line\nbreak", "é"])
async def test_what_is_no_token_is_refused_without_being_shown(wrong: str) -> None:
    with pytest.raises(ValueError, match="a token has only ASCII characters") as raised:
        Megaphone.from_url("http://localhost:1", token=wrong)
    assert not wrong or wrong not in str(raised.value)


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
async def test_a_read_goes_on_with_the_next_token(app: App, protocol: str, many: bool) -> None:
    made = []

    async def next_token() -> str:
        made.append(jwt(1.5))
        return made[-1]

    async with (
        Megaphone.from_url(url_of(app, protocol), token=next_token) as reading,
        Megaphone.from_url(url_of(app, protocol), token=STATIC) as writing,
    ):
        channel = await writing.create()
        read = reading.read_many([channel.consumer]) if many else reading.read(channel.consumer)
        async with asyncio.timeout(30), read as reader:
            for number in range(4):
                await writing.write(channel.producer, "s", number)
                assert (await anext(reader)).body == number
                await asyncio.sleep(1.0)
    assert len(made) > 2


async def test_a_read_with_a_token_that_expires_for_good_fails(app: App, protocol: str) -> None:
    async with Megaphone.from_url(url_of(app, protocol), token=STATIC) as writing:
        channel = await writing.create()
    async with (
        Megaphone.from_url(url_of(app, protocol), token=jwt(1.5)) as megaphone,
        asyncio.timeout(30),
        megaphone.read(channel.consumer) as reader,
    ):
        with pytest.raises(TokenExpired):
            await anext(reader)


async def test_without_asyncio(app: App, protocol: str) -> None:
    def use() -> None:
        with SyncMegaphone.from_url(url_of(app, protocol), token=lambda: STATIC) as megaphone:
            channel = megaphone.create()
            megaphone.write(channel.producer, "s", 1)
            assert megaphone.dispose(channel.producer)
            assert not megaphone.dispose(channel.producer)

    await asyncio.to_thread(use)
