"""An issuer of tokens for tests: it has keys of each kind, and signs whatever it is given."""

import hmac
import json
import time
from base64 import urlsafe_b64encode
from functools import cache
from typing import Any

from joserfc import jwk
from joserfc.jws import JWSRegistry

ISSUER = "https://id.example.com/realms/shop"
AUDIENCE = "https://push.example.com"
SECRET = "a-secret-of-the-issuer-0123456789abcdef"


@cache
def rsa(name: str = "main") -> jwk.RSAKey:
    """Return an RSA key; each name has its own."""
    return jwk.RSAKey.generate_key(2048)


@cache
def ec(name: str = "main") -> jwk.ECKey:
    return jwk.ECKey.generate_key("P-256")


@cache
def ed(name: str = "main") -> jwk.OKPKey:
    return jwk.OKPKey.generate_key("Ed25519")


@cache
def secret(text: str = SECRET) -> jwk.OctKey:
    return jwk.OctKey.import_key(text)


def public(key: jwk.Key, **members: Any) -> dict[str, Any]:
    """Return the JWK that an issuer publishes."""
    return {name: value for name, value in key.as_dict(private=False).items() if name != "kid"} | (
        members
    )


def pem(key: jwk.RSAKey | jwk.ECKey | jwk.OKPKey, *, private: bool = False) -> bytes:
    return key.as_pem(private=private)


def claims(**changes: Any) -> dict[str, Any]:
    """Return the claims of a valid token; one that is changed to None is left out."""
    made = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "shop-1",
        "exp": int(time.time()) + 600,
        "scope": "openid megaphone:create megaphone:write",
    } | changes
    return {name: value for name, value in made.items() if value is not None}


def encoded(part: Any) -> bytes:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return urlsafe_b64encode(raw).rstrip(b"=")


def token(
    payload: Any,
    key: jwk.Key | None = None,
    algorithm: str = "RS256",
    header: Any = None,
    signed_by: str | None = None,
    **members: Any,
) -> str:
    """Return a token with a payload, which may also be bytes.

    Its header has the `members`, or is `header` instead. `signed_by` is an algorithm other than
    that of the header.
    """
    head = {"alg": algorithm, "typ": "JWT", "kid": "k1"} | members if header is None else header
    if isinstance(head, dict):
        head = {name: value for name, value in head.items() if value is not None}
    signed = encoded(head) + b"." + encoded(payload)
    signer = JWSRegistry.algorithms[signed_by or algorithm]
    signature = signer.sign(signed, rsa() if key is None else key)
    return (signed + b"." + encoded(signature)).decode()


def hmac_token(payload: Any, key: bytes) -> str:
    """Return a token that is signed by HS256, with any bytes as the secret."""
    signed = encoded({"alg": "HS256", "typ": "JWT", "kid": "k1"}) + b"." + encoded(payload)
    return (signed + b"." + encoded(hmac.digest(key, signed, "sha256"))).decode()
