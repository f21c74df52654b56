"""How an event is kept in Redis: as MessagePack, of which the functions there know nothing."""

import msgspec

from megaphone.core.tenants import Tenant
from megaphone.model import Event

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[str, str, int, bytes])


def encoded(event: Event) -> bytes:
    return _encoder.encode((event.id, event.stream_id, event.timestamp_us, event.body))


def decoded(data: bytes) -> Event:
    return Event(*_decoder.decode(data))


def name_of(tenant: Tenant | None) -> str:
    """Return how the functions name a tenant; an empty text stands for any."""
    return "" if tenant is None else tenant.name
