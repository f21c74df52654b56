"""Which tokens are valid: the table of what forgers and careless issuers send."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaphone.access.jwt import (
    MAX_TOKEN_BYTES,
    Verified,
    verify,
)
from megaphone.access.keys import NO_KEYS, FixedKeys, Key, KeySet, keys_of_set, secret_key
from megaphone.access.ports import InvalidToken, KeySource, TrustedIssuer
from megaphone.core.access import Grant
from megaphone.errors import KeysUnavailable, TokenExpired
from megaphone.model import Action
from megaphone.settings import Issuer
from tests.support.issuer import (
    AUDIENCE,
    ISSUER,
    SECRET,
    claims,
    ec,
    ed,
    encoded,
    hmac_token,
    pem,
    public,
    rsa,
    secret,
    token,
)

OTHER_ISSUER = "https://id.example.com/realms/other"
SETTINGS = Issuer(issuer=ISSUER, audience=AUDIENCE)
NOW = 1_800_000_000


class NoKeys(FixedKeys):
    """Keys that cannot be had."""

    async def find(self, algorithm: str, kid: str | None) -> Sequence[Key]:
        raise KeysUnavailable


def keys() -> KeySet:
    members = (public(rsa(), kid="k1"), public(ec(), kid="k2"), public(ed(), kid="k3"))
    return keys_of_set({"keys": [*members, public(ec("second"), kid="k4")]})


def issuers(
    settings: Issuer = SETTINGS, source: KeySource | None = None
) -> dict[str, TrustedIssuer]:
    other = TrustedIssuer(
        "other",
        Issuer(issuer=OTHER_ISSUER, audience=AUDIENCE),
        FixedKeys(keys_of_set({"keys": [public(rsa("other"), kid="k1")]})),
    )
    main = TrustedIssuer("main", settings, source or FixedKeys(keys()))
    return {settings.issuer: main, OTHER_ISSUER: other}


async def verified(
    text: str, settings: Issuer = SETTINGS, source: KeySource | None = None
) -> Verified:
    return await verify(text, issuers(settings, source))


async def refusal(text: str, settings: Issuer = SETTINGS) -> str:
    with pytest.raises(InvalidToken) as caught:
        await verified(text, settings)
    assert str(caught.value) == "the token is not valid here"
    return caught.value.reason


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [
        pytest.param(rsa, "RS256", "k1", id="RSA"),
        pytest.param(ec, "ES256", "k2", id="EC"),
        pytest.param(ed, "EdDSA", "k3", id="EdDSA"),
        pytest.param(ed, "Ed25519", "k3", id="Ed25519"),
        pytest.param(rsa, "RS256", None, id="no kid, and one key of its kind"),
    ],
)
async def test_a_token_of_the_issuer_is_valid(key: Any, algorithm: str, kid: str | None) -> None:
    found = await verified(token(claims(), key(), algorithm, kid=kid))
    assert found.issuer.name == "main"
    assert found.subject == "shop-1"
    assert found.tenant == "default"
    assert found.grants == [Grant(frozenset({Action.CREATE, Action.WRITE}))]
    assert 600 < found.left_s <= 630


@pytest.mark.parametrize(
    ("changes", "header"),
    [
        pytest.param({"aud": ["https://x.example", AUDIENCE]}, {}, id="several audiences"),
        pytest.param({"exp": time.time() + 3600.5}, {}, id="a fraction of a second"),
        pytest.param({"nbf": time.time() - 5}, {}, id="valid for some seconds"),
        pytest.param({"iat": "yesterday", "jti": 7}, {}, id="claims that do not matter"),
        pytest.param({"sub": None, "client_id": "shop-1"}, {}, id="a client instead of a subject"),
        pytest.param({}, {"typ": "at+JWT"}, id="an access token of RFC 9068"),
        pytest.param({}, {"typ": None}, id="no type"),
        pytest.param({}, {"x5t": "abc", "ver": 2, "x5c": ["A" * 2_000]}, id="a long header"),
        pytest.param({}, {"jku": "https://evil.example/", "jwk": {"kty": "oct"}}, id="other keys"),
    ],
)
async def test_what_issuers_do_is_valid(changes: dict[str, Any], header: dict[str, Any]) -> None:
    assert (await verified(token(claims(**changes), **header))).subject == "shop-1"


def raw(name: str, value: str) -> bytes:
    """Return the claims of a valid token, of which one has its value as it is written here."""
    text = json.dumps(claims() | {name: "…"})
    return text.replace(json.dumps("…"), value).encode()


def none_token(signature: str, algorithm: str = "none") -> str:
    head = {"alg": algorithm, "typ": "JWT", "kid": "k1"}
    return f"{encoded(head).decode()}.{encoded(claims()).decode()}.{signature}"


def with_changed_payload() -> str:
    head, _, signature = token(claims()).split(".")
    return f"{head}.{encoded(claims(sub='admin')).decode()}.{signature}"


REFUSED: dict[str, tuple[Callable[[], str], str]] = {
    "no token": (lambda: "", "form"),
    "not a token": (lambda: "a.b.c", "form"),
    "no JSON": (lambda: f"{encoded(b'{').decode()}.e30.AAAA", "form"),
    "a list as header": (lambda: token(claims(), header=["alg"]), "header"),
    "a list as algorithm": (lambda: token(claims(), alg=["RS256"]), "header"),
    "a number as kid": (lambda: token(claims(), kid=7), "header"),
    "a number as type": (lambda: token(claims(), typ=7), "header"),
    "no algorithm": (lambda: token(claims(), header={"kid": "k1"}), "form"),
    "a deep header": (
        lambda: token(claims(), header=b'{"alg":"RS256","x":' + b"[" * 2_500 + b"]" * 2_500 + b"}"),
        "form",
    ),
    "letters that are not ASCII": (lambda: "é" + token(claims()), "form"),
    "an encrypted token": (lambda: "a.b.c.d.e", "form"),
    "alg none": (lambda: none_token(""), "algorithm"),
    "alg none with a signature": (lambda: none_token("AAAA"), "algorithm"),
    "alg NONE": (lambda: none_token("", "NONE"), "algorithm"),
    "HS256 with the public RSA key": (lambda: hmac_token(claims(), pem(rsa())), "algorithm"),
    "an algorithm that is not allowed": (lambda: token(claims(), algorithm="RS384"), "algorithm"),
    "an unknown algorithm": (lambda: token(claims(), alg="XX"), "algorithm"),
    "ES256 with the kid of an RSA key": (lambda: token(claims(), ec(), "ES256"), "does not have"),
    "crit": (lambda: token(claims(), crit=["exp"], exp=1), "extension"),
    "crit with nothing": (lambda: token(claims(), crit=[]), "extension"),
    "b64": (lambda: token(claims(), b64=True), "extension"),
    "an unknown kid": (lambda: token(claims(), kid="k9"), "does not have"),
    "no kid, and several keys": (lambda: token(claims(), ec(), "ES256", kid=None), "names no key"),
    "wrong key": (lambda: token(claims(), rsa("stranger")), "signature"),
    "the key of another issuer": (lambda: token(claims(), rsa("other")), "signature"),
    "a changed payload": (with_changed_payload, "signature"),
    "no signature": (lambda: token(claims()).rpartition(".")[0] + ".", "signature"),
    "a short signature": (lambda: token(claims(), ec(), "ES256", kid="k2")[:-8], "signature"),
    "another issuer": (lambda: token(claims(iss="https://evil.example")), "issuer"),
    "the beginning of the issuer": (lambda: token(claims(iss=ISSUER[:-1])), "issuer"),
    "the issuer and more": (lambda: token(claims(iss=ISSUER + "/")), "issuer"),
    "no issuer": (lambda: token(claims(iss=None)), "iss"),
    "a list of issuers": (lambda: token(claims(iss=[ISSUER])), "iss"),
    "no exp": (lambda: token(claims(exp=None)), "exp"),
    "exp true": (lambda: token(claims(exp=True)), "exp"),
    "exp as a text": (lambda: token(claims(exp="1900000000")), "exp"),
    "exp null": (lambda: token(raw("exp", "null")), "exp"),
    "exp 1e400": (lambda: token(raw("exp", "1e400")), "JSON"),
    "exp NaN": (lambda: token(raw("exp", "NaN")), "JSON"),
    "exp Infinity": (lambda: token(raw("exp", "Infinity")), "JSON"),
    "exp with 400 digits": (lambda: token(raw("exp", "9" * 400)), "exp"),
    "nbf as a text": (lambda: token(claims(nbf="0")), "nbf"),
    "nbf to come": (lambda: token(claims(nbf=time.time() + 100)), "not valid yet"),
    "no audience": (lambda: token(claims(aud=None)), "aud"),
    "another audience": (lambda: token(claims(aud="https://x.example")), "audience"),
    "the beginning of the audience": (lambda: token(claims(aud=AUDIENCE[:-1])), "audience"),
    "no audience in the list": (lambda: token(claims(aud=[])), "audience"),
    "a number in the list of audiences": (lambda: token(claims(aud=[AUDIENCE, 7])), "aud"),
    "a number as subject": (lambda: token(claims(sub=7)), "sub"),
    "scope as a list": (lambda: token(claims(scope=["megaphone:write"])), "scope"),
    "a malformed detail": (
        lambda: token(claims(authorization_details=[{"type": "urn:megaphone:authorization"}])),
        "detail",
    ),
    "a token that ends a session": (lambda: token(claims(), typ="logout+jwt"), "type"),
    "a payload that is a list": (lambda: token([claims()]), "JSON"),
    "a payload that is no UTF-8": (lambda: token(b'{"iss":"\xff"}'), "JSON"),
    "a deep payload": (lambda: token(b'{"x":' + b"[" * 2_500 + b"]" * 2_500 + b"}"), "JSON"),
    "100 kB": (lambda: token(claims(x="y" * 100_000)), "longer"),
    "a byte too many": (lambda: "x" * (MAX_TOKEN_BYTES + 1), "longer"),
}


@pytest.mark.parametrize(("make", "reason"), REFUSED.values(), ids=REFUSED)
async def test_a_wrong_token_is_refused(make: Callable[[], str], reason: str) -> None:
    found = await refusal(make())
    assert reason in found
    assert "shop-1" not in found
    assert "example" not in found


async def test_a_deep_token_that_is_signed_is_refused() -> None:
    depth = 2_500
    text = token(
        json.dumps(claims() | {"x": 0}).replace("0}", "[" * depth + "]" * depth + "}").encode()
    )
    assert "JSON" in await refusal(text)


async def test_an_expired_token_says_so_only_if_its_issuer_signed_it() -> None:
    expired = claims(exp=time.time() - 31)
    with pytest.raises(TokenExpired):
        await verified(token(expired))
    assert "signature" in await refusal(token(expired, rsa("stranger")))
    assert "audience" in await refusal(token(expired | {"aud": "https://x.example"}))


@pytest.mark.parametrize("leeway_s", [0.0, 30.0, 300.0])
async def test_the_leeway_moves_both_ends(leeway_s: float) -> None:
    settings = Issuer(issuer=ISSUER, audience=AUDIENCE, leeway_secs=leeway_s)
    text = token(claims(nbf=NOW, exp=NOW + 60))

    async def left_at(now: float) -> float:
        return (await verify(text, issuers(settings), lambda: now)).left_s

    assert await left_at(NOW - leeway_s) == 60 + 2 * leeway_s
    assert await left_at(NOW + 59 + leeway_s) == 1
    with pytest.raises(InvalidToken):
        await left_at(NOW - leeway_s - 1)
    with pytest.raises(TokenExpired):
        await left_at(NOW + 60 + leeway_s)


async def test_rfc9068_asks_for_the_type_of_access_tokens() -> None:
    settings = Issuer(issuer=ISSUER, audience=AUDIENCE, rfc9068=True)
    for kind in ("at+jwt", "AT+JWT", "application/at+jwt"):
        assert await verified(token(claims(), typ=kind), settings)
    for other in ("JWT", "", None, "xat+jwt"):
        assert "type" in await refusal(token(claims(), typ=other), settings)


async def test_the_algorithms_of_the_settings_are_the_only_ones() -> None:
    settings = Issuer(issuer=ISSUER, audience=AUDIENCE, algorithms=("ES256", "PS256"))
    assert await verified(token(claims(), ec(), "ES256", kid="k2"), settings)
    assert await verified(token(claims(), algorithm="PS256"), settings)
    assert "algorithm" in await refusal(token(claims()), settings)


async def test_a_secret_signs_by_hs256() -> None:
    settings = Issuer(issuer=ISSUER, audience=AUDIENCE, secret=SECRET)
    source = FixedKeys(secret_key(SECRET))
    assert await verified(token(claims(), secret(), "HS256"), settings, source)
    with pytest.raises(InvalidToken, match="not valid"):
        await verified(token(claims(), secret("x" * 32), "HS256"), settings, source)
    with pytest.raises(InvalidToken, match="not valid"):
        await verified(token(claims()), settings, source)


@pytest.mark.parametrize(
    ("tenant", "is_valid"),
    [("shop", True), (None, False), (["shop"], False), (7, False), ("", False), ("a\nb", False)],
)
async def test_a_claim_names_the_tenant(tenant: object, is_valid: bool) -> None:
    settings = Issuer(issuer=ISSUER, audience=AUDIENCE, tenant="ignored", tenant_claim="org/tenant")
    text = token(claims(**{"org/tenant": tenant}))
    if is_valid:
        assert (await verified(text, settings)).tenant == "shop"
    else:
        assert "tenant" in await refusal(text, settings)


async def test_the_settings_name_the_tenant_of_all_tokens() -> None:
    settings = Issuer(issuer=ISSUER, audience=AUDIENCE, tenant="shop")
    assert (await verified(token(claims(tenant="other")), settings)).tenant == "shop"


async def test_keys_that_cannot_be_had_are_no_mistake_of_the_token() -> None:
    with pytest.raises(KeysUnavailable):
        await verified(token(claims()), source=NoKeys(NO_KEYS))
    with pytest.raises(InvalidToken):  # because nothing of this needs a key
        await verified(token(claims(), algorithm="RS384"), source=NoKeys(NO_KEYS))


@given(st.text(st.characters(max_codepoint=0x7F), max_size=40), st.integers(0, 900))
async def test_a_damaged_token_is_refused(piece: str, place: int) -> None:
    whole = token(claims())
    damaged = whole[:place] + piece + whole[place + len(piece) :]
    try:
        await verified(damaged)
    except InvalidToken:
        return
    # Base64 has several forms for the same signature, but what is signed is the same.
    assert damaged.rpartition(".")[0] == whole.rpartition(".")[0]
