"""Says to the access log what the calls over HTTP were, whoever has answered them."""

from typing import Any

from aiohttp import web

from megaphone.core.access import Names, Peer
from megaphone.core.ports import Doorkeeper
from megaphone.model import HTTP
from megaphone.observe.access_log import AccessLog
from megaphone.observe.calls import CANCELLED, OK, OTHER
from megaphone.rest.callers import FORWARDED_FOR, Callers, proof_of
from megaphone.rest.lane import Request

TRACEPARENT = "traceparent"
FORWARDED = FORWARDED_FOR.lower().encode()
CONSUMER = b'"consumerAddress":"'
CODE = b'"code":"'
SEGMENTS = {
    "create": "create",
    "write": "write",
    "write-batch": "write_batch",
    "read": "read",
    "ack": "ack",
    "channelsExists": "exists",
}
"""What metrics call the calls that the lane answers, by the first part of their paths."""


class HttpAccess:
    """Makes the lines for calls over HTTP."""

    def __init__(self, log: AccessLog, doorkeeper: Doorkeeper, callers: Callers) -> None:
        self._log = log
        self._doorkeeper = doorkeeper
        self._callers = callers
        self._request = Request()

    def begun(self, request: web.Request) -> "ServedRequest":
        """Return what makes the line of a call that aiohttp serves."""
        return ServedRequest(self, request, self._peer_of(request))

    def _peer_of(self, request: web.Request) -> Peer:
        try:
            return self._callers.peer_of(request)
        except ConnectionError:  # the client has gone
            return Peer("")

    def ended(
        self,
        request: web.Request,
        peer: Peer,
        answer: bytes,
        method: str,
        code: str,
        seconds: float,
        waited_s: float,
    ) -> None:
        """Make the line of a call that aiohttp has served."""
        if code == OK and self._log.only_errors:
            return
        address = ""
        if method != OTHER:  # others may be refused before their route is looked for
            values = request.match_info
            address = values.get("producer_address") or values.get("consumer_address") or ""
        self._log.add(
            HTTP,
            method,
            code,
            seconds,
            waited_s,
            caller=self._doorkeeper.known(proof_of(request), peer.certificate_names),
            address=address or created_in(answer, method),
            peer=peer.ip,
            traceparent=request.headers.get(TRACEPARENT, ""),
        )

    def answered(self, data: bytes, answer: bytes, seconds: float, ip: str, names: Names) -> None:
        """Make the line of a call that the lane has answered. `data` is the request."""
        code = code_in(answer)
        if code == OK and self._log.only_errors:
            return
        request = self._request
        if request.read(data) is not None:
            return  # which cannot be, because the lane has read it
        _, first, *rest = request.url.partition(b"?")[0].decode().split("/")
        method = SEGMENTS.get(first, OTHER)
        forwarded_for = request.headers.get(FORWARDED, b"").decode("latin-1")
        self._log.add(
            HTTP,
            method,
            code,
            seconds,
            0.0,  # because the lane never waits
            caller=self._doorkeeper.known(request.proof, names),
            address=rest[0] if rest else created_in(answer, method),
            peer=self._callers.client_of(ip, forwarded_for),
            traceparent=request.headers.get(TRACEPARENT.encode(), b"").decode("latin-1"),
        )


class ServedRequest:
    """A call that aiohttp serves."""

    __slots__ = ("_access", "_peer", "_request", "response")

    def __init__(self, access: HttpAccess, request: web.Request, peer: Peer) -> None:
        self._access = access
        self._request = request
        # Asked for at the begin, because a read leaves aiohttp with its connection.
        self._peer = peer
        self.response: web.StreamResponse | None = None
        """The answer, once it is known."""

    def __call__(self, method: str, code: str, seconds: float, waited_s: float) -> None:
        """Make the line, because the call has ended."""
        body: Any = getattr(self.response, "body", None)
        answer = body if isinstance(body, bytes) else b""
        self._access.ended(self._request, self._peer, answer, method, code, seconds, waited_s)


def created_in(answer: bytes, method: str) -> str:
    """Return the consumer address of the channel that a call has created."""
    if method != "create":
        return ""
    _, found, rest = answer.partition(CONSUMER)
    return rest.partition(b'"')[0].decode() if found else ""


def code_in(answer: bytes) -> str:
    """Return the code of an answer of the lane; an empty one was not sent."""
    if not answer:
        return CANCELLED
    if answer[9:10] == b"2":
        return OK
    return answer.partition(CODE)[2].partition(b'"')[0].decode()
