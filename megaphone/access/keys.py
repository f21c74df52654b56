"""The keys with which issuers sign their tokens, and the forms in which we get them. No I/O.

Each key states for which algorithms it may be used. A token names an algorithm, but it can choose
only among those of its key and of the settings, so that it cannot make a public RSA key serve as
the secret of an HMAC.
"""

from base64 import urlsafe_b64decode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from cryptography.x509 import load_pem_x509_certificate
from joserfc import jwk
from joserfc.errors import JoseError

HMAC: Final = "HS256"
RSA: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"})
CURVES: Final = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
EDWARDS: Final = frozenset({"EdDSA", "Ed25519"})
"""Two names of the same algorithm: the one of RFC 8037, and the one of RFC 9864."""
RSA_BITS: Final = range(2048, 8193)
LONGEST_EXPONENT: Final = 6
"""The length in base64 of an exponent with 32 bits; almost all keys have 65537."""
MAX_KEYS: Final = 100
"""How many keys one issuer may have."""


class MalformedKeys(Exception):
    """A text contains no keys that can verify tokens. The text of this error says why, and repeats
    nothing of it."""


@final
@dataclass(frozen=True, slots=True)
class Key:
    """A key that verifies signatures."""

    kid: str | None
    """The name by which tokens refer to the key."""
    algorithms: frozenset[str]
    """The algorithms for which the key may be used."""
    value: jwk.Key

    @property
    def thumbprint(self) -> str:
        """What the key has in common with copies of it that have other names (RFC 7638)."""
        return self.value.thumbprint()


@final
class KeySet:
    """The keys of one issuer."""

    def __init__(self, keys: Iterable[Key] = (), *, ignores_names: bool = False) -> None:
        """With `ignores_names`, a token may name its key as it likes: the settings give the keys of
        its issuer, and they have no names."""
        self._keys = tuple(keys)
        self._ignores_names = ignores_names

    def thumbprints(self) -> frozenset[str]:
        return frozenset(key.thumbprint for key in self._keys)

    def has(self, kid: str | None) -> bool:
        """Return whether there is a key for tokens that name this key, or that name none."""
        return any(self._is_named(key, kid) for key in self._keys)

    def find(self, algorithm: str, kid: str | None) -> Sequence[Key]:
        """Return the keys that may have signed a token.

        If the token names no key, exactly one key must be for its algorithm. Trying several keys
        would cost time that a stranger could waste.
        """
        found = [
            key for key in self._keys if algorithm in key.algorithms and self._is_named(key, kid)
        ]
        return found if len(found) == 1 or kid is not None else []

    def _is_named(self, key: Key, kid: str | None) -> bool:
        return kid is None or self._ignores_names or key.kid == kid


NO_KEYS: Final = KeySet()


class FixedKeys:
    """Fulfils `KeySource` with keys that the settings have."""

    fetched_at = None

    def __init__(self, keys: KeySet, content: bytes = b"") -> None:
        self._keys = keys
        self.content: Final = content

    def start(self, on_withdrawn: Callable[[], None]) -> None: ...

    def has_key(self, thumbprint: str) -> bool:
        return True

    def close(self) -> None: ...

    async def aclose(self) -> None: ...

    async def find(self, algorithm: str, kid: str | None) -> Sequence[Key]:
        return self._keys.find(algorithm, kid)


def secret_key(secret: str) -> KeySet:
    """Return a secret as the only key of its issuer. Raises: MalformedKeys."""
    try:
        value = jwk.OctKey.import_key(secret)
    except (JoseError, ValueError):
        raise MalformedKeys("it is a public key") from None
    return KeySet([Key(None, frozenset({HMAC}), value)], ignores_names=True)


def keys_of_file(content: bytes) -> KeySet:
    """Return the keys in a file: a public key or certificate in PEM, a JWK, or a set of JWKs.

    Raises: MalformedKeys, also if the file has a private key, which is not needed here.
    """
    if b"PRIVATE KEY-----" in content:
        raise MalformedKeys("it contains a private key; only the public key is needed")
    if b"-----BEGIN " in content:
        return KeySet([pem_key(content)], ignores_names=True)
    members = members_of(content)
    return keys_of_set(members) if "keys" in members else keys_of_set({"keys": [members]})


