"""Finds who calls over HTTP, by the header `Authorization`, before the body of the call is read."""

from typing import Final

from aiohttp import hdrs, web

from megaphone.core.access import ANYONE, Action, Caller
from megaphone.core.pace import loop_time
from megaphone.core.ports import Doorkeeper
from megaphone.rest.connection.guest import connection_of


class Callers:
    """Finds the callers of requests that aiohttp serves. The lane asks the doorkeeper itself."""

    def __init__(self, doorkeeper: Doorkeeper) -> None:
        self._doorkeeper: Final = doorkeeper

    async def of(self, request: web.Request, action: Action) -> Caller:
        """Return the caller of a request, who may do what the request is for.

        Raises: the errors of `Doorkeeper.admit` and `Caller.check`.
        """
        proof = proof_of(request)
        caller = self._doorkeeper.known(proof)
        if caller is None:
            caller = await self._doorkeeper.admit(proof, connection_of(request).peer)
        if caller is not ANYONE:
            caller.check(action, loop_time())
        return caller


def proof_of(request: web.Request) -> str | None:
    """Return the value of `Authorization`. Several such headers are one value, which no token has,
    so that nobody can choose which of them counts."""
    values = request.headers.getall(hdrs.AUTHORIZATION, ())
    return ", ".join(values) if values else None
