"""`make demo` starts what it says, and the commands of examples/README.md print what it says."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from examples.chat.chat import CLIENT
from tests.support.documented import ROOT, assert_printed, run_session, steps
from tests.support.ports import free_ports
from tests.support.process import environment

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
