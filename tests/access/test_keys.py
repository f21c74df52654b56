"""Which keys of an issuer verify tokens, and in which forms a node gets them."""

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa as native_rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwk

from megaphone.access.keys import (
    EDWARDS,
    HMAC,
    MAX_KEYS,
    RSA,
    KeySet,
    MalformedKeys,
    keys_of_file,
    keys_of_set,
    secret_key,
)
from tests.support.issuer import SECRET, ec, ed, pem, public, rsa


def found(keys: KeySet, algorithm: str, kid: str | None) -> int:
    return len(keys.find(algorithm, kid))


def of(*members: object) -> KeySet:
    return keys_of_set({"keys": list(members)})


def test_a_key_is_found_by_its_name_and_an_algorithm_of_its_kind() -> None:
    keys = of(public(rsa(), kid="r"), public(ec(), kid="e"), public(ed(), kid="d"))
    everything = {*RSA, *EDWARDS, "ES256", "ES384", "ES512", HMAC, "none"}
    for kid, algorithms in {"r": RSA, "e": {"ES256"}, "d": EDWARDS, "x": set()}.items():
        assert {one for one in everything if keys.find(one, kid)} == set(algorithms)
    assert keys.has("r")
    assert not keys.has("x")


def test_a_token_that_names_no_key_needs_an_issuer_with_one_for_its_algorithm() -> None:
    keys = of(public(rsa(), kid="1"), public(ec(), kid="2"), public(ec("other"), kid="3"))
    assert found(keys, "RS256", None) == 1
    assert found(keys, "ES256", None) == 0
    assert found(keys, "ES256", "3") == 1
    assert keys.has(None)
    assert not KeySet().has(None)


def test_keys_with_the_same_name_are_all_found() -> None:
    keys = of(public(ec(), kid="1"), public(ec("other"), kid="1"), public(rsa(), kid="1"))
    assert found(keys, "ES256", "1") == 2


@pytest.mark.parametrize(
    ("members", "algorithms"),
    [
        pytest.param({"alg": "RS512"}, {"RS512"}, id="one algorithm"),
        pytest.param({"alg": "HS256"}, set(), id="an algorithm of secrets"),
        pytest.param({"alg": "ES256"}, set(), id="an algorithm of other keys"),
        pytest.param({"alg": 7}, set(), id="an algorithm that is none"),
        pytest.param({"use": "sig"}, RSA, id="for signatures"),
        pytest.param({"use": "enc"}, set(), id="for encryption"),
        pytest.param({"key_ops": ["verify"]}, RSA, id="to verify"),
        pytest.param({"key_ops": ["encrypt"]}, set(), id="to encrypt"),
        pytest.param({"key_ops": "verify"}, set(), id="operations that are none"),
        pytest.param({"kid": 7}, set(), id="a name that is none"),
        pytest.param({"x5c": ["…"], "ext": True}, RSA, id="members that do not matter"),
        pytest.param({"kty": "oct", "k": "c2VjcmV0"}, set(), id="a secret"),
        pytest.param({"kty": "AKP"}, set(), id="a kind of the future"),
        pytest.param({"kty": None}, set(), id="no kind"),
        pytest.param({"n": "!"}, set(), id="no number"),
        pytest.param({"n": 7}, set(), id="a number of JSON"),
        pytest.param({"n": "AQAB"}, set(), id="a tiny modulus"),
        pytest.param({"n": "_" * 6000}, set(), id="a giant modulus"),
        pytest.param({"e": "_" * 300 + "w"}, set(), id="a giant exponent"),
    ],
)
def test_a_key_is_ignored_if_it_is_not_for_signatures_of_tokens(
    members: dict[str, Any], algorithms: set[str]
) -> None:
    keys = of(public(ec(), kid="other"), public(rsa(), kid="it") | members)
    assert {one for one in {*RSA, *EDWARDS, "ES256", HMAC} if keys.find(one, "it")} == algorithms


