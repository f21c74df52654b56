"""The events of the measurements: about 160 bytes per line, as in a chat."""

from megaphone.model import Event
from megaphone.wire import json

BATCH_EVENTS = 100
STREAM_ID = "chat-room-17"
BODIES = [
    b'{"user":"user-%04d","text":"Shall we meet at the station at eight?"}' % number
    for number in range(BATCH_EVENTS)
]
EVENTS = [
    Event(
        id=f"bench{number:018d}",
        stream_id=STREAM_ID,
        timestamp_us=1_700_000_000_000_000 + number,
        body=body,
    )
    for number, body in enumerate(BODIES)
]
LINES = b"".join(json.event_lines(EVENTS))
"""All events as lines for an HTTP reader."""
