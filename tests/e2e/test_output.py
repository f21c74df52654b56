"""A broker serves, and stops in order, whatever becomes of its standard streams."""

import json
import os
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.process import MEGAPHONE, environment

WITHIN_S = 15


@contextmanager
def broker(
    directory: Path, port: int, *command: str, stderr: int | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    settings: dict[str, object] = {"address": f"127.0.0.1:{port}"}
    process = subprocess.Popen(
        command or (MEGAPHONE, "serve"),
        cwd=directory,
        env=environment(directory, settings),
        stderr=stderr,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ask(port: int, method: str, path: str) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=WITHIN_S)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        return body
    finally:
        connection.close()


def wait_until_it_serves(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        assert process.poll() is None, "the broker has ended"
        try:
            ask(port, "GET", "/livez")
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise AssertionError("the broker does not serve")


@pytest.fixture
def full_pipe() -> Iterator[tuple[int, int]]:
    """A pipe that takes nothing until something is read from it."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"\n")
    except BlockingIOError:
        os.set_blocking(writing, True)  # for all who share it
    yield reading, writing
    os.close(reading)
    os.close(writing)


def test_a_log_that_nobody_reads_does_not_hold_the_broker(
    tmp_path: Path, full_pipe: tuple[int, int]
) -> None:
    port = free_port()
    with broker(tmp_path, port, stderr=full_pipe[1]) as process:
        wait_until_it_serves(process, port)
        ask(port, "POST", "/create")
        assert b"\nmegaphone_log_lines_dropped 0\n" in ask(port, "GET", "/metrics")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN_S) == 0


def test_a_log_that_is_read_late_is_whole(tmp_path: Path, full_pipe: tuple[int, int]) -> None:
    port = free_port()
    reading, writing = full_pipe
    with broker(tmp_path, port, stderr=writing) as process:
        wait_until_it_serves(process, port)
        received = b""
        while b"serves HTTP" not in received:
            received += os.read(reading, 65_536)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN_S) == 0
    received += os.read(reading, 65_536)
    lines = [json.loads(line)["message"] for line in received.split(b"\n") if line]
    assert f"HTTP on 127.0.0.1:{port} " in lines[0]
    assert lines[1:] == ["SIGTERM: stopping", "stopped"]


def test_a_log_whose_reader_has_gone_does_not_end_the_broker(tmp_path: Path) -> None:
    port = free_port()
    reading, writing = os.pipe()
    os.close(reading)
    with broker(tmp_path, port, stderr=writing) as process:
        os.close(writing)
        wait_until_it_serves(process, port)
        process.send_signal(signal.SIGPIPE)
        ask(port, "POST", "/create")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN_S) == 0


@pytest.mark.parametrize("closed", [">&- 2>&-", "<&- >&- 2>&-", "2>&-"])
def test_closed_streams_do_not_end_the_broker(tmp_path: Path, closed: str) -> None:
    port = free_port()
    shell = ("sh", "-c", f'exec "$0" serve {closed}', MEGAPHONE)
    with broker(tmp_path, port, *shell) as process:
        wait_until_it_serves(process, port)
        ask(port, "POST", "/create")
        streams = [str(Path(f"/proc/{process.pid}/fd/{number}").readlink()) for number in (1, 2)]
        assert "socket" not in " ".join(streams)
        assert streams[1] == os.devnull
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN_S) == 0


def test_a_terminal_that_is_stopped_does_not_hold_the_broker(tmp_path: Path) -> None:
    port = free_port()
    ours, theirs = os.openpty()
    termios.tcflow(theirs, termios.TCOOFF)  # as Ctrl-S does
    command = ("sh", "-c", f'exec "$0" serve >{os.ttyname(theirs)} 2>/dev/null', MEGAPHONE)
    try:
        with broker(tmp_path, port, *command) as process:
            wait_until_it_serves(process, port)
            ask(port, "POST", "/create")
            termios.tcflow(theirs, termios.TCOON)
            assert b"Megaphone" in os.read(ours, 1_000)
            process.send_signal(signal.SIGTERM)
            assert process.wait(WITHIN_S) == 0
    finally:
        os.close(ours)
        os.close(theirs)
