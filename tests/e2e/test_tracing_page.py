"""What docs/tracing.md says is so: its commands, run with a broker that is started as it says."""

import asyncio
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megaphone.observe.spans import CHANNEL, FACE, MAX_LINKS, MAX_SENDS, OF_SEND, TEMPLATE
from megaphone.testing import Broker
from tests.support.documented import ROOT, assert_printed, run_session, steps
from tests.support.otlp import collector
from tests.support.process import broker_process

PAGE = (ROOT / "docs" / "tracing.md").read_text()
WRITE, READ, START = steps(PAGE)
[PROGRAM] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
WITH_SPANS = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
spans = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(spans))
trace.set_tracer_provider(provider)
"""
"""Gives a program a tracer provider, whose spans stay in `spans`."""


async def test_the_commands_work_and_a_collector_gets_the_spans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable, *command = shlex.split(START.command)
    name, url = variable.split("=", 1)
    assert command == ["megaphone", "serve"]
    async with collector() as spans:
        for key, value in spans.variables.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setenv(name, url.replace("http://localhost:4318", spans.url))

        def run() -> list[str]:
            with broker_process(tmp_path) as broker:
                actual = {"localhost:3000": f"localhost:{broker.http_port}"}
                printed = run_session([WRITE.command, READ.command], actual, tmp_path)
                broker.process.send_signal(signal.SIGTERM)
                assert broker.process.wait() == 0
                return printed

        printed = await asyncio.to_thread(run)
        for step, text in zip((WRITE, READ), printed, strict=True):
            assert_printed(step, text)
        # The last spans are sent before the process ends.
        [send], [receive] = spans.named("send"), spans.named("receive")
        assert send.trace_id == receive.trace_id == "0af7651916cd43dd8448eb211c80319c"
        assert receive.links == [(send.trace_id, send.span_id)]


def test_the_program_goes_on_with_the_trace_of_its_writer(megaphone_broker: Broker) -> None:
    told = """
order, pack = spans.get_finished_spans()
assert pack.context.trace_id == order.context.trace_id
assert pack.parent.span_id == order.context.span_id
"""
    program = PROGRAM.replace("http://localhost:3000", megaphone_broker.url)
    assert printed_by(WITH_SPANS + program + told) == "packed tea\n"


def test_a_node_uses_the_provider_that_its_process_has() -> None:
    code = """
import asyncio
from megaphone.observe.tracing import tracing

async def send():
    async with tracing() as made:
        with made.sending("http") as sending:
            sending.trace_of(f"00-{'a' * 32}-{'b' * 16}-01")

asyncio.run(send())
provider.get_tracer("another").start_span("after the node").end()
print(*(span.name for span in spans.get_finished_spans()), sep=", ")
"""
    assert printed_by(WITH_SPANS + code) == "send {channel}, after the node\n"


def printed_by(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_page_names_what_spans_have() -> None:
    named = set(re.findall(r"`([^`\n]+)`", PAGE))
    assert {*OF_SEND, CHANNEL, FACE, TEMPLATE} <= named
    assert f"at most {MAX_LINKS}." in PAGE
    assert f"at most {MAX_SENDS};" in PAGE