@pytest.mark.parametrize(
    "member",
    [
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "secp256k1", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": ["P-256"], "x": "AA", "y": "AA"},
        {"kty": "OKP", "crv": "Ed25519", "x": "AA"},
        {"kty": "OKP", "crv": "X25519", "x": "AA"},
        {"kty": "RSA"},
        [],
        None,
    ],
)
def test_a_malformed_key_does_not_spoil_the_others(member: object) -> None:
    keys = of(member, public(ec(), kid="k"))
    assert found(keys, "ES256", None) == 1


@pytest.mark.parametrize(
    "members",
    [{}, {"keys": {}}, {"keys": []}, {"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}],
)
def test_a_set_without_keys_is_malformed(members: dict[str, object]) -> None:
    with pytest.raises(MalformedKeys):
        keys_of_set(members)


def test_a_set_has_a_limit() -> None:
    assert of(*[public(ec(), kid=str(number)) for number in range(MAX_KEYS)]).has("99")
    with pytest.raises(MalformedKeys, match="more than 100"):
        of(*[public(ec(), kid=str(number)) for number in range(MAX_KEYS + 1)])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
ODD_KEY = st.fixed_dictionaries(
    {"kty": st.sampled_from(["RSA", "EC", "OKP"]) | JSON},
    optional={name: JSON | st.just("AQAB") for name in ("n", "e", "x", "y", "alg", "use", "kid")}
    | {"crv": st.sampled_from(["P-256", "Ed25519"]) | JSON, "key_ops": JSON},
)


@given(st.lists(ODD_KEY | JSON, max_size=3))
def test_whatever_an_issuer_publishes_does_not_spoil_its_keys(members: list[object]) -> None:
    assert found(of(*members, public(ec(), kid="ours")), "ES256", "ours") >= 1


# -- Files


@pytest.mark.parametrize(
    ("key", "algorithm"), [(rsa, "PS256"), (ec, "ES256"), (ed, "EdDSA")], ids=["RSA", "EC", "Ed"]
)
def test_a_file_has_a_public_key_in_pem(key: Any, algorithm: str) -> None:
    keys = keys_of_file(pem(key()))
    assert found(keys, algorithm, None) == 1
    assert found(keys, algorithm, "any name") == 1
    assert keys.has("any name")
    assert not keys.find(HMAC, None)


def test_a_file_has_jwks_which_have_names() -> None:
    one, both = public(ec(), kid="1"), {"keys": [public(ec(), kid="1"), public(rsa(), kid="2")]}
    assert found(keys_of_file(json.dumps(one).encode()), "ES256", "1") == 1
    assert found(keys_of_file(json.dumps(both).encode()), "RS256", "2") == 1
    assert found(keys_of_file(json.dumps(both).encode()), "RS256", "1") == 0


def test_a_file_must_not_have_a_private_key() -> None:
    with pytest.raises(MalformedKeys, match="private key"):
        keys_of_file(pem(ec(), private=True))


def test_a_file_must_not_have_several_keys_in_pem() -> None:
    with pytest.raises(MalformedKeys, match="several keys"):
        keys_of_file(pem(ec()) + pem(rsa()))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b"{}",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        pytest.param(
            pem(jwk.ECKey.generate_key("secp256k1")),
            id="another curve",
        ),
        pytest.param(pem(jwk.OKPKey.generate_key("X25519")), id="a key for secrets"),
    ],
)
def test_a_file_without_a_usable_key_is_malformed(content: bytes) -> None:
    with pytest.raises(MalformedKeys):
        keys_of_file(content)


def test_a_small_rsa_key_is_refused() -> None:
    native = native_rsa.generate_private_key(65537, 1024).public_key()
    content = native.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(MalformedKeys, match="2048 to 8192 bits"):
        keys_of_file(content)


# -- Secrets


def test_a_secret_is_for_hmac_only_and_has_any_name() -> None:
    keys = secret_key(SECRET)
    assert found(keys, HMAC, "any") == found(keys, HMAC, None) == 1
    assert not keys.find("RS256", None)


def test_a_public_key_is_no_secret() -> None:
    with pytest.raises(MalformedKeys, match="a public key"):
        secret_key(pem(rsa()).decode())
