"""What the doorkeeper needs of those who verify tokens, and what they say to it."""

from typing import Protocol

from megaphone.core.access import Caller
from megaphone.errors import Unauthenticated


class InvalidToken(Unauthenticated):
    """A token is not valid here. The client does not learn why."""

    def __init__(self, reason: str) -> None:
        super().__init__("the token is not valid here", was_presented=True)
        self.reason = reason
        """Why, for the log. It repeats nothing of the token but names of claims."""


class Verifier(Protocol):
    """Verifies tokens of one kind."""

    def recognises(self, token: str) -> bool:
        """Return whether a token has the form of this kind. No other verifier is asked then."""

    async def verify(self, token: str, now: float) -> Caller:
        """Return a new caller for a token. `now` is the time of the event loop.

        Raises: InvalidToken; TokenExpired; KeysUnavailable.
        """
