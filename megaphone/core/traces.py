"""The trace contexts of events: what a writer may send, and what becomes of it.

A writer sends a `traceparent`, as W3C Trace Context defines it. If it is sampled, the event keeps
it, and readers may ask for it. If the node makes spans (`observe.spans`), the event keeps the
context of the span of its own write instead. Anything else that a writer sends counts as no
context, and never makes a write fail.
"""

import re
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

from megaphone.core.ports import Receiving
from megaphone.model import Event

TRACEPARENT: Final = "traceparent"
"""The name of the header of HTTP, and of the metadata of gRPC."""
_FORM: Final = re.compile(
    "(?!ff)([0-9a-f]{2})-((?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16})-[0-9a-f][13579bdf](-.*)?"
)
"""A context that is sampled: the last bit of its flags is set."""
_ID: Final = re.compile(
    "(?!ff)[0-9a-f]{2}-((?!0{32})[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?"
)


def sampled(traceparent: str | None) -> str | None:
    """Return a trace context in the form of version 00; None if it is not valid or not sampled."""
    if not traceparent:
        return None
    found = _FORM.fullmatch(traceparent)
    if found is None:
        return None
    version, ids, more = found.groups()
    if version == "00":
        return traceparent if more is None else None
    return f"00-{ids}-01"  # a later version may mean more by its flags


def trace_id_of(traceparent: str) -> str:
    """Return the id of the trace in a context, sampled or not; empty if the context is not
    valid."""
    found = _ID.fullmatch(traceparent)
    return "" if found is None else found[1]


class PassedOn:
    """Passes on the contexts of writers as they are. Fulfils `core.ports.Sending`."""

    has_spans: Final = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        pass

    def trace_of(self, traceparent: str | None) -> str | None:
        return sampled(traceparent)

    def to_channel(self, short_id: str | None) -> None:
        pass

    def note(
        self,
        traceparent: str | None,
        event_id: str | None = None,
        *,
        failure: str | None = None,
        events: int = 1,
    ) -> None:
        pass


class Untraced:
    """Makes no spans. Fulfils `core.ports.Tracing`."""

    makes_spans: Final = False

    def __init__(self) -> None:
        self._passed_on = PassedOn()

    def sending(self, face: str) -> PassedOn:
        return self._passed_on

    def receive(self, events: Sequence[Event], short_id: str) -> Receiving | None:
        return None


UNTRACED: Final = Untraced()
