"""The interfaces that the doorkeeper needs of verifiers, and that verifiers need of issuers.

The library for JWTs is loaded only if there are issuers, so nothing here imports it.
"""

from typing import TYPE_CHECKING, NamedTuple, Protocol

from megaphone.core.access import Caller
from megaphone.errors import Unauthenticated
from megaphone.settings import Issuer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from megaphone.access.keys import Key


class InvalidToken(Unauthenticated):
    """A token is not valid here. The client does not learn why."""

    def __init__(self, reason: str) -> None:
        super().__init__("the token is not valid here", was_presented=True)
        self.reason = reason
        """Why, for the log. It repeats nothing of the token but names of claims."""


class Verifier(Protocol):
    """Verifies tokens of one kind."""

    on_revoked: "Callable[[], None] | None"
    """Called when callers of this verifier were revoked although no settings have changed."""

    def recognises(self, token: str) -> bool:
        """Return whether a token has the form of this kind. No other verifier is asked then."""

    async def verify(self, token: str, now: float) -> Caller:
        """Return a new caller for a token. `now` is the time of the event loop.

        Raises: InvalidToken; TokenExpired; KeysUnavailable.
        """


class KeySource(Protocol):
    """The keys of one issuer."""

    @property
    def content(self) -> bytes:
        """What the file of the keys contained, if they are from a file."""

    @property
    def fetched_at(self) -> float | None:
        """The Unix time at which the keys were fetched last: 0 if they never were, None if the
        settings have them."""

    def start(self, on_withdrawn: "Callable[[], None]") -> None:
        """Keep the keys up to date from now on, if the issuer publishes them. Returns at once.

        `on_withdrawn` is called when a key is not valid any more.
        """

    def has_key(self, thumbprint: str) -> bool:
        """Return whether a key that has verified a token is valid. `thumbprint` is that of the
        key."""

    def close(self) -> None:
        """End what `start` has begun. Calls that wait for keys get KeysUnavailable."""

    async def aclose(self) -> None:
        """Do the same as `close`, and wait until nothing is left of it."""

    async def find(self, algorithm: str, kid: str | None) -> "Sequence[Key]":
        """Return the keys that may have signed a token, which names its algorithm and maybe a key.

        Raises: KeysUnavailable, if the issuer may have such a key, but does not answer.
        """


class TrustedIssuer(NamedTuple):
    """An issuer whose tokens are valid here."""

    name: str
    settings: Issuer
    keys: KeySource
