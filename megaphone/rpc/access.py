"""Says to the access log what the calls over gRPC were."""

from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

from megaphone.core.peers import Proxies
from megaphone.model import GRPC
from megaphone.observe.access_log import AccessLog
from megaphone.rpc.callers import caller, client_of

TRACEPARENT = "traceparent"


class GrpcAccess:
    """Makes the lines for calls over gRPC."""

    def __init__(self, log: AccessLog, proxies: Proxies) -> None:
        self._log = log
        self._proxies = proxies

    def begun(self, request: Any, context: Any) -> "ServedCall":
        """Return what makes the line of a call. `request` is its message, if it has one."""
        return ServedCall(self, address_in(request), context)

    def ended(
        self, address: str, context: Any, method: str, code: str, seconds: float, waited_s: float
    ) -> None:
        """Make the line of a call."""
        metadata = context.invocation_metadata() or ()
        self._log.add(
            GRPC,
            method,
            code,
            seconds,
            waited_s,
            caller=caller(),
            address=address,
            peer=client_of(context, self._proxies),
            traceparent=next((str(value) for key, value in metadata if key == TRACEPARENT), ""),
        )


class ServedCall:
    """A call that is served."""

    __slots__ = ("_access", "_address", "_context", "response")

    def __init__(self, access: GrpcAccess, address: str, context: Any) -> None:
        self._access = access
        self._address = address
        self._context = context
        self.response: Any = None
        """The answer, once it is known."""

    def following(self, request: Any) -> Any:
        """Return the request of the call. If it is a stream, because the caller is admitted before
        a message is read, the line has the address in the message."""
        return self._noted(request) if isinstance(request, AsyncIterable) else request

    async def _noted(self, messages: AsyncIterable[Any]) -> AsyncIterator[Any]:
        async for message in messages:
            self._address = self._address or address_in(message)
            yield message

    def __call__(self, method: str, code: str, seconds: float, waited_s: float) -> None:
        """Make the line, because the call has ended."""
        address = self._address or address_in(self.response)
        self._access.ended(address, self._context, method, code, seconds, waited_s)


def address_in(message: Any) -> str:
    """Return the address of the channel that a message is about; empty without one."""
    for name in ("producer_address", "consumer_address"):
        address = getattr(message, name, "")
        if isinstance(address, str) and address:
            return address
    return ""
