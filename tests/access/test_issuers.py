"""The callers who have tokens of the issuers in the settings, and what a reload does to them."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from megaphone.access.issuers import JwtVerifier, UnusableKey
from megaphone.access.ports import InvalidToken
from megaphone.core.access import Caller
from megaphone.core.tenants import Tenants
from megaphone.errors import KeysUnavailable, PermissionDenied, Unauthenticated
from megaphone.model import Action
from megaphone.settings import Auth, Issuer, Settings
from tests.support.issuer import AUDIENCE, SECRET, claims, ec, pem, public, rsa, secret, token
from tests.support.publisher import publishing

NOW = 100.0
WALL = 1_800_000_000


def issuer(**changes: Any) -> Issuer:
    return Issuer(**{"issuer": "shop", "audience": AUDIENCE, "secret": SECRET} | changes)


def settings(**issuers: Issuer) -> Settings:
    return Settings(auth=Auth(require=tuple(Action), issuers=issuers))


def verifier(found: Settings) -> JwtVerifier:
    return JwtVerifier(found, tenants=Tenants(), wall=lambda: WALL)


def signed(**changes: Any) -> str:
    return token(claims(iss="shop", exp=WALL + 60, **changes), secret(), "HS256")


async def admitted(jwts: JwtVerifier, text: str) -> Caller:
    caller = await jwts.verify(text, NOW)
    caller.require(Action)
    return caller


def is_revoked(caller: Caller) -> bool:
    try:
        caller.check(Action.CREATE, NOW)
    except Unauthenticated:
        return True
    return False


async def test_a_caller_may_do_what_the_token_says_until_it_expires() -> None:
    tenants = Tenants()
    found = settings(main=issuer(tenant="shop", leeway_secs=5.0))
    jwts = JwtVerifier(found, tenants=tenants, wall=lambda: WALL)
    caller = await admitted(jwts, signed(scope="megaphone:write"))
    assert caller.name == "issuer main: shop-1"
    assert caller.tenant is tenants.named("shop")
    assert caller.expires_at == NOW + 65
    caller.check(Action.WRITE, NOW)
    with pytest.raises(PermissionDenied):
        caller.check(Action.CREATE, NOW)


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        ("a\nb\x1b[31m\u202e", "a\ufffdb\ufffd[31m\ufffd"),
        ("x" * 1_000, "x" * 100),
        ("Zoë 12", "Zoë 12"),
    ],
)
async def test_a_subject_cannot_spoil_the_log(subject: str, name: str) -> None:
    caller = await admitted(verifier(settings(main=issuer())), signed(sub=subject))
    assert caller.name == f"issuer main: {name}"


@pytest.mark.parametrize(
    ("text", "is_ours"), [("a.b.c", True), ("mgp_abc", False), ("a.b.c.d.e", False), ("", False)]
)
def test_tokens_with_three_parts_are_recognised(text: str, is_ours: bool) -> None:
    assert verifier(settings(main=issuer())).recognises(text) == is_ours


async def test_each_issuer_has_its_own_keys() -> None:
    other = issuer(issuer="other", secret="another-secret-0123456789-0123456789")
    jwts = verifier(settings(main=issuer(), other=other))
    forged = token(claims(iss="other", exp=WALL + 60), secret(), "HS256")
    with pytest.raises(InvalidToken):
        await jwts.verify(forged, NOW)


# -- Reload


def reload(jwts: JwtVerifier, new: Settings) -> None:
    jwts.prepare(new)()


async def test_a_reload_without_a_change_keeps_the_callers() -> None:
    jwts = verifier(settings(main=issuer()))
    caller = await admitted(jwts, signed())
    reload(jwts, settings(main=issuer(), other=issuer(issuer="other")))
    assert not is_revoked(caller)


@pytest.mark.parametrize(
    "new",
    [
        pytest.param({}, id="no issuer any more"),
        pytest.param({"renamed": issuer()}, id="another name"),
        pytest.param({"main": issuer(secret=SECRET[::-1])}, id="another secret"),
        pytest.param({"main": issuer(audience="https://x.example")}, id="another audience"),
    ],
)
async def test_a_reload_revokes_the_callers_of_an_issuer_that_has_changed(
    new: dict[str, Issuer],
) -> None:
    jwts = verifier(settings(main=issuer()))
    caller = await admitted(jwts, signed())
    apply = jwts.prepare(settings(**new))
    assert not is_revoked(caller)
    apply()
    assert is_revoked(caller)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key.pem"
    file.write_bytes(pem(rsa()))
    return file


async def test_a_reload_reads_key_files_again(key_file: Path) -> None:
    found = settings(main=issuer(secret=None, public_key_file=str(key_file)))
    jwts = verifier(found)
    text = token(claims(iss="shop", exp=WALL + 60))
    caller = await admitted(jwts, text)
    reload(jwts, found)
    assert not is_revoked(caller)
    key_file.write_bytes(pem(rsa("second")))
    reload(jwts, found)
    assert is_revoked(caller)
    with pytest.raises(InvalidToken):
        await jwts.verify(text, NOW)


@pytest.mark.parametrize(
    "content",
    [None, b"nonsense", pem(ec(), private=True)],
    ids=["no file", "no key", "a private key"],
)
async def test_a_wrong_key_file_is_named_and_changes_nothing(
    key_file: Path, content: bytes | None
) -> None:
    wrong = settings(main=issuer(secret=None, public_key_file=str(key_file)))
    key_file.unlink() if content is None else key_file.write_bytes(content)
    what = "cannot be read: No such file" if content is None else "is not allowed: it "
    where = rf"^auth\.issuers\.main\.public_key_file {what}"
    with pytest.raises(UnusableKey, match=where):
        verifier(wrong)
    jwts = verifier(settings(main=issuer()))
    caller = await admitted(jwts, signed())
    with pytest.raises(UnusableKey, match=where):
        jwts.prepare(wrong)
    assert not is_revoked(caller)


# -- Issuers that publish their keys


async def test_keys_are_fetched_from_the_start_to_the_end() -> None:
    async with publishing() as publisher:
        publisher.publish(public(rsa(), kid="k1"))
        found = settings(main=issuer(issuer=publisher.issuer, secret=None), fixed=issuer())
        text = token(claims(iss=publisher.issuer, exp=WALL + 60))
        async with verifier(found) as jwts:
            assert jwts.fetch_times() == {"main": 0.0}
            assert await admitted(jwts, text)
            assert jwts.fetch_times()["main"] > 0
            assert [task for task in asyncio.all_tasks() if "FetchedKeys" in repr(task)]
        assert not [task for task in asyncio.all_tasks() if "FetchedKeys" in repr(task)]


async def test_a_reload_fetches_the_keys_of_new_issuers_only() -> None:
    async with publishing() as publisher:
        publisher.publish(public(rsa(), kid="k1"))
        main = issuer(issuer=publisher.issuer, secret=None)
        text = token(claims(iss=publisher.issuer, exp=WALL + 60))
        async with verifier(settings()) as jwts:
            with pytest.raises(InvalidToken):
                await jwts.verify(text, NOW)
            reload(jwts, settings(main=main))
            caller = await admitted(jwts, text)
            reload(jwts, settings(main=main))
            assert not is_revoked(caller)
            assert len(publisher.asked) == 2
            reload(jwts, settings())
            assert is_revoked(caller)
            assert jwts.fetch_times() == {}


async def test_a_call_that_waits_for_keys_of_a_removed_issuer_ends() -> None:
    async with publishing() as publisher:
        text = token(claims(iss=publisher.issuer, exp=WALL + 60))
        main = issuer(issuer=publisher.issuer, secret=None)
        async with verifier(settings(main=main)) as jwts:
            waiting = asyncio.create_task(jwts.verify(text, NOW))
            await asyncio.sleep(0)
            reload(jwts, settings())
            with pytest.raises(KeysUnavailable):
                await waiting
