"""A command of `megaphone` as a process that is forked from one with the imports done.

That takes a fifth of the processor time of a start. `tests.support.fork_server` is the other end.
"""

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.support import fork_server

SERVER = Path(__file__).with_name("fork_server.py")


class ForkedProcess:
    """Does what `subprocess.Popen` does, as far as tests of a broker need it."""

    def __init__(
        self, arguments: Sequence[str], *, directory: Path, environment: Mapping[str, str]
    ) -> None:
        request = {
            "arguments": list(arguments),
            "directory": str(directory),
            "environment": dict(environment),
        }
        read_error, error = os.pipe()
        self._result, result = os.pipe()
        self.stderr: IO[str] = open(read_error)  # noqa: SIM115, PTH123  # the owner closes it
        socket.send_fds(server(), [json.dumps(request).encode()], [error, result])
        os.close(error)
        os.close(result)
        self.pid = self._number()
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        return self._code_within(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Raises: subprocess.TimeoutExpired."""
        code = self._code_within(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _code_within(self, timeout_s: float | None) -> int | None:
        if self.returncode is None:
            ended = select.poll()
            ended.register(self._result, select.POLLIN)
            if ended.poll(None if timeout_s is None else 1000 * timeout_s):
                with self._lock:
                    if self.returncode is None:
                        self.returncode = self._number()
                        os.close(self._result)
        return self.returncode

    def _number(self) -> int:
        raw = os.read(self._result, fork_server.NUMBER.size)
        return int(fork_server.NUMBER.unpack(raw)[0])


def without_own_settings() -> dict[str, str]:
    """Return the environment without the developer's own configuration of a broker."""
    return {k: v for k, v in os.environ.items() if not k.lower().startswith("megaphone_")}


@functools.cache
def server() -> socket.socket:
    """Start the process from which all others of this one are forked. It ends with this process."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", str(SERVER), str(theirs.fileno())],
            env=without_own_settings() | {"SSL_CERT_FILE": os.devnull},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )

    def stop() -> None:
        ours.close()
        process.wait()

    atexit.register(stop)
    return ours
