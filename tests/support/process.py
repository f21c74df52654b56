"""A broker as a separate process, as users run it."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tests.support import leaks
from tests.support.forked import ForkedProcess, without_own_settings
from tests.support.settings import lane_settings

MEGAPHONE = str(Path(sys.executable).with_name("megaphone"))
SERVES = re.compile(r"serves HTTP on \S+:(\d+) and gRPC on \S+:(\d+);")


@dataclass(frozen=True, slots=True)
class BrokerProcess:
    process: subprocess.Popen[str] | ForkedProcess
    http_port: int
    grpc_port: int
    start_line: str
    """The log line that it wrote when it began to serve."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_target(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"


@contextmanager
def broker_process(
    directory: Path, command: str | None = None, **settings: object
) -> Iterator[BrokerProcess]:
    """Run `megaphone serve` in `directory` on free ports. It is killed at the end if it still
    runs.

    A test that needs a process as users start it names the command, such as MEGAPHONE.
    """
    process = start(command, directory, environment(directory, settings))
    try:
        assert process.stderr is not None
        line = start_line(process.stderr)
        leaks.check_command_lines(process.pid)
        yield BrokerProcess(process, *ports_of(line), line)
    finally:
        process.kill()
        process.wait()
        rest = rest_of(process.stderr)
    leaks.check(rest, "the log of a broker")


def rest_of(log: IO[str] | None) -> str:
    """Close the log of a process that has ended. Returns: the lines that no test has read."""
    lines: list[str] = []
    if log is None or log.closed:
        return ""
    with log, suppress(TypeError):  # which is raised if a child of the process still has the log
        os.set_blocking(log.fileno(), False)
        while line := log.readline():
            lines.append(line)
    return "".join(lines)


def start(
    command: str | None, directory: Path, variables: dict[str, str]
) -> subprocess.Popen[str] | ForkedProcess:
    if command is None:
        return ForkedProcess(["megaphone", "serve"], directory=directory, environment=variables)
    return subprocess.Popen(
        [command, "serve"], cwd=directory, env=variables, stderr=subprocess.PIPE, text=True
    )


def environment(directory: Path, settings: dict[str, object]) -> dict[str, str]:
    """Return an environment without the developer's own configuration, and without certificates:
    aiohttp loads those of the system when it is imported, which takes a tenth of a start."""
    kept = without_own_settings()
    defaults: dict[str, object] = {
        "address": "127.0.0.1:0",
        "grpc_address": "127.0.0.1:0",
        "mng_socket_path": directory / "megaphone.sock",
    }
    settings = defaults | lane_settings() | settings
    leaks.keep_secrets(settings)
    kept["SSL_CERT_FILE"] = os.devnull
    return kept | {f"megaphone_{key}": str(value) for key, value in settings.items()}


def wait_until_it_serves(log: IO[str]) -> tuple[int, int]:
    """Return the ports of HTTP and gRPC."""
    return ports_of(start_line(log))


def start_line(log: IO[str]) -> str:
    """Wait for the log line which says that the broker serves."""
    lines = []
    for line in log:
        leaks.check(line, "the log of a broker")
        if SERVES.search(line):
            return line
        lines.append(line)
    raise AssertionError(f"the broker did not start: {''.join(lines)}")


def next_line(broker: BrokerProcess, words: str) -> str:
    """Return the next line of the log with these words."""
    assert broker.process.stderr is not None
    for line in broker.process.stderr:
        print(line, end="")
        leaks.check(line, "the log of a broker")
        if words in line:
            return str(json.loads(line)["message"])
    raise AssertionError(f"the log ends without: {words}")


def wait_for(condition: Callable[[], bool], within_s: float = 40.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ports_of(line: str) -> tuple[int, int]:
    found = SERVES.search(line)
    assert found is not None
    return int(found[1]), int(found[2])
