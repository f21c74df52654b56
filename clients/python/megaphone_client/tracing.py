"""The trace context of the present span of the app. OpenTelemetry is not imported here."""

import sys
from typing import Any, Final

HEADER: Final = "traceparent"


def current_traceparent() -> str | None:
    """Return the context of the present span, as W3C Trace Context has it; None if there is none,
    or it is not sampled, or nobody has imported OpenTelemetry."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return None
    context = trace.get_current_span().get_span_context()
    if not (context.is_valid and context.trace_flags.sampled):
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
