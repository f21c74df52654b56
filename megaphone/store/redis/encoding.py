"""How an event is kept in Redis: as MessagePack, of which the functions there know nothing."""

import msgspec

from megaphone.model import Event

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[str, str, int, bytes])


def encoded(event: Event) -> bytes:
    return _encoder.encode((event.id, event.stream_id, event.timestamp_us, event.body))


def decoded(data: bytes) -> Event:
    return Event(*_decoder.decode(data))
