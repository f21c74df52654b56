"""When a node makes spans, by the variables of OpenTelemetry, and what happens if it cannot."""

import asyncio
import logging
import sys
from collections.abc import Mapping

import pytest

from megaphone.app import running
from megaphone.core.traces import UNTRACED
from megaphone.observe.spans import MAX_SENDS, Spans
from megaphone.observe.tracing import NoTraces, is_wanted, tracing
from tests.support.faces import http_face
from tests.support.otlp import SOON, collector
from tests.support.settings import fast_settings

HERE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
CONTEXT = f"00-{'a' * 32}-{'b' * 16}-01"


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"}, False),
        (HERE, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/x"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        (HERE | {"OTEL_TRACES_EXPORTER": "none"}, False),
        (HERE | {"OTEL_SDK_DISABLED": "true"}, False),
        (HERE | {"OTEL_SDK_DISABLED": "false"}, True),
        (HERE | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}, True),
        (
            HERE
            | {
                "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
            },
            True,
        ),
    ],
)
def test_the_variables_say_whether_a_node_makes_spans(
    variables: Mapping[str, str], wanted: bool
) -> None:
    assert is_wanted(variables) is wanted


def test_what_the_node_cannot_do_is_said() -> None:
    with pytest.raises(NoTraces, match="OTEL_TRACES_EXPORTER may be otlp or none"):
        is_wanted({"OTEL_TRACES_EXPORTER": "zipkin"})
    with pytest.raises(NoTraces, match="only by http/protobuf"):
        is_wanted(HERE | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})


async def test_a_node_that_nobody_told_where_to_send_spans_makes_none() -> None:
    async with tracing() as made:
        assert made is UNTRACED


@pytest.fixture
def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry.exporter.otlp")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp", None)


@pytest.mark.usefixtures("without_packages")
async def test_without_the_packages_a_node_serves_and_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    async with tracing() as made:
        assert made is UNTRACED
    [warning] = caplog.messages
    assert warning == (
        "this node makes no spans: they need more packages: pip install 'megaphone-broker[otel]'"
    )


async def test_a_variable_that_is_wrong_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
    async with tracing() as made:
        assert made is UNTRACED
    [warning] = caplog.messages
    assert warning.startswith("this node makes no spans: a variable of OpenTelemetry is wrong:")


async def test_a_node_says_who_it_is_as_the_variables_want_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with collector() as spans:
        named = {"OTEL_SERVICE_NAME": "push", "OTEL_EXPORTER_OTLP_HEADERS": "api-key=k1"}
        for name, value in (spans.variables | named).items():
            monkeypatch.setenv(name, value)
        async with running(fast_settings()) as app, http_face(app) as http:
            channel = await http.create()
            await http.traced(CONTEXT).write(channel.producer, "s", b"1")
        # The last spans are sent before the node has stopped.
        [send] = spans.spans
        assert send.resource["service.name"] == "push"
        assert {"service.version", "service.instance.id"} <= send.resource.keys()
        assert spans.headers[0]["api-key"] == "k1"


async def test_a_node_whose_sampler_wants_no_spans_passes_contexts_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with collector() as spans:
        for name, value in (spans.variables | {"OTEL_TRACES_SAMPLER": "always_off"}).items():
            monkeypatch.setenv(name, value)
        async with tracing() as made:
            assert isinstance(made, Spans)
            with made.sending("http") as sending:
                assert sending.trace_of(CONTEXT) == CONTEXT
                assert not sending.has_spans
        assert spans.spans == []


async def test_a_call_has_a_span_for_each_context_up_to_a_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = [f"00-{number + 1:032x}-{'b' * 16}-01" for number in range(MAX_SENDS + 1)]
    async with collector() as spans:
        for name, value in spans.variables.items():
            monkeypatch.setenv(name, value)
        async with tracing() as made:
            with made.sending("grpc") as sending:
                traces = [sending.trace_of(one) for one in given]
                assert traces == [sending.trace_of(one) for one in given]
                sending.note(given[0], "e1")
                sending.note(given[0], failure="TIMEOUT")
                sending.note(given[1], "e2")
                sending.note(given[-1], "e3")
                sending.note("nonsense", "e4")
        assert len(spans.spans) == MAX_SENDS
        assert traces[-1] == given[-1]
        by_trace = {f"00-{span.trace_id}-{'b' * 16}-01": span for span in spans.spans}
        assert [by_trace[one].context for one in given[:-1]] == traces[:-1]
        assert by_trace[given[0]].attributes["messaging.batch.message_count"] == 2
        assert by_trace[given[0]].error == "TIMEOUT"
        assert by_trace[given[1]].attributes["messaging.message.id"] == "e2"


async def test_a_collector_that_hangs_does_not_keep_a_node(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        await stopped.wait()
        writer.close()

    monkeypatch.setattr("megaphone.observe.tracing.FLUSH_S", 0.2)
    stopped = asyncio.Event()
    async with await asyncio.start_server(hang, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        for name, value in (
            SOON | {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
        ).items():
            monkeypatch.setenv(name, value)
        async with tracing() as made:
            with made.sending("http") as sending:
                sending.trace_of(CONTEXT)
        assert "the last spans were not sent within 0.2 s" in caplog.messages
        stopped.set()


async def test_what_the_sdk_says_is_logged_once_and_without_secrets(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "header-that-is-wrong")
    sdk = logging.getLogger("opentelemetry.sdk.trace")
    async with tracing():
        for number in range(3):
            sdk.warning("code %d of %s: %s", number, "http://a/b?c", ConnectionError("http://a"))
        sdk.warning("100 % of it")
        sdk.warning("%s and %s", 1)
    [header, failed, *others] = caplog.messages
    assert header.startswith("OpenTelemetry: Header format invalid!")
    assert "header-that-is-wrong" not in caplog.text
    assert failed == "OpenTelemetry: code 0 of …: ConnectionError"
    assert others == ["OpenTelemetry: 100 % of it", "OpenTelemetry: %s and %s"]
    assert logging.getLogger("opentelemetry").propagate


async def test_a_collector_that_is_not_there_costs_nothing_but_the_spans(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("megaphone.observe.tracing.FLUSH_S", 0.2)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9/secret-path")
    async with running(fast_settings()) as app, http_face(app) as http:
        channel = await http.create()
        await http.traced(CONTEXT).write(channel.producer, "s", b"1")
    assert any("OpenTelemetry: Transient error ConnectionError" in one for one in caplog.messages)
    assert "secret-path" not in caplog.text
