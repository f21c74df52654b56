"""The issuers of the settings, and the callers who have their tokens.

The library for JWTs is imported only where it is used, because it needs 5 MB, and a tenth of a
second at the start.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self, final
from weakref import WeakKeyDictionary

from megaphone.access.ports import KeySource, TrustedIssuer
from megaphone.core.access import Caller
from megaphone.core.tenants import Tenants
from megaphone.settings import Issuer, Settings

if TYPE_CHECKING:
    from megaphone.access.jwt import Verified

JWT_DOTS: Final = 2
LONGEST_SUBJECT: Final = 100
"""How many characters of the subject of a token are in the name of its caller."""


class UnusableKey(OSError):
    """A key in the settings cannot be used. The text names the setting."""


class Signer(NamedTuple):
    """Who answers for a caller."""

    issuer: TrustedIssuer
    thumbprint: str
    """That of the key."""


@final
class JwtVerifier:
    """Verifies the tokens of the issuers in the settings. Within its context it keeps the keys of
    the issuers up to date."""

    def __init__(
        self, settings: Settings, *, tenants: Tenants, wall: Callable[[], float] = time.time
    ) -> None:
        """`wall` returns the Unix time. Raises: UnusableKey."""
        self._tenants = tenants
        self._wall = wall
        self._is_running = False
        self._issuers: Mapping[str, TrustedIssuer] = {}
        """By the `iss` of their tokens."""
        self._signers: WeakKeyDictionary[Caller, Signer] = WeakKeyDictionary()
        self.on_revoked: Callable[[], None] | None = None
        self._take(self._built(settings))

    async def __aenter__(self) -> Self:
        self._is_running = True
        for issuer in self._issuers.values():
            self._start(issuer)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._is_running = False
        for issuer in self._issuers.values():
            await issuer.keys.aclose()

    def fetch_times(self) -> dict[str, float]:
        """Return the Unix time at which the keys of each issuer were fetched last, by its name. It
        is 0 if they never were. Issuers whose keys the settings have are left out."""
        return {
            issuer.name: issuer.keys.fetched_at
            for issuer in self._issuers.values()
            if issuer.keys.fetched_at is not None
        }

    def urls(self) -> list[str]:
        """Return the issuers whose names are URLs, where clients may get tokens."""
        return [iss for iss in self._issuers if iss.startswith(("https://", "http://"))]

    # -- Settings

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Fulfils `megaphone.reload.Reloadable`. Callers are revoked if their issuer has changed,
        because its new settings may not allow what their tokens say."""
        return partial(self._take, self._built(settings))

    def _built(self, settings: Settings) -> dict[str, TrustedIssuer]:
        """Return the issuers of some settings. One that has not changed stays the same object."""
        built = issuers_of(settings)
        for iss, before in self._issuers.items():
            if iss in built and are_same(built[iss], before):
                built[iss] = before
        return built

    def _take(self, issuers: Mapping[str, TrustedIssuer]) -> None:
        before, self._issuers = self._issuers, issuers
        for iss, issuer in before.items():
            if issuers.get(iss) is not issuer:
                issuer.keys.close()
        for issuer in issuers.values() if self._is_running else ():
            self._start(issuer)
        for caller, (issuer, _) in list(self._signers.items()):
            if issuers.get(issuer.settings.issuer) is not issuer:
                caller.revoke()

    def _start(self, issuer: TrustedIssuer) -> None:
        issuer.keys.start(partial(self._revoke_withdrawn, issuer))

    def _revoke_withdrawn(self, issuer: TrustedIssuer) -> None:
        """Revoke the callers whose tokens were signed with keys that are not valid any more."""
        withdrawn = [
            caller
            for caller, signer in list(self._signers.items())
            if signer.issuer is issuer and not issuer.keys.has_key(signer.thumbprint)
        ]
        for caller in withdrawn:
            caller.revoke()
        if withdrawn and self.on_revoked is not None:
            self.on_revoked()

    # -- Tokens

    def recognises(self, token: str) -> bool:
        return token.count(".") == JWT_DOTS and bool(self._issuers)

    async def verify(self, token: str, now: float) -> Caller:
        from megaphone.access.jwt import verify

        verified = await verify(token, self._issuers, self._wall)
        caller = Caller(
            name_of(verified),
            self._tenants.named(verified.tenant),
            verified.grants,
            expires_at=now + verified.left_s,
        )
        self._signers[caller] = Signer(verified.issuer, verified.thumbprint)
        return caller


def issuers_of(settings: Settings) -> dict[str, TrustedIssuer]:
    """Return the issuers of some settings, each by the `iss` of its tokens. Raises: UnusableKey."""
    return {
        issuer.issuer: TrustedIssuer(name, issuer, key_source(name, issuer))
        for name, issuer in settings.auth.issuers.items()
    }


def are_same(one: TrustedIssuer, other: TrustedIssuer) -> bool:
    return one[:2] == other[:2] and one.keys.content == other.keys.content


def key_source(name: str, settings: Issuer) -> KeySource:
    """Return the keys of an issuer. Raises: UnusableKey."""
    from megaphone.access.fetching import FetchedKeys
    from megaphone.access.jwks import fetch_keys
    from megaphone.access.keys import FixedKeys, MalformedKeys, keys_of_file, secret_key

    path = f"auth.issuers.{name}"
    try:
        if settings.secret is not None:
            return FixedKeys(secret_key(settings.secret))
        if settings.public_key_file is not None:
            content = Path(settings.public_key_file).read_bytes()
            return FixedKeys(keys_of_file(content), content)
    except MalformedKeys as error:
        member = "secret" if settings.secret is not None else "public_key_file"
        raise UnusableKey(f"{path}.{member} is not allowed: {error}") from None
    except OSError as error:
        raise UnusableKey(f"{path}.public_key_file cannot be read: {error.strerror}") from None
    return FetchedKeys(name, partial(fetch_keys, settings))


def name_of(verified: "Verified") -> str:
    """Return the name of a caller, for the log. Issuers allow any characters in a subject."""
    subject = "".join(
        one if one.isprintable() else "\N{REPLACEMENT CHARACTER}" for one in verified.subject
    )
    return f"issuer {verified.issuer.name}: {subject[:LONGEST_SUBJECT]}"
