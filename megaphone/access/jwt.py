"""Tokens that are JWTs (RFC 7519): whether one is valid here, and what it allows.

The `iss` of a token chooses its issuer, and the settings of that issuer say which keys, algorithms
and audience are right. Nothing in a token chooses a URL. Everything that is wrong with a token
raises `InvalidToken`: its reason is for the log, and a stranger does not learn how far a forged
token came.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, final

import msgspec
from joserfc import jws
from joserfc.errors import JoseError, UnsupportedAlgorithmError
from joserfc.jws import CompactSignature, JWSRegistry

from megaphone.access.grants import MalformedGrant, grants_of
from megaphone.access.keys import EDWARDS, Key
from megaphone.access.ports import InvalidToken, TrustedIssuer
from megaphone.core.access import Grant
from megaphone.core.tenants import checked_tenant
from megaphone.errors import BadRequest, TokenExpired
from megaphone.settings import Issuer

MAX_TOKEN_BYTES: Final = 8_192
ACCESS_TOKEN_TYPES: Final = frozenset({"at+jwt", "application/at+jwt"})
"""The types of RFC 9068, in lower case."""
TYPES: Final = ACCESS_TOKEN_TYPES | {"", "jwt", "application/jwt"}
"""The types that are allowed if the settings do not ask for RFC 9068. An issuer signs JWTs of other
types, such as `logout+jwt`, with the same keys, but they are no access tokens (RFC 8725)."""


class Verified(NamedTuple):
    """What a valid token says."""

    issuer: TrustedIssuer
    subject: str
    """Whom the token is for; empty if it does not say so."""
    tenant: str
    grants: list[Grant]
    thumbprint: str
    """That of the key that has signed it."""
    left_s: float
    """The seconds until the token expires, with the leeway of its issuer."""


class Claims(msgspec.Struct):
    """The claims that we need, with their types. JSON has no other numbers than finite ones."""

    iss: str
    exp: float
    aud: str | list[str]
    nbf: float | None = None
    sub: str = ""
    client_id: str = ""
    scope: object = None
    authorization_details: object = None


@final
class Registry(JWSRegistry):
    """The limits of tokens. Which algorithms are right is decided before the library is asked, so
    it needs not warn of the name `EdDSA`, which issuers still use."""

    max_header_length = MAX_TOKEN_BYTES
    max_payload_length = MAX_TOKEN_BYTES

    def get_alg(self, name: str) -> Any:
        if name not in self.algorithms or name == "none":
            raise UnsupportedAlgorithmError
        return self.algorithms[name]


REGISTRY: Final = Registry(strict_check_header=False)


async def verify(
    token: str, issuers: Mapping[str, TrustedIssuer], wall: Callable[[], float] = time.time
) -> Verified:
    """Return what a token says, if it is valid. `issuers` are found by their `iss`.

    Raises: InvalidToken, TokenExpired, KeysUnavailable.
    """
    signed, header = parse(token)
    payload = payload_of(signed)
    claims = claims_of(payload)
    if (issuer := issuers.get(claims.iss)) is None:
        raise InvalidToken("its issuer is not one of the settings")
    key = await signing_key(signed, header, issuer)
    # Only from here on the token says what its issuer has said.
    check_purpose(header, claims, issuer.settings)
    left_s = check_time(claims, issuer.settings.leeway_secs, wall())
    try:
        grants = grants_of(claims.scope, claims.authorization_details)
    except MalformedGrant as error:
        raise InvalidToken(str(error)) from None
    tenant = tenant_of(payload, issuer.settings)
    return Verified(issuer, claims.sub or claims.client_id, tenant, grants, key.thumbprint, left_s)


def parse(token: str) -> tuple[CompactSignature, dict[str, Any]]:
    """Return the parts of a token and its header, and check all that needs no key."""
    if len(token) > MAX_TOKEN_BYTES:
        raise InvalidToken(f"it is longer than {MAX_TOKEN_BYTES} bytes")
    try:
        signed = jws.extract_compact(token.encode("ascii"), registry=REGISTRY)
    except (JoseError, ValueError, RecursionError):
        raise InvalidToken("it has not the form of a JWT") from None
    header: object = signed.headers()
    if not isinstance(header, dict) or not all(
        isinstance(header.get(name, ""), str) for name in ("alg", "kid", "typ")
    ):
        raise InvalidToken("its header has not the form of a JWT")
    if "crit" in header or "b64" in header:
        raise InvalidToken("its header asks for an extension")
    return signed, header


def payload_of(signed: CompactSignature) -> dict[str, Any]:
    try:
        return msgspec.json.decode(signed.payload, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidToken("its payload is no JSON object that this broker reads") from None


def claims_of(payload: Mapping[str, Any]) -> Claims:
    try:
        return msgspec.convert(payload, Claims)
    except (msgspec.ValidationError, OverflowError) as error:
        raise InvalidToken(f"a claim is missing or wrong: {error}") from None


async def signing_key(
    signed: CompactSignature, header: Mapping[str, Any], issuer: TrustedIssuer
) -> Key:
    """Return the key of the issuer that has signed a token."""
    algorithm, kid = header["alg"], header.get("kid")
    of_settings = "EdDSA" if algorithm in EDWARDS else algorithm
    if of_settings not in issuer.settings.allowed_algorithms:
        raise InvalidToken("its algorithm is not one of those in the settings of its issuer")
    keys = await issuer.keys.find(algorithm, kid)
    if not keys:
        named = "it names a key that" if kid is not None else "it names no key, and"
        raise InvalidToken(f"{named} its issuer does not have for its algorithm")
    for key in keys:
        if is_signed(signed, key):
            return key
    raise InvalidToken("its signature is wrong")


def is_signed(signed: CompactSignature, key: Key) -> bool:
    try:
        return jws.validate_compact(signed, key.value, registry=REGISTRY)
    except (JoseError, ValueError):
        return False


def check_purpose(header: Mapping[str, Any], claims: Claims, settings: Issuer) -> None:
    """Check that a token is an access token, and for this broker."""
    types = ACCESS_TOKEN_TYPES if settings.rfc9068 else TYPES
    if header.get("typ", "").lower() not in types:
        raise InvalidToken("its type is not that of an access token")
    audiences = [claims.aud] if isinstance(claims.aud, str) else claims.aud
    if settings.audience not in audiences:
        raise InvalidToken("its audience is not that in the settings of its issuer")


def check_time(claims: Claims, leeway_s: float, now: float) -> float:
    """Check that a token is valid at this time, and return for how many seconds it still is."""
    if claims.nbf is not None and claims.nbf - leeway_s > now:
        raise InvalidToken("it is not valid yet")
    left_s = claims.exp + leeway_s - now
    if left_s <= 0:
        raise TokenExpired
    return left_s


def tenant_of(payload: Mapping[str, Any], settings: Issuer) -> str:
    if settings.tenant_claim is None:
        return settings.tenant
    tenant = payload.get(settings.tenant_claim)
    if not isinstance(tenant, str) or not tenant:
        raise InvalidToken("its claim that names the tenant is missing, empty or no text")
    try:
        return checked_tenant(tenant)
    except BadRequest as error:
        raise InvalidToken(f"its claim that names the tenant is wrong: {error}") from None
