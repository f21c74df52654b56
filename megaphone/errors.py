"""Every error that a user of the broker can get, each with its stable code.

Clients act on the code, so a code never changes. Only `megaphone.wire.errors` maps codes to
statuses of HTTP and gRPC. Messages are for people: they say what is wrong and what is allowed. They
never contain an address or a key, because those are secrets.

    MegaphoneError
     ├── BadRequest            the request itself is wrong; it would fail again
     ├── Unauthenticated       the calling node has not proved that it has the secret
     ├── PermissionDenied      the request is understood, but not allowed
     ├── ChannelNotFound       the channel does not exist, or does not exist any more
     ├── AgentNotFound         the agent is not on this node
     ├── ReaderBusy            the channel already has a reader
     ├── WrongMode             the mode of the agent does not allow this command
     ├── TooSlow               the client sent or took too few bytes for too long
     ├── PayloadTooLarge       the request has more bytes or events than one may have
     ├── LimitExceeded         a limit of the node is reached; try again later
     ├── WriteTimeout          the channel stayed full; the event was not accepted
     └── Unavailable           this node cannot serve the request now; another node may
          ├── NoAgentAvailable
          ├── AgentMoved
          ├── ShuttingDown
          ├── StoreUnavailable
          └── TargetUnavailable
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
    code = "BAD_REQUEST"


class Unauthenticated(MegaphoneError):
    code = "UNAUTHENTICATED"


class PermissionDenied(MegaphoneError):
    code = "PERMISSION_DENIED"


class ChannelNotFound(MegaphoneError):
    code = "NOT_FOUND"

    def __init__(self, message: str = "no such channel: it has expired, or never was here") -> None:
        super().__init__(message)


class AgentNotFound(MegaphoneError):
    code = "NO_SUCH_AGENT"


class ReaderBusy(MegaphoneError):
    code = "BUSY"

    def __init__(self, message: str = "the channel is being read: one reader at a time") -> None:
        super().__init__(message)


class WrongMode(MegaphoneError):
    code = "WRONG_MODE"


class TooSlow(MegaphoneError):
    code = "TOO_SLOW"


class PayloadTooLarge(MegaphoneError):
    code = "PAYLOAD_TOO_LARGE"


class LimitExceeded(MegaphoneError):
    code = "LIMIT_EXCEEDED"
    retry_after_s = 10.0

    def __init__(self, message: str, *, retry_after_s: float = 10.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class WriteTimeout(MegaphoneError):
    code = "TIMEOUT"
    retry_after_s = 1.0

    def __init__(
        self, message: str = "the channel stayed full: the event was not accepted"
    ) -> None:
        super().__init__(message)


class Unavailable(MegaphoneError):
    """This node cannot serve the request now. Only subclasses are raised."""


class NoAgentAvailable(Unavailable):
    code = "NO_AGENT"
    retry_after_s = 1.0

    def __init__(self, message: str = "no agent of this node takes new channels yet") -> None:
        super().__init__(message)


class AgentMoved(Unavailable):
    """The agent has moved from this node to another one, where a proxy finds it."""

    code = "MOVED"
    retry_after_s = 1.0


class ShuttingDown(Unavailable):
    code = "SHUTTING_DOWN"
    retry_after_s = 1.0

    def __init__(self, message: str = "this node is shutting down") -> None:
        super().__init__(message)


class StoreUnavailable(Unavailable):
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


class TargetUnavailable(Unavailable):
    code = "TARGET_UNAVAILABLE"
    retry_after_s = 1.0

    def __init__(self, message: str = "the target node cannot be reached") -> None:
        super().__init__(message)


def explain(error: Exception) -> str:
    """Return what a JSON decoder found wrong, as the second half of a sentence."""
    text = str(error).removeprefix("JSON is malformed: ")
    return text[:1].lower() + text[1:]
