"""Finds who calls over HTTP, by the header `Authorization`, before the body of the call is read."""

from typing import Final

from aiohttp import hdrs, web

from megaphone.core.access import ANYONE, Action, Caller, Peer
from megaphone.core.pace import loop_time
from megaphone.core.peers import PeerLimits
from megaphone.core.ports import Doorkeeper
from megaphone.rest.connection.guest import connection_of

FORWARDED_FOR: Final = "X-Forwarded-For"


class Callers:
    """Finds the callers of requests that aiohttp serves. The lane asks the doorkeeper itself."""

    def __init__(self, doorkeeper: Doorkeeper, peers: PeerLimits) -> None:
        self._doorkeeper: Final = doorkeeper
        self._peers: Final = peers

    async def of(self, request: web.Request, action: Action) -> Caller:
        """Return the caller of a request, who may do what the request is for.

        Raises: the errors of `Doorkeeper.admit` and `Caller.check`.
        """
        proof = proof_of(request)
        caller = self._doorkeeper.known(proof)
        if caller is None:
            caller = await self._doorkeeper.admit(proof, self.peer_of(request))
        if caller is not ANYONE:
            caller.check(action, loop_time())
        return caller

    async def again(self, caller: Caller, request: web.Request, action: Action) -> Caller:
        """Return the caller of a request that has waited for its body. A reload of the settings may
        ask for a proof meanwhile, where none was needed.

        Raises: the errors of `of`.
        """
        return await self.of(request, action) if caller is ANYONE else caller

    def peer_of(self, request: web.Request) -> Peer:
        """Return who has sent a request, also through proxies that the settings trust."""
        peer = connection_of(request).peer
        forwarded_for = request.headers.getall(FORWARDED_FOR, None)
        if forwarded_for is None:
            return peer
        return peer._replace(ip=self.client_of(peer.ip, ",".join(forwarded_for)))

    def client_of(self, ip: str, forwarded_for: str) -> str:
        """Return the address of a client, from that of its connection and `X-Forwarded-For`."""
        return self._peers.proxies.client_of(ip, forwarded_for)


def proof_of(request: web.Request) -> str | None:
    """Return the value of `Authorization`. Several such headers are one value, which no token has,
    so that nobody can choose which of them counts."""
    values = request.headers.getall(hdrs.AUTHORIZATION, ())
    return ", ".join(values) if values else None
