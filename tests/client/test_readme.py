"""Everything that the README of the client says to type does what it says."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from megaphone.testing import Broker

README = Path(__file__).parents[2] / "clients" / "python" / "README.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_first_lines(megaphone_broker: Broker) -> None:
    program = blocks()[0].replace("http://localhost:3000", megaphone_broker.url)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("{'hello': 'world'}\n", "")


async def test_the_session(megaphone_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    session: dict[str, Any] = {}
    for block in blocks()[1:-1]:
        code = compile(block, str(README), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, session)
        if inspect.iscoroutine(result):
            await result
    await session["megaphone"].aclose()
    printed = capsys.readouterr().out
    assert re.fullmatch(
        r"orders [A-Za-z0-9]{23} tea\n"
        r"\d+ orders in one batch\n"
        r"from the other channel: milk\n"
        r"events are missing: asking our own back end\n"
        r"yes\ncake in the kitchen\n",
        printed,
    ), printed
    assert session["event"].body["item"]


def test_the_test(tmp_path: Path) -> None:
    (tmp_path / "test_orders.py").write_text(blocks()[-1])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_orders.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
