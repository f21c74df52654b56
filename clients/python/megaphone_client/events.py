"""The values that the client gives to an app: events, channels and failures."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Undecoded:
    """The type of the one value that stands for a body which nobody has asked for."""


UNDECODED: Final = _Undecoded()


class Owner(Protocol):
    """The read that an event came from."""

    def dealt(self, event: "Event[Any]") -> None:
        """Note that the app has dealt with an event, and with every event before it."""

    async def acknowledge(self, event: "Event[Any]") -> None:
        """Do the same, and return when the broker knows."""


class Event(Generic[T]):
    """An event that was read.

    Each delivery of an event has the same `id`. `raw` is the JSON value as it was written.
    """

    __slots__ = (
        "_at",
        "_body",
        "_decode",
        "_number",
        "_owner",
        "_up_to",
        "consumer",
        "id",
        "raw",
        "stream",
        "traceparent",
    )

    def __init__(
        self,
        consumer: str,
        stream: str,
        id: str,
        at: str | int,
        raw: bytes,
        decode: "Callable[[bytes], T]",
        owner: Owner,
        number: int,
        traceparent: str | None = None,
    ) -> None:
        self.consumer = consumer
        """The consumer address of the channel. It is a secret."""
        self.id = id
        self.stream = stream
        self.raw = raw
        self.traceparent = traceparent
        """The trace context of the event, if the read asks for it and the writer sent one."""
        self._at = at
        self._decode = decode
        self._owner = owner
        self._number = number
        self._up_to = id  # the last event that is dealt with when this one is
        self._body: T | _Undecoded = UNDECODED

    @property
    def time(self) -> datetime:
        """When the broker accepted the event, in UTC."""
        if isinstance(self._at, str):
            return datetime.fromisoformat(self._at)
        return EPOCH + timedelta(microseconds=self._at)

    @property
    def body(self) -> T:
        """The value, decoded at the first call.

        Raises: the error of the decoder, for example `msgspec.ValidationError` if the value is not
            of the type that was asked for.
        """
        if self._body is UNDECODED:
            self._body = self._decode(self.raw)
        return cast("T", self._body)

    async def ack(self) -> None:
        """Acknowledge this event and every event before it. Returns when the broker knows.

        Calls at the same time share a request. Raises: MegaphoneError, if the broker does not
        answer for long; the event still counts as dealt with then: the next read says so.
        RuntimeError, if the reader is closed and the broker does not know yet; the error of the
        app's function for headers.
        """
        await self._owner.acknowledge(self)

    def __repr__(self) -> str:
        return f"<Event {self.id} of stream {self.stream!r}, {len(self.raw)} bytes>"


Arrived = tuple[str, str, str | int, bytes, str | None]
"""An event, as it came: stream, id, time (RFC 3339, or microseconds since 1970), body, and trace
context. It is a plain tuple, because that is made in half the time."""


@dataclass(frozen=True, slots=True)
class Channel:
    """A new channel. Write to `producer`; whoever has `consumer` can read. Both are secrets."""

    producer: str
    consumer: str
    protocols: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Channel for {', '.join(self.protocols) or 'any protocol'}>"


@dataclass(frozen=True, slots=True)
class Failure:
    """A message of a batch that one channel did not take. `reason` is a code of the broker, or
    SKIPPED if an earlier message for the same channel failed with TIMEOUT."""

    producer: str
    index: int
    reason: str

    def __repr__(self) -> str:
        return f"<Failure of message {self.index}: {self.reason}>"
