"""Every error that a user of the broker can get, each with its stable code.

Clients act on the code, so a code never changes. Only `megaphone.wire.errors` maps codes to
statuses of HTTP and gRPC. Messages are for people: they say what is wrong and what is allowed. They
never contain an address or a key, because those are secrets.

The docstring of each error is its meaning in `docs/errors.md` and in the description of the API.
"""

from typing import ClassVar


class MegaphoneError(Exception):
    """An error whose code and message the user gets.

    Any other exception is a bug. The user then gets only `INTERNAL_SERVER_ERROR`.
    """

    code: ClassVar[str]
    retry_after_s: float | None = None
    """Seconds after which the same request may succeed; None if that is not known."""


class BadRequest(MegaphoneError):
    """The request is wrong and would fail again. The message says what is allowed."""

    code = "BAD_REQUEST"


class Unauthenticated(MegaphoneError):
    """The call needs a token, or another proof of who calls, and has none that is valid here. Why a
    proof is not valid is only in the log of the node."""

    code = "UNAUTHENTICATED"

    def __init__(self, message: str, *, was_presented: bool = False) -> None:
        super().__init__(message)
        self.was_presented = was_presented
        """Whether the call had a proof, which is not valid."""


class NodeUnauthenticated(Unauthenticated):
    """Two nodes have not proved to each other that they have the same secret. Only nodes and
    operators get this error."""


class TokenExpired(MegaphoneError):
    """The token has expired. Get a new one and call again."""

    code = "TOKEN_EXPIRED"

    def __init__(
        self, message: str = "the token has expired: get a new one and call again"
    ) -> None:
        super().__init__(message)


class PermissionDenied(MegaphoneError):
    """The token does not allow this call; or a consumer address was used to write, which it cannot
    do; or a page of another origin tried to create a channel."""

    code = "PERMISSION_DENIED"

    def __init__(self, message: str, *, action: str | None = None) -> None:
        super().__init__(message)
        self.action = action
        """The name of the action that the token of the caller does not allow; None if the call is
        refused for another reason."""


class ChannelNotFound(MegaphoneError):
    """The channel does not exist: it has expired, or was never on this node."""

    code = "NOT_FOUND"

    def __init__(self, message: str = "no such channel: it has expired, or never was here") -> None:
        super().__init__(message)


class AgentNotFound(MegaphoneError):
    """This node has no such agent. Only operators and proxies get this error."""

    code = "NO_SUCH_AGENT"


class ReaderBusy(MegaphoneError):
    """The channel already has a reader."""

    code = "BUSY"

    def __init__(self, message: str = "the channel is being read: one reader at a time") -> None:
        super().__init__(message)


class TakenOver(MegaphoneError):
    """Another reader has taken the place of this one, which came back with `returning`."""

    code = "TAKEN_OVER"

    def __init__(self, message: str = "another reader reads the channel now") -> None:
        super().__init__(message)


class WrongMode(MegaphoneError):
    """The state of the agent does not allow this command. Only operators get this error."""

    code = "WRONG_MODE"


class TooSlow(MegaphoneError):
    """The request body did not arrive in time, or the reader took no bytes for too long."""

    code = "TOO_SLOW"


class PayloadTooLarge(MegaphoneError):
    """The request has more bytes, events or addresses than one request may have."""

    code = "PAYLOAD_TOO_LARGE"


class UnsupportedMediaType(MegaphoneError):
    """The request body has another content type than `application/json`, or none."""

    code = "UNSUPPORTED_MEDIA_TYPE"


class LimitExceeded(MegaphoneError):
    """The node has reached its limit of channels, bytes, waiting writers or connections. Call
    again after the given delay."""

    code = "LIMIT_EXCEEDED"
    retry_after_s = 10.0

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float = 10.0,
        limit: str | None = None,
        most: int | None = None,
        tenant: str | None = None,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.limit = limit
        """The name of the limit of a tenant, or of callers at one address; None for a limit that
        all clients of the node share."""
        self.most = most
        """The largest number that the limit allows, if it allows a number of things."""
        self.tenant = tenant
        """The name, in metrics, of the tenant that has reached the limit."""


class RateLimited(MegaphoneError):
    """The caller, or its tenant, calls more often than it may. Call again after the given delay."""

    code = "RATE_LIMITED"
    retry_after_s = 1.0

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float = 1.0,
        limit: str | None = None,
        per_s: float | None = None,
        tenant: str | None = None,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.limit = limit
        """The name of the limit; None if that is not known."""
        self.per_s = per_s
        """How much the limit allows in a second."""
        self.tenant = tenant
        """The name, in metrics, of the tenant that has reached the limit."""


class WriteTimeout(MegaphoneError):
    """The channel stayed full. The event was not accepted; try again."""

    code = "TIMEOUT"
    retry_after_s = 1.0

    def __init__(
        self, message: str = "the channel stayed full: the event was not accepted"
    ) -> None:
        super().__init__(message)


class Unavailable(MegaphoneError):
    """This node cannot serve the request now. Only subclasses are raised."""


class NoAgentAvailable(Unavailable):
    """No agent of this node takes new channels yet. Try again."""

    code = "NO_AGENT"
    retry_after_s = 1.0

    def __init__(self, message: str = "no agent of this node takes new channels yet") -> None:
        super().__init__(message)


class AgentMoved(Unavailable):
    """The channel has moved to another node. Call again, through a proxy."""

    code = "MOVED"
    retry_after_s = 1.0


class ShuttingDown(Unavailable):
    """This node is stopping. Try again, through a proxy."""

    code = "SHUTTING_DOWN"
    retry_after_s = 1.0

    def __init__(self, message: str = "this node is shutting down") -> None:
        super().__init__(message)


class StoreUnavailable(Unavailable):
    """The shared store does not answer. A write may have been accepted: repeat it with its
    idempotency key."""

    code = "STORE_UNAVAILABLE"
    retry_after_s = 1.0

    def __init__(
        self,
        message: str = "the store of channels does not answer",
        *,
        may_have_happened: bool = False,
    ) -> None:
        super().__init__(message)
        self.may_have_happened = may_have_happened
        """Whether the store may have done what it was asked, because only its answer is missing."""


class KeysUnavailable(Unavailable):
    """The node cannot get the keys of the issuer of the token, so it cannot check the token. Try
    again."""

    code = "KEYS_UNAVAILABLE"
    retry_after_s = 1.0

    def __init__(self, message: str = "the keys of the token's issuer cannot be had now") -> None:
        super().__init__(message)


class TargetUnavailable(Unavailable):
    """The target node of an agent does not answer. Only operators get this error."""

    code = "TARGET_UNAVAILABLE"
    retry_after_s = 1.0

    def __init__(self, message: str = "the target node cannot be reached") -> None:
        super().__init__(message)


def explain(error: Exception) -> str:
    """Return what a JSON decoder found wrong, as the second half of a sentence."""
    text = str(error).removeprefix("JSON is malformed: ")
    return text[:1].lower() + text[1:]
