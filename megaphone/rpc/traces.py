"""Finds the trace context that a writer sends in the metadata of its call.

The interceptor has the metadata already. To ask the context of a call for them takes longer than
all else that concerns a trace which is not there.
"""

from contextvars import ContextVar
from typing import Any, Final

from megaphone.core.traces import TRACEPARENT

FACE: Final = "grpc"
_TRACEPARENT: ContextVar[str | None] = ContextVar(TRACEPARENT, default=None)
"""Set by the interceptor, and seen only by the handler of the same call."""


def find_traceparent(metadata: Any) -> None:
    """Let `traceparent` return what the metadata of the present call have. Of several contexts,
    grpc itself keeps only one."""
    for key, value in metadata or ():
        if key == TRACEPARENT:
            _TRACEPARENT.set(str(value))


def traceparent() -> str | None:
    """Return what the writer sent in the metadata of the call that is being handled."""
    return _TRACEPARENT.get()
