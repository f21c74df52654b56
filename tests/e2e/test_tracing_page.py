"""What docs/tracing.md says is so: its commands, run with a broker that is started as it says."""

import asyncio
import re
import shlex
import signal
from pathlib import Path

import pytest

from megaphone.observe.spans import FACE, MAX_LINKS, MAX_SENDS, OF_SEND, TEMPLATE
from tests.support.documented import ROOT, assert_printed, run_session, steps
from tests.support.otlp import collector
from tests.support.process import broker_process

PAGE = (ROOT / "docs" / "tracing.md").read_text()
WRITE, READ, START = steps(PAGE)


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


def test_the_page_names_what_spans_have() -> None:
    named = set(re.findall(r"`([^`\n]+)`", PAGE))
    assert {*OF_SEND, FACE, TEMPLATE} <= named
    assert f"at most {MAX_LINKS}." in PAGE
    assert f"at most {MAX_SENDS};" in PAGE
