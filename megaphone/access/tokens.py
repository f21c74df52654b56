"""Static tokens: random texts, of which the settings have the hashes.

A token has 32 random bytes, so nobody finds it by its SHA-256, and a slower hash would protect
nothing more.
"""

import secrets
from collections.abc import Mapping
from hashlib import sha256
from typing import Final

from megaphone.core.access import Grant
from megaphone.settings import Token

PREFIX: Final = "mgp_"
"""By this, people and scanners of leaked secrets see what it is."""
RANDOM_BYTES: Final = 32


def new_token() -> str:
    """Return a new token."""
    return PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


def digest_of(token: str) -> str:
    """Return the hash of a token, as the settings have it. Any text may be presented as a token, so
    it need not be UTF-8."""
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def by_digest(tokens: Mapping[str, Token]) -> dict[str, tuple[str, Token]]:
    """Return the names and the settings of all tokens, by the hash of each."""
    return {
        digest: (name, token)
        for name, token in tokens.items()
        for digest in (token.sha256, token.previous_sha256)
        if digest is not None
    }


def grant_of(token: Token) -> Grant:
    return Grant(frozenset(token.actions), token.streams)
