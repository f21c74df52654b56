"""What the client needs of a protocol. `http` and `grpc` implement it."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from megaphone_client.errors import ConnectionFailed, MegaphoneError, Unauthenticated
from megaphone_client.events import Arrived, Channel, Failure
from megaphone_client.state import Ask

Token = str | Callable[[], Awaitable[str]]
"""A token, or an asynchronous function that is asked for it before each call."""
Headers = Mapping[str, str] | Callable[[], Awaitable[Mapping[str, str]]]
"""Headers for each call, or an asynchronous function that is asked for them before each call."""


MOST_CHANNELS: Final = 100
"""How many channels one read may have."""


class Message(NamedTuple):
    """An event to write. Two messages with the same `key` are one event."""

    producer: str
    stream: str
    body: bytes
    key: str | None
    trace: str | None = None
    """The trace context."""

    def __repr__(self) -> str:
        return f"<Message of {len(self.body)} bytes>"


class Create(NamedTuple):
    """What the creator of a channel asks for. None means what the broker gives each channel."""

    protocols: Sequence[str]
    ttl_s: float | None
    capacity: int | None
    label: str | None


class OpenRead(Protocol):
    """A read that the broker has begun to answer."""

    recovered: bool | None
    position: str | None
    """The event before the first one that will come, if the broker names it."""

    async def next(self) -> Sequence[Arrived] | None:
        """Return what came next: events, or nothing for a heartbeat; None at a clean end.

        Raises: ConnectionFailed, at any other end; ProtocolError.
        """

    def close(self) -> None:
        """End the read at once."""


@dataclass(slots=True)
class Part:
    """What came of one channel of a read of many. `channel` is its index in the request."""

    channel: int
    events: list[Arrived] = field(default_factory=list, repr=False)
    has_begun: bool = False
    position: str | None = None
    recovered: bool | None = None
    is_done: bool = False
    error: MegaphoneError | None = None
    """Why the read of the channel is done, if it is not a clean end."""


class NotOffered(MegaphoneError):
    """The broker is older than this call."""

    def __init__(self) -> None:
        super().__init__("NOT_OFFERED", "the broker cannot read many channels by one call")


class OpenReadOfMany(Protocol):
    """A read of many channels that the broker has begun to answer."""

    async def next(self) -> Sequence[Part] | None:
        """Return what came next, in order; nothing for a heartbeat; None at a clean end.

        Raises: NotOffered; ConnectionFailed, at any other end; ProtocolError.
        """

    def close(self) -> None:
        """End the read at once."""


class Transport(Protocol):
    """The calls of a client over one protocol. All channels of a call have one agent.

    Each raises the error of the broker by its code, or
    ConnectionFailed. `timeout_s` limits one request."""

    batch_has_one_trace: bool
    """Whether all events of one call of `publish` have the same trace context."""

    def lane_of(self, producer: str) -> str:
        """Return the name of what a channel shares `publish` with. One call of `publish` has events
        of one lane."""

    async def create(self, request: Create, timeout_s: float) -> Channel: ...

    async def write(self, message: Message, timeout_s: float) -> str: ...

    async def write_batch(
        self,
        producers: Sequence[str],
        messages: Sequence[tuple[str, bytes]],
        key: str | None,
        timeout_s: float,
        trace: str | None,
    ) -> list[Failure]: ...

    async def publish(
        self, messages: Sequence[Message], timeout_s: float, *, is_apart: bool = False
    ) -> list[str | MegaphoneError | None]:
        """Write events in order. With `is_apart` no other call for the lane waits for this one.

        Returns for each: its id, None if the broker does not name it, or why it was refused."""

    @property
    def connection(self) -> object:
        """What the next read uses, for `distrust`."""

    def distrust(self, connection: object) -> None:
        """Use a connection on which nothing came for too long for no further call."""

    async def read(self, ask: Ask) -> OpenRead: ...

    async def read_many(self, asks: Sequence[Ask]) -> OpenReadOfMany:
        """Read channels that are all asked in the same way, at most `MOST_CHANNELS` of them.

        Raises: NotOffered.
        """

    async def acknowledge(self, consumer: str, event_id: str, timeout_s: float) -> int: ...

    async def exists(self, addresses: Sequence[str], timeout_s: float) -> dict[str, bool]: ...

    async def dispose(self, producer: str, timeout_s: float) -> None: ...

    async def aclose(self) -> None: ...


async def headers_now(headers: Headers | None, timeout_s: float | None) -> dict[str, str]:
    """Return the headers for one call.

    Raises: ConnectionFailed, if the function of the app found no connection or had no time; any
        other error of it.
    """
    if headers is None or isinstance(headers, Mapping):
        return dict(headers or {})
    try:
        async with asyncio.timeout(timeout_s):
            return dict(await headers())
    except OSError as error:  # TimeoutError is one too
        name = type(error).__name__
        raise ConnectionFailed(f"no headers: {name}", may_have_arrived=False) from error


VISIBLE: Final = re.compile(r"[!-~]+")


def with_token(token: Token | None, headers: Headers | None) -> Headers | None:
    """Return headers with a token. Headers that have an `Authorization` of their own keep it.

    Raises: ValueError, if the token has characters that no token has. The error does not repeat it.
    """
    if token is None:
        return headers
    if isinstance(token, str):
        authorization = bearer(token)
        if headers is None or isinstance(headers, Mapping):
            return authorized(authorization, headers or {})

    async def both() -> Mapping[str, str]:
        present = authorization if isinstance(token, str) else bearer(await token())
        more = {} if headers is None else headers
        return authorized(present, more if isinstance(more, Mapping) else await more())

    return both


def bearer(token: str) -> str:
    if not VISIBLE.fullmatch(token):
        raise ValueError("a token has only ASCII characters that are visible, and no spaces")
    return f"Bearer {token}"


def authorized(authorization: str, headers: Mapping[str, str]) -> dict[str, str]:
    if any(name.lower() == "authorization" for name in headers):
        return dict(headers)
    return {"Authorization": authorization, **headers}


def is_end_for_a_new_token(error: MegaphoneError | None) -> bool:
    """Return whether an error ends a read that has begun because its token is not valid any more.
    That is a clean end, and the next read learns whether there is a new token by now."""
    return isinstance(error, Unauthenticated)


AGENT: Final = re.compile(r"[A-Za-z0-9_-]+")


def agent_of(address: str) -> str:
    """Return the name by which a proxy routes the calls for a channel; nothing for what is no
    address, which any node refuses."""
    agent = address.partition(".")[0]
    return agent if AGENT.fullmatch(agent) else ""


def by_agent(addresses: Iterable[str]) -> list[list[str]]:
    """Return addresses in groups, each of one agent. The channels of one call must have the same
    agent, because a proxy routes by it."""
    groups: dict[str, list[str]] = {}
    for address in addresses:
        groups.setdefault(agent_of(address), []).append(address)
    return list(groups.values())
