"""`make demo` starts what it says, and the commands of examples/README.md print what it says."""

import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples.chat.chat import CLIENT
from tests.support.documented import ROOT, assert_printed, run_session, steps
from tests.support.ports import free_ports
from tests.support.process import environment
from tests.support.settings import IS_LONG

PAGE = (ROOT / "examples" / "README.md").read_text()
PORTS = ("3000", "8000", "8001")

pytestmark = pytest.mark.skipif(
    not (CLIENT / "index.js").exists(), reason="needs make client-ts, which needs npm"
)


@pytest.mark.timeout(180)
def test_the_examples_run_as_their_page_says(tmp_path: Path) -> None:
    actual = dict(zip(PORTS, map(str, free_ports(3)), strict=True))
    clean = environment(tmp_path, {})
    del clean["megaphone_address"], clean["megaphone_grpc_address"]
    demo = subprocess.Popen(
        [sys.executable, ROOT / "examples" / "demo.py", *actual.values()],
        cwd=tmp_path,
        env=clean,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        assert demo.stdout is not None
        links = [re.findall(r"http://127.0.0.1:(\d+)/", demo.stdout.readline()) for _ in range(2)]
        assert links == [[actual["8000"]], [actual["8001"]]]
        here = f"export PATH='{Path(sys.executable).parent}':$PATH PYTHONPATH='{ROOT}'"
        here += f" MEGAPHONE_URL=http://localhost:3000 && ln -s '{ROOT}/examples' examples"
        examples = list(steps(PAGE))
        replaced = {f"localhost:{port}": f"localhost:{own}" for port, own in actual.items()}
        commands = [here, *(example.command for example in examples)]
        _, *printed = run_session(commands, replaced, tmp_path, timeout_s=100)
        for example, text in zip(examples, printed, strict=True):
            assert_printed(example, text)
        os.killpg(demo.pid, signal.SIGINT)
        assert demo.wait(30) == 0
    finally:
        assert demo.stdout is not None
        demo.stdout.close()
        if demo.poll() is None:
            os.killpg(demo.pid, signal.SIGKILL)
            demo.wait()


def test_a_demo_whose_port_is_taken_says_so(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = [str(port), *map(str, free_ports(2))]
        done = subprocess.run(
            [sys.executable, ROOT / "examples" / "demo.py", *ports],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"port {port} cannot be used: Address already in use. Name three")


@pytest.mark.skipif(not IS_LONG, reason="starts five programs: MEGAPHONE_TESTED_LONG=1")
def test_enter_stops_the_broker_for_a_moment_and_ctrl_c_ends_the_demo(tmp_path: Path) -> None:
    ports = [str(port) for port in free_ports(3)]
    terminal, own = pty.openpty()
    demo = subprocess.Popen(
        [sys.executable, ROOT / "examples" / "demo.py", *ports],
        cwd=tmp_path,
        stdin=own,
        stdout=own,
        stderr=own,
        start_new_session=True,
    )
    os.close(own)
    try:
        said = read_until(terminal, b"Ctrl-C ends the demo.")
        os.write(terminal, b"\n")
        said += read_until(terminal, b"The broker is there again.")
        assert b"The broker stops." in said
        os.killpg(demo.pid, signal.SIGINT)
        assert demo.wait(30) == 0
    finally:
        if demo.poll() is None:
            os.killpg(demo.pid, signal.SIGKILL)
            demo.wait()
        os.close(terminal)


def read_until(terminal: int, wanted: bytes) -> bytes:
    """Return what a program prints until it has printed this, for a minute at most."""
    said, until = b"", time.monotonic() + 60
    while wanted not in said and time.monotonic() < until:
        can_be_read, _, _ = select.select([terminal], [], [], 0.5)
        said += os.read(terminal, 65_536) if can_be_read else b""
    assert wanted in said, said.decode(errors="replace")
    return said
