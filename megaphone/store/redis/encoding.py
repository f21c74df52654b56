"""How an event is kept in Redis: as MessagePack, of which the functions there know nothing."""

from functools import lru_cache

import msgspec

from megaphone.model import LINE_BODY_BYTES, Event

REMEMBERED = 100
"""How many events are remembered."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[str, str, int, bytes])


def encoded(event: Event) -> bytes:
    """Return an event as bytes. Those of the latest small events are remembered, because a batch
    writes the same events to many channels."""
    return _remembered(event) if len(event.body) <= LINE_BODY_BYTES else _encode(event)


def _encode(event: Event) -> bytes:
    return _encoder.encode((event.id, event.stream_id, event.timestamp_us, event.body))


_remembered = lru_cache(REMEMBERED)(_encode)


def decoded(data: bytes) -> Event:
    return Event(*_decoder.decode(data))
