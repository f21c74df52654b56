"""How an event is kept in Redis: as a list in MessagePack, of which its functions know nothing.

The last members may be left out, and a node ignores those that it does not know.
"""

import msgspec

from megaphone.core.tenants import Tenant
from megaphone.model import Event

_encoder = msgspec.msgpack.Encoder()


class Kept(msgspec.Struct, array_like=True, gc=False):
    """An event in Redis."""

    event_id: str
    stream_id: str
    timestamp_us: int
    body: bytes
    trace: str | None = None


_decoder = msgspec.msgpack.Decoder(Kept)


def encoded(event: Event) -> bytes:
    kept = (event.id, event.stream_id, event.timestamp_us, event.body)
    return _encoder.encode(kept if event.trace is None else (*kept, event.trace))


def decoded(data: bytes) -> Event:
    kept = _decoder.decode(data)
    return Event(kept.event_id, kept.stream_id, kept.timestamp_us, kept.body, kept.trace)


def name_of(tenant: Tenant | None) -> str:
    """Return how the functions name a tenant; an empty text stands for any."""
    return "" if tenant is None else tenant.name
