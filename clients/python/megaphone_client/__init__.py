"""The client of the Megaphone broker: write events to channels, and read them without losing any.

    async with Megaphone.from_url("http://localhost:3000") as megaphone:
        async for event in megaphone.read(consumer):
            print(event.stream, event.body)

`megaphone_client.sync` has the same for programs without asyncio.
"""

from megaphone_client.client import Megaphone
from megaphone_client.errors import (
    BadRequest,
    ChannelNotFound,
    ConnectionFailed,
    EventsLost,
    LimitExceeded,
    MegaphoneError,
    OutcomeUnknown,
    PayloadTooLarge,
    PermissionDenied,
    ProtocolError,
    RateLimited,
    ReaderBusy,
    TokenExpired,
    TooSlow,
    Unauthenticated,
    Unavailable,
    WriteTimeout,
)
from megaphone_client.events import Channel, Event, Failure
from megaphone_client.publishing import Publisher
from megaphone_client.reading import Reader
from megaphone_client.subscriptions import Subscriptions

__all__ = [
    "BadRequest",
    "Channel",
    "ChannelNotFound",
    "ConnectionFailed",
    "Event",
    "EventsLost",
    "Failure",
    "LimitExceeded",
    "Megaphone",
    "MegaphoneError",
    "OutcomeUnknown",
    "PayloadTooLarge",
    "PermissionDenied",
    "ProtocolError",
    "Publisher",
    "RateLimited",
    "Reader",
    "ReaderBusy",
    "Subscriptions",
    "TokenExpired",
    "TooSlow",
    "Unauthenticated",
    "Unavailable",
    "WriteTimeout",
]
