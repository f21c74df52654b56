"""Whether a node makes spans, and where it sends them: as the variables of OpenTelemetry say.

A node that nobody told where to send spans makes none, and loads nothing for them. The variables
are `OTEL_EXPORTER_OTLP_ENDPOINT` and its relatives, which the SDK reads itself. If the process has
a tracer provider already, because whoever started it brought an SDK, the node uses that one.
"""

import asyncio
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from megaphone import __version__
from megaphone.core.ports import Tracing
from megaphone.core.traces import UNTRACED

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = logging.getLogger(__name__)

ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
EXPORTER: Final = "OTEL_TRACES_EXPORTER"
DISABLED: Final = "OTEL_SDK_DISABLED"
OTLP: Final = "otlp"
NONE: Final = "none"
PROTOCOL: Final = "http/protobuf"
NAME: Final = "megaphone"
UNNAMED: Final = "unknown_service"
SDK: Final = "opentelemetry"
"""The logger above all those of the SDK."""
HTTP: Final = "urllib3.connectionpool"
"""The logger of the library by which the SDK calls a collector."""
QUIET_S: Final = 60.0
"""How often the same message of the SDK is logged."""
FLUSH_S: Final = 2.0
"""How long a node that stops waits until its last spans are sent."""


WITHOUT: Final = "this node makes no spans: %s"


class NoTraces(Exception):
    """The variables ask for spans that this node cannot send. The message says why."""


@asynccontextmanager
async def tracing() -> AsyncIterator[Tracing]:
    """Yield what makes the spans of this node. At the end of the context the last spans are sent.

    A node that cannot send spans as it was asked to serves without them, and logs why.
    """
    if (provider := provider_of_process()) is not None:
        yield spans_of(provider)
        return
    try:
        wanted = is_wanted(os.environ)
    except NoTraces as error:
        log.warning(WITHOUT, error)
        wanted = False
    if not wanted:
        yield UNTRACED
        return
    with sdk_logs():
        try:
            own = new_provider()
        except NoTraces as error:
            log.warning(WITHOUT, error)
            yield UNTRACED
            return
        try:
            yield spans_of(own)
        finally:
            await closed(own)


def spans_of(provider: Any) -> Tracing:
    from megaphone.observe.spans import Spans  # which needs packages that most nodes do not have

    log.info("this node makes spans for events whose traces are sampled")
    return Spans(provider.get_tracer(NAME, __version__))


def provider_of_process() -> Any:
    """Return the tracer provider that somebody has set for the process; None if nobody has."""
    api: Any = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    provider = api.get_tracer_provider()
    is_set = not isinstance(provider, api.ProxyTracerProvider | api.NoOpTracerProvider)
    return provider if is_set else None


def is_wanted(variables: Mapping[str, str]) -> bool:
    """Return whether this process shall send spans by OTLP. Raises: NoTraces, if it cannot."""
    if variables.get(DISABLED, "").strip().lower() == "true":
        return False
    exporter = variables.get(EXPORTER, "").strip().lower()
    if exporter == NONE or not (exporter or first_of(ENDPOINTS, variables)):
        return False
    if exporter not in ("", OTLP):
        raise NoTraces(f"{EXPORTER} may be {OTLP} or {NONE}")
    if first_of(PROTOCOLS, variables).lower() not in ("", PROTOCOL):
        raise NoTraces(f"it can send them only by {PROTOCOL}, and {PROTOCOLS[1]} is not that")
    return True


def first_of(names: tuple[str, ...], variables: Mapping[str, str]) -> str:
    """Return the value of the first of some variables that is set; empty if none is."""
    return next((value for name in names if (value := variables.get(name, "").strip())), "")


def new_provider() -> "TracerProvider":
    """Return a tracer provider that sends spans in a thread of its own. Raises: NoTraces."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise NoTraces("they need more packages: pip install 'megaphone-broker[otel]'") from None
    resource = Resource.create()
    defaults = {SERVICE_INSTANCE_ID: str(uuid.uuid4()), "service.version": __version__}
    if str(resource.attributes[SERVICE_NAME]).startswith(UNNAMED):
        resource = resource.merge(Resource({SERVICE_NAME: NAME}))
    try:
        provider = TracerProvider(
            resource=Resource(defaults).merge(resource), shutdown_on_exit=False
        )
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except (ValueError, OSError) as error:
        raise NoTraces(f"a variable of OpenTelemetry is wrong: {error}") from None
    return provider


@contextmanager
def sdk_logs() -> Iterator[None]:
    """Let the log have what the SDK says, without secrets, within this context."""
    logger, handler = logging.getLogger(SDK), SdkLog()
    below = logging.getLogger(HTTP)  # says less of what fails than the SDK does, and names URLs
    propagated, logger.propagate = logger.propagate, False
    was_disabled, below.disabled = below.disabled, True
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate, below.disabled = propagated, was_disabled


class SdkLog(logging.Handler):
    """Repeats what the SDK says, each message at most once in `QUIET_S`: it says for each batch
    that a collector does not answer.

    Of the values in a message only numbers, and the types of errors, are repeated. Others may be
    headers or URLs with secrets.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said_at: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        now, message = time.monotonic(), str(record.msg)
        if now - self._said_at.get(message, -QUIET_S) < QUIET_S:
            return
        self._said_at[message] = now
        values = record.args if isinstance(record.args, tuple) else ()
        with suppress(TypeError, ValueError):  # a message may lack its values
            message %= tuple(map(harmless, values))
        log.log(record.levelno, "OpenTelemetry: %s", message)


def harmless(value: object) -> object:
    if isinstance(value, int | float):
        return value
    return type(value).__name__ if isinstance(value, BaseException) else "…"


async def closed(provider: "TracerProvider") -> None:
    """Send the last spans, for at most `FLUSH_S`."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def close() -> None:
        provider.shutdown()
        with suppress(RuntimeError):  # the event loop may be closed by then
            loop.call_soon_threadsafe(done.set)

    # A daemon, because a collector that hangs must not keep the process alive.
    threading.Thread(target=close, name="spans", daemon=True).start()
    try:
        async with asyncio.timeout(FLUSH_S):
            await done.wait()
    except TimeoutError:
        log.warning("the last spans were not sent within %g s", FLUSH_S)
