"""The events of the measurements: a JSON text of 100 bytes each, as in a chat."""

import json
from collections.abc import Sequence

STREAM_ID = "chat-room-17"
BODY_BYTES = 100
BATCH_EVENTS = 100
TEXT = '{"user":"user-%04d","text":"Shall we meet at the station at eight, as we did on Monday?"'
BODIES = [(TEXT % number).ljust(BODY_BYTES - 1).encode() + b"}" for number in range(BATCH_EVENTS)]
BODY = BODIES[0]


def batch_body(producers: Sequence[str], bodies: Sequence[bytes]) -> bytes:
    """Return the body of a request that writes the same events to channels."""
    messages = b",".join(b'{"streamId":"%b","body":%b}' % (STREAM_ID.encode(), b) for b in bodies)
    channels = json.dumps(producers, separators=(",", ":")).encode()
    return b'{"channels":%b,"messages":[%b]}' % (channels, messages)
