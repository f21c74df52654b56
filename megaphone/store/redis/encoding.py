"""How an event is kept in Redis: as a list in MessagePack, of which its functions know nothing.

The last members may be left out, and a node ignores those that it does not know.
"""

import msgspec

from megaphone.core.tenants import Tenant
from megaphone.model import Event

TEXT_8, TEXT_16, SHORT_TEXT_MASK = 0xD9, 0xDA, 0x1F
UINT_8 = 0xCC
"""What MessagePack writes before a text, and before a number of more than seven bits: of 8 bits,
or with the next three, of 16, 32 and 64 bits."""

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


def timestamp_in(head: bytes) -> int | None:
    """Return the timestamp of the event with these first bytes; None without an event."""
    if not head:
        return None
    rest = memoryview(head)[1:]
    for _ in range(2):
        rest = rest[_size_of_text(rest) :]
    if rest[0] < UINT_8:
        return rest[0]
    return int.from_bytes(rest[1 : 1 + (1 << rest[0] - UINT_8)])


def _size_of_text(data: memoryview) -> int:
    """Return how many bytes a text has in MessagePack, with those that say so."""
    kind = data[0]
    if kind == TEXT_8:
        return 2 + data[1]
    if kind == TEXT_16:
        return 3 + int.from_bytes(data[1:3])
    return 1 + (kind & SHORT_TEXT_MASK)


def name_of(tenant: Tenant | None) -> str:
    """Return how the functions name a tenant; an empty text stands for any."""
    return "" if tenant is None else tenant.name
