"""The two addresses of a channel. An address is a secret: it gives the right to use the channel.

A reader uses the *consumer address*: `{agent}.{50 random characters}.{features}`. A writer uses the
*producer address*: `{agent}.{sealed channel id}`. The seal is AES-256-GCM with the address key of
the agent, so that nobody without the key can derive one address from the other. Proxies route by
the agent, the part before the first dot. Inside the broker, a channel is identified by its *channel
id*, the MD5 of the random characters. Existing clients depend on these formats.
"""

import hashlib
import os
import re
import secrets
import string
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from megaphone.errors import BadRequest

ALPHANUMERICS = string.ascii_letters + string.digits
SECRET_LENGTH = 50
FEATURES = "1"
"""The features of each channel that this broker creates: a bit set in hexadecimal. Bit 0 is chunked
streaming."""

KEY_BYTES = 32
NONCE_BYTES = 12
TEXTS_AT_ONCE = 100
"""How many random texts are made at once."""

_BYTES_TO_ALPHANUMERICS = bytes(ord(ALPHANUMERICS[byte % 62]) for byte in range(256))
_UNEVEN_BYTES = bytes(range(248, 256))

MAX_AGENT_LENGTH = 255
MAX_ADDRESS_LENGTH: Final = 400
"""No address has more characters than this. The addresses of today are less than half as long."""
_AGENT = rf"(?P<agent>[A-Za-z0-9_-]{{1,{MAX_AGENT_LENGTH}}}+)"
_CONSUMER = re.compile(
    _AGENT + r"\.(?P<secret>[A-Za-z0-9]{50})\.(?P<features>0|[1-9a-f][0-9a-f]{0,63})"
)
_SEALED_FORM = r"[A-Za-z0-9_-]{58}[AEIMQUYcgkosw048]"
_SEALED = re.compile(_SEALED_FORM)
_PRODUCER = re.compile(rf"{_AGENT}\.(?P<sealed>{_SEALED_FORM})")
# A sealed id has 44 bytes, that is, 352 bits; 59 characters of base64 have 354. The two unused bits
# of the last character must be zero, so that an address has only one spelling.

MALFORMED = "not an address: expected a producer or consumer address as POST /create returns it"
CANNOT_WRITE = "a consumer address cannot write: use the channel's producer address"
CANNOT_DISPOSE = (
    "a consumer address cannot dispose of its channel: use the channel's producer address"
)
CANNOT_READ = "a producer address cannot read: use the channel's consumer address"


def alphanumerics(length: int, random_bytes: Callable[[int], bytes]) -> str:
    """Return random letters and digits. All 62 of them are equally likely.

    Each random byte below 248 = 4 * 62 becomes one character. The others are dropped, because with
    them some characters would be more likely. This is much faster than one choice per character.
    """
    text = b""
    while len(text) < length:
        text += random_bytes(length + length // 8).translate(_BYTES_TO_ALPHANUMERICS, _UNEVEN_BYTES)
    return text[:length].decode()


def random_texts(length: int, random_bytes: Callable[[int], bytes]) -> list[str]:
    """Return `TEXTS_AT_ONCE` texts of random letters and digits."""
    text = alphanumerics(length * TEXTS_AT_ONCE, random_bytes)
    return [text[start : start + length] for start in range(0, len(text), length)]


class Randomness:
    """Secret random material for the next channels, because it costs less to draw much at once."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Draw anew from now on."""
        self._secrets: list[str] = []
        self._nonces: list[bytes] = []

    def secret(self) -> str:
        """Return the secret of a new consumer address. No text is returned twice."""
        if not self._secrets:
            self._secrets = random_texts(SECRET_LENGTH, secrets.token_bytes)
        return self._secrets.pop()

    def nonce(self) -> bytes:
        """Return random bytes for one encryption. They are not returned again."""
        if not self._nonces:
            drawn = secrets.token_bytes(NONCE_BYTES * TEXTS_AT_ONCE)
            self._nonces = [drawn[i : i + NONCE_BYTES] for i in range(0, len(drawn), NONCE_BYTES)]
        return self._nonces.pop()


_randomness: Final = Randomness()
# A process that was forked would otherwise hand out the same secrets as its parent.
os.register_at_fork(after_in_child=_randomness.forget)


@dataclass(slots=True)
class ConsumerAddress:
    """A well-formed consumer address. Only the store knows whether its channel exists."""

    agent: str
    secret: str = field(repr=False)
    features: str = FEATURES

    @classmethod
    def mint(cls, agent: str) -> Self:
        """Make the address of a new channel of an agent."""
        return cls(agent, _randomness.secret())

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises: BadRequest, when `text` does not have the form of a consumer address."""
        if found := _CONSUMER.fullmatch(text):
            return cls(found["agent"], found["secret"], found["features"])
        raise BadRequest(CANNOT_READ if is_producer_shaped(text) else MALFORMED)

    @property
    def channel_id(self) -> bytes:
        return hashlib.md5(self.secret.encode(), usedforsecurity=False).digest()

    def __str__(self) -> str:
        return f"{self.agent}.{self.secret}.{self.features}"


@dataclass(frozen=True, slots=True)
class SealedAddress:
    """A well-formed producer address that is still encrypted, except for its agent."""

    agent: str
    sealed: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises: BadRequest, when `text` does not have the form of a producer address."""
        if found := _PRODUCER.fullmatch(text):
            return cls(found["agent"], found["sealed"])
        raise BadRequest(CANNOT_WRITE if is_consumer_shaped(text) else MALFORMED)


def is_consumer_shaped(text: str) -> bool:
    return _CONSUMER.fullmatch(text) is not None


def is_producer_shaped(text: str) -> bool:
    return _PRODUCER.fullmatch(text) is not None


class AddressKey:
    """The address key of an agent: encrypts channel ids into producer addresses, and decrypts them.

    The key remembers the addresses that it decrypted last, because most addresses are used again.
    """

    __slots__ = ("_cipher", "secret")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise BadRequest(f"an address key has {KEY_BYTES} bytes, not {len(secret)}")
        self.secret = secret
        self._cipher = AESGCM(secret)

    @classmethod
    def random(cls) -> Self:
        return cls(secrets.token_bytes(KEY_BYTES))

    def seal(self, channel_id: bytes) -> str:
        """Return the sealed part of a producer address. It is another one in each call."""
        nonce = _randomness.nonce()
        sealed = nonce + self._cipher.encrypt(nonce, channel_id, None)
        return urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def open(self, sealed: str) -> bytes:
        """Return the channel id in the sealed part of a producer address.

        Raises: BadRequest, when the part was sealed with another key, or was changed later.
        """
        if not _SEALED.fullmatch(sealed):
            raise BadRequest(MALFORMED)
        raw = urlsafe_b64decode(sealed + "=")
        try:
            return self._cipher.decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], None)
        except InvalidTag as error:
            raise BadRequest(MALFORMED) from error
