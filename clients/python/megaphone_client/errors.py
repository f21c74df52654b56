"""Every error of the client, and the table that says which class a code of the broker becomes.

An error says what happened by its class and its `code`, never by its text. Texts are for people,
and contain no address.

    MegaphoneError
     ├── BadRequest            the request itself is wrong; it would fail again
     ├── Unauthenticated       the broker wants a token, and the one it got is not valid there
     │    └── TokenExpired     the token has expired; another one may do
     ├── PermissionDenied      the request is not allowed
     ├── ChannelNotFound       the channel does not exist, or does not exist any more
     ├── ReaderBusy            the channel has another reader
     │    └── TakenOver        another reader has taken the channel from this one
     ├── TooSlow               the broker waited too long for our bytes, or for us to take its own
     ├── PayloadTooLarge       the request has more bytes or events than one may have
     ├── LimitExceeded         a limit of the node is reached; try again later
     ├── RateLimited           the caller or its tenant calls too often; try again later
     ├── WriteTimeout          the channel stayed full: the event was not taken
     ├── Unavailable           the broker cannot serve the request now; another try may succeed
     ├── ConnectionFailed      there is no connection, or it broke, or nothing came for too long
     ├── OutcomeUnknown        no answer came: the event may have been taken, or not
     ├── EventsLost            events are missing here; iterating again goes on behind the gap
     └── ProtocolError         an answer is not one of this broker's
"""

from typing import ClassVar, Final


class MegaphoneError(Exception):
    """An error of the broker or of the client.

    `code` is one of the broker's codes, or one of the client's own. `retry_after_s` is the number
    of seconds after which another try may succeed, if the broker gave one.
    """

    may_heal: ClassVar[bool] = False
    """Whether the same request may succeed later."""

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(code, message, retry_after_s)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class BadRequest(MegaphoneError):
    """The request itself is wrong; it would fail again."""


class Unauthenticated(MegaphoneError):
    """The broker wants a token, and got none that is valid there."""


class TokenExpired(Unauthenticated):
    """The token has expired. The same request with another token may succeed."""


class PermissionDenied(MegaphoneError):
    """The request is not allowed."""


class ChannelNotFound(MegaphoneError):
    """The channel does not exist, or does not exist any more."""


class ReaderBusy(MegaphoneError):
    """The channel has another reader."""

    may_heal = True


class TakenOver(ReaderBusy):
    """Another reader has taken the channel from this one, or got it while this one was away."""

    may_heal = False


class TooSlow(MegaphoneError):
    """The broker waited too long for our bytes, or for us to take its own."""

    may_heal = True


class PayloadTooLarge(MegaphoneError):
    """The request has more bytes, events or addresses than one may have."""


class LimitExceeded(MegaphoneError):
    """A limit of the node is reached. Try again after `retry_after_s`."""

    may_heal = True


class RateLimited(MegaphoneError):
    """The caller or its tenant calls more often than it may. Try again after `retry_after_s`."""

    may_heal = True


class WriteTimeout(MegaphoneError):
    """The channel stayed full: the event was not taken."""

    may_heal = True


class Unavailable(MegaphoneError):
    """The broker, or a proxy before it, cannot serve the request now."""

    may_heal = True


class ConnectionFailed(MegaphoneError):
    """There is no connection, or it broke, or nothing came for too long."""

    may_heal = True

    def __init__(self, message: str, *, may_have_arrived: bool = True) -> None:
        super().__init__("CONNECTION_FAILED", message)
        self.may_have_arrived = may_have_arrived
        """Whether the broker may have got the request."""


class OutcomeUnknown(MegaphoneError):
    """No answer came: the event may have been taken, or not."""

    def __init__(self, message: str) -> None:
        super().__init__("OUTCOME_UNKNOWN", message)


class EventsLost(MegaphoneError):
    """Events are missing here. Iterating again goes on with the first event after the gap."""

    def __init__(
        self, message: str = "events are missing here: fetch the state they would have changed"
    ) -> None:
        super().__init__("EVENTS_LOST", message)


class ProtocolError(MegaphoneError):
    """An answer is not one of this broker's."""

    def __init__(self, message: str) -> None:
        super().__init__("PROTOCOL_ERROR", message)


CLASSES: Final[dict[str, type[MegaphoneError]]] = {
    "BAD_REQUEST": BadRequest,
    "UNAUTHENTICATED": Unauthenticated,
    "TOKEN_EXPIRED": TokenExpired,
    "PERMISSION_DENIED": PermissionDenied,
    "NOT_FOUND": ChannelNotFound,
    "NO_SUCH_AGENT": MegaphoneError,
    "BUSY": ReaderBusy,
    "TAKEN_OVER": TakenOver,
    "WRONG_MODE": MegaphoneError,
    "TOO_SLOW": TooSlow,
    "PAYLOAD_TOO_LARGE": PayloadTooLarge,
    "UNSUPPORTED_MEDIA_TYPE": BadRequest,
    "LIMIT_EXCEEDED": LimitExceeded,
    "RATE_LIMITED": RateLimited,
    "TIMEOUT": WriteTimeout,
    "SKIPPED": WriteTimeout,
    "MOVED": Unavailable,
    "NO_AGENT": Unavailable,
    "SHUTTING_DOWN": Unavailable,
    "STORE_UNAVAILABLE": Unavailable,
    "KEYS_UNAVAILABLE": Unavailable,
    "TARGET_UNAVAILABLE": Unavailable,
    "INTERNAL_SERVER_ERROR": Unavailable,
}
"""The class of each code of the broker. An operator's errors, which no call here can get, have none
of their own."""

NOT_TAKEN: Final = frozenset(
    {"MOVED", "NO_AGENT", "SHUTTING_DOWN", "KEYS_UNAVAILABLE", "TARGET_UNAVAILABLE"}
)
"""Codes of `Unavailable` with which the broker says that it has done nothing."""


def error_of(
    code: str, message: str, *, is_unavailable: bool, retry_after_s: float | None = None
) -> MegaphoneError:
    """Return the error for an answer. `is_unavailable` decides for a code that is not known here:
    whether the status of the answer says that another try may succeed."""
    fallback = Unavailable if is_unavailable else MegaphoneError
    return CLASSES.get(code, fallback)(code, message, retry_after_s)


def may_be_done(error: MegaphoneError) -> bool:
    """Return whether a request that failed with this error may have had its effect all the same."""
    if isinstance(error, ConnectionFailed):
        return error.may_have_arrived
    return isinstance(error, Unavailable) and error.code not in NOT_TAKEN
