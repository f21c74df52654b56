"""Every error a user of the broker can meet, each with its stable code.

A code is what clients act on; it never changes. How codes travel over HTTP and gRPC is said in one
place, `megaphone.wire.errors`. Texts are for people: they say what was wrong and what is allowed,
and never contain an address or a key, since those are secrets.

    MegaphoneError
     ├── BadRequest            the request itself is wrong; repeating it cannot help
     ├── Unauthenticated       the caller has not proved that it is one that may call
     ├── PermissionDenied      understood, and not allowed
     ├── ChannelNotFound       no such channel, or no longer
     ├── AgentNotFound         no such agent on this node
     ├── ReaderBusy            the channel has a reader already
     ├── WrongMode             an agent is in a mode in which this cannot be done to it
     ├── TooSlow               the client sent or took too little for too long
     ├── PayloadTooLarge       more bytes, or more events, than the broker takes at once
     ├── LimitExceeded         the broker is full; try again after a while
     ├── WriteTimeout          the channel stayed full; the event was not taken
     └── Unavailable           this node cannot serve the request now; another may
          ├── NoAgentAvailable
          ├── AgentMoved
          ├── ShuttingDown
          ├── StoreUnavailable
          └── TargetUnavailable
"""

from typing import ClassVar


class MegaphoneError(Exception):
    """An error that is told to the user as it is.

    Anything else that is raised is a bug, and reaches users as `INTERNAL_SERVER_ERROR` only.
    """

    code: ClassVar[str]
    retry_after_s: float | None = None
    """Seconds after which the same request may succeed; None where there is no saying."""


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

    def __init__(self, message: str = "the channel stayed full: the event was not taken") -> None:
        super().__init__(message)


class Unavailable(MegaphoneError):
    """This node cannot serve the request now. Not raised itself."""


class NoAgentAvailable(Unavailable):
    code = "NO_AGENT"
    retry_after_s = 1.0

    def __init__(self, message: str = "no agent of this node takes new channels yet") -> None:
        super().__init__(message)


class AgentMoved(Unavailable):
    """The agent was here and is on another node now, where a proxy finds it."""

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

    def __init__(self, message: str = "the store of channels does not answer") -> None:
        super().__init__(message)


class TargetUnavailable(Unavailable):
    code = "TARGET_UNAVAILABLE"
    retry_after_s = 1.0

    def __init__(self, message: str = "the target node cannot be reached") -> None:
        super().__init__(message)


def explain(error: Exception) -> str:
    """Return what a JSON decoder found wrong, as the second half of a sentence."""
    text = str(error).removeprefix("JSON is malformed: ")
    return text[:1].lower() + text[1:]