def pem_key(content: bytes) -> Key:
    if content.count(b"-----BEGIN ") > 1:
        raise MalformedKeys("it contains several keys; several are allowed only as a set of JWKs")
    is_certificate = b"-----BEGIN CERTIFICATE-----" in content
    try:
        public: Any = (
            load_pem_x509_certificate(content).public_key()
            if is_certificate
            else load_pem_public_key(content)
        )
    except (ValueError, UnsupportedAlgorithm):
        raise MalformedKeys("it is no public key or certificate in PEM") from None
    match public:
        case RSAPublicKey() if public.key_size in RSA_BITS:
            return Key(None, RSA, jwk.RSAKey.import_key(public))
        case EllipticCurvePublicKey():
            ec = jwk.ECKey.import_key(public)
            if ec.curve_name in CURVES:
                return Key(None, frozenset({CURVES[ec.curve_name]}), ec)
        case Ed25519PublicKey():
            return Key(None, EDWARDS, jwk.OKPKey.import_key(public))
    raise MalformedKeys(NO_SUCH_KEY)


NO_SUCH_KEY: Final = (
    f"its key is no RSA key of {RSA_BITS[0]} to {RSA_BITS[-1]} bits, no key on P-256, P-384 or"
    " P-521, and no Ed25519 key"
)


def members_of(content: bytes) -> Mapping[str, object]:
    """Return the members of a JSON object. Raises: MalformedKeys."""
    try:
        return msgspec.json.decode(content, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedKeys("it is no JSON object") from None


def keys_of_set(members: Mapping[str, object]) -> KeySet:
    """Return the keys in a set of JWKs (RFC 7517) that can verify signatures.

    Keys of unknown types, keys for other purposes, and malformed keys are ignored. An issuer may
    add them at any time.

    Raises: MalformedKeys, if there are none, or more than `MAX_KEYS`.
    """
    found = members.get("keys")
    if not isinstance(found, list):
        raise MalformedKeys("it has no list of keys")
    if len(found) > MAX_KEYS:
        raise MalformedKeys(f"it has more than {MAX_KEYS} keys")
    keys = [key for member in found if (key := key_of_jwk(member)) is not None]
    if not keys:
        raise MalformedKeys("none of its keys can verify tokens")
    return KeySet(keys)


def key_of_jwk(member: object) -> Key | None:
    """Return the public key in a JWK; None if the JWK has no key that can verify signatures."""
    if not isinstance(member, dict) or not is_for_verifying(member):
        return None
    build = BUILDERS.get(str(member.get("kty")))
    kid, only = member.get("kid"), member.get("alg")
    if build is None or not isinstance(kid, str | None):
        return None
    try:
        algorithms, value = build(member)
    except (JoseError, ValueError, TypeError, KeyError, OverflowError, UnsupportedAlgorithm):
        return None
    if only is not None:
        algorithms = algorithms & (EDWARDS if only in ("EdDSA", "Ed25519") else {only})
    return Key(kid, algorithms, value) if algorithms else None


def is_for_verifying(member: Mapping[str, object]) -> bool:
    operations = member.get("key_ops", ["verify"])
    return member.get("use", "sig") == "sig" and (
        isinstance(operations, list) and "verify" in operations
    )


def rsa_key(member: Mapping[str, Any]) -> tuple[frozenset[str], jwk.Key]:
    # A larger exponent would make each check of a signature slow.
    modulus = int.from_bytes(urlsafe_b64decode(member["n"] + "=="))
    if modulus.bit_length() not in RSA_BITS or len(member["e"]) > LONGEST_EXPONENT:
        raise ValueError
    return RSA, checked(jwk.RSAKey.import_key(public_part(member, "n", "e")))


def ec_key(member: Mapping[str, Any]) -> tuple[frozenset[str], jwk.Key]:
    algorithm = CURVES[member["crv"]]
    value = jwk.ECKey.import_key(public_part(member, "crv", "x", "y"))
    return frozenset({algorithm}), checked(value)


def ed25519_key(member: Mapping[str, Any]) -> tuple[frozenset[str], jwk.Key]:
    if member["crv"] != "Ed25519":
        raise ValueError
    return EDWARDS, checked(jwk.OKPKey.import_key(public_part(member, "crv", "x")))


BUILDERS: Final[Mapping[str, Callable[[Mapping[str, Any]], tuple[frozenset[str], jwk.Key]]]] = {
    "RSA": rsa_key,
    "EC": ec_key,
    "OKP": ed25519_key,
}


def public_part(member: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the members that make a public key. So no private part is kept, and nothing that is
    only said about the key matters to the library."""
    return {"kty": member["kty"]} | {name: member[name] for name in names}


def checked(value: jwk.Key) -> jwk.Key:
    """Check the numbers of a key now, instead of at its first use, and return it."""
    value.raw_value  # noqa: B018
    return value
