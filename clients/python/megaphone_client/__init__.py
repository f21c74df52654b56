"""The client of the Megaphone broker: write events to channels, and read them without losing any.

    async with Megaphone.from_url("http://localhost:3000") as megaphone:
        async for event in megaphone.read(consumer):
            print(event.stream, event.body)

`megaphone_client.sync` has the same for programs without asyncio.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
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
        TakenOver,
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
    "TakenOver",
    "TokenExpired",
    "TooSlow",
    "Unauthenticated",
    "Unavailable",
    "WriteTimeout",
]

HOMES: Final = {
    "Channel": "events",
    "Event": "events",
    "Failure": "events",
    "Megaphone": "client",
    "Publisher": "publishing",
    "Reader": "reading",
    "Subscriptions": "subscriptions",
}
"""The module of each name that is no error. It is imported with the first of its names that a
program uses, because asyncio alone takes longer to import than this package may."""


if not TYPE_CHECKING:  # with it, a type checker would believe that any name is here

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{HOMES.get(name, 'errors')}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__
