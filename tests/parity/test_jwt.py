"""Tokens of issuers admit callers alike through both faces."""

import asyncio
import gc
import time
from dataclasses import replace
from typing import Any

import pytest

from megaphone.access import fetching
from megaphone.app import App
from megaphone.errors import MegaphoneError, RateLimited
from megaphone.model import Action, NewEvent, ReadOptions
from megaphone.settings import Auth, Issuer, Settings, TenantLimits
from tests.support.faces import Face, HttpFace, read_all
from tests.support.issuer import AUDIENCE, SECRET, claims, ec, public, secret, token
from tests.support.publisher import publishing
from tests.support.scenes import eventually

SHOP = Issuer(issuer="shop", audience=AUDIENCE, secret=SECRET)
SILENT = Issuer(issuer="silent", audience=AUDIENCE, jwks_url="http://127.0.0.1:1/keys")
AUTH = Auth(require=tuple(Action), issuers={"shop": SHOP, "silent": SILENT})
SHORT = ReadOptions(wait_s=0)

pytestmark = [pytest.mark.settings(auth=AUTH), pytest.mark.timeout(60)]


def bearer(**changes: Any) -> str:
    made = claims(iss="shop", scope="megaphone:create megaphone:read", **changes)
    return f"Bearer {token(made, secret(), 'HS256')}"


def detail(*streams: str) -> dict[str, Any]:
    return {"type": "urn:megaphone:authorization", "actions": ["write"], "streams": streams}


async def code_of_create(face: Face, proof: str) -> str:
    try:
        await face.authorized(proof).create()
    except MegaphoneError as error:
        return error.code
    return "OK"


@pytest.mark.parametrize(
    ("proof", "code"),
    [
        pytest.param(lambda: bearer(), "OK", id="right"),
        pytest.param(lambda: bearer(exp=time.time() - 60), "TOKEN_EXPIRED", id="expired"),
        pytest.param(lambda: bearer(aud="https://x.example"), "UNAUTHENTICATED", id="foreign"),
        pytest.param(lambda: bearer() + "x", "UNAUTHENTICATED", id="forged"),
        pytest.param(
            lambda: f"Bearer {token(claims(iss='silent'))}", "KEYS_UNAVAILABLE", id="no keys"
        ),
        pytest.param(
            lambda: f"Bearer {token(claims(iss='shop', scope=None), secret(), 'HS256')}",
            "PERMISSION_DENIED",
            id="no grant",
        ),
    ],
)
async def test_a_token_is_worth_the_same_through_both_faces(
    app: App, face: Face, proof: Any, code: str
) -> None:
    text = proof()
    for _ in range(2):  # the second time the answer may be remembered
        assert await code_of_create(face, text) == code
    assert len(await app.admin.list_channels(0, 10)) == (2 if code == "OK" else 0)


async def test_a_detail_allows_some_streams(face: Face) -> None:
    shop = face.authorized(bearer(authorization_details=[detail("orders.*")]))
    channel = await shop.create()
    await shop.write(channel.producer, "orders.eu", b"1")
    with pytest.raises(MegaphoneError) as caught:
        await shop.write(channel.producer, "news", b"2")
    assert caught.value.code == "PERMISSION_DENIED"
    assert await read_all(shop, channel.consumer, SHORT) != []


async def test_a_reload_ends_what_an_issuer_has_allowed(app: App, face: Face) -> None:
    proof = bearer(authorization_details=[detail("*")])
    shop = face.authorized(proof)
    channel = await shop.create()
    reading = asyncio.create_task(read_all(shop, channel.consumer, ReadOptions(wait_s=50)))

    async def is_open() -> bool:
        return bool(app.metrics.reads_open)

    await eventually(is_open)

    def without_issuers(present: Settings) -> Settings:
        return replace(present, auth=replace(AUTH, issuers={}))

    assert await app.reloader.reload(without_issuers)
    async with asyncio.timeout(30):
        await asyncio.wait([reading])
    assert await code_of_create(face, proof) == "UNAUTHENTICATED"
    assert await app.reloader.reload(lambda present: replace(present, auth=AUTH))
    assert await code_of_create(face, proof) == "OK"
    await shop.write_batch([channel.producer], [NewEvent("s", b"1")])


@pytest.mark.settings(
    auth=Auth(issuers={"shop": replace(SHOP, tenant_claim="org")}),
    tenants={"default": TenantLimits(writes_per_s=0.01)},
)
async def test_a_tenant_without_a_table_owes_after_a_reload_what_it_owed(
    app: App, face: Face
) -> None:
    channel = await face.create()
    shop = face.authorized(bearer(org="small"))  # which has no channel
    await shop.write(channel.producer, "s", b"1")
    auth = Auth(issuers={"shop": replace(SHOP, tenant_claim="org", leeway_secs=10)})
    for _ in range(2):
        with pytest.raises(RateLimited, match="tenant small may write"):
            await shop.write(channel.producer, "s", b"2")
        assert await app.reloader.reload(lambda present: replace(present, auth=auth))
        gc.collect()


async def test_a_withdrawn_key_ends_what_it_has_allowed(
    app: App, face: Face, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "EVERY_S", 0.1)
    async with publishing() as publisher:
        publisher.publish(public(ec("old"), kid="old"), public(ec("new"), kid="new"))
        issuer = Issuer(issuer=publisher.issuer, audience=AUDIENCE)
        auth = replace(AUTH, issuers={"main": issuer})
        assert await app.reloader.reload(lambda present: replace(present, auth=auth))
        made = claims(iss=publisher.issuer, scope="megaphone:create megaphone:read")
        proofs = {kid: f"Bearer {token(made, ec(kid), 'ES256', kid=kid)}" for kid in ("old", "new")}
        reads = {}
        for kid, proof in proofs.items():
            caller = face.authorized(proof)
            channel = await caller.create()
            reads[kid] = asyncio.create_task(
                read_all(caller, channel.consumer, ReadOptions(wait_s=50))
            )

        async def are_open() -> bool:
            return app.metrics.reads_open == 2

        await eventually(are_open)
        publisher.publish(public(ec("new"), kid="new"))
        async with asyncio.timeout(30):
            await asyncio.wait([reads["old"]])
        assert await code_of_create(face, proofs["old"]) == "UNAUTHENTICATED"
        assert await code_of_create(face, proofs["new"]) == "OK"
        assert not reads["new"].done()
        reads["new"].cancel()


async def test_the_age_of_keys_is_a_metric(app: App, http: HttpFace) -> None:
    assert (
        'megaphone_jwks_fetched_timestamp_seconds{issuer="silent"} 0'
        in app.metrics.render().decode()
    )
