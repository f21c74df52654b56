"""Commands as processes that are forked from one that has done the imports.

They are processes all the same, with standard streams, an environment and an exit code of their
own. But they need a tenth of the processor time of a start. `tests.support.fork_server` is the
other end.
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
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from tests.support import fork_server

SERVER = Path(__file__).with_name("fork_server.py")


class ForkedProcess:
    """Does what `subprocess.Popen` does, as far as tests of a broker need it."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        streams: tuple[IO[Any], IO[Any], IO[Any]] | None = None,
    ) -> None:
        """Start `megaphone` or `megactl`, which the first argument names.

        `streams` are its standard input, output and error. Without them it has no input, its output
        is lost, and its error can be read in `stderr`.
        """
        request = {
            "arguments": list(arguments),
            "directory": str(directory),
            "environment": dict(environment),
        }
        self.stderr: IO[str] | None = None
        self._result, result = os.pipe()
        with ExitStack() as ours:
            ours.callback(os.close, result)
            if streams is None:
                null = ours.enter_context(Path(os.devnull).open("r+b"))
                read_end, write_end = os.pipe()
                self.stderr = os.fdopen(read_end)  # which the owner closes
                streams = null, null, ours.enter_context(os.fdopen(write_end, "w"))
            descriptors = [*(stream.fileno() for stream in streams), result]
            socket.send_fds(server(), [json.dumps(request).encode()], descriptors)
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
            with suppress(ProcessLookupError):  # it has ended since, and its watcher knew it first
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


def run(
    arguments: Sequence[str],
    *,
    directory: Path,
    environment: Mapping[str, str],
    text: str = "",
    timeout_s: float = 60,
) -> "subprocess.CompletedProcess[str]":
    """Run a command to its end, with a text as its standard input.

    Raises: subprocess.TimeoutExpired. The command is killed then.
    """
    with TemporaryFile("w+") as source, TemporaryFile("w+") as out, TemporaryFile("w+") as error:
        source.write(text)
        source.seek(0)
        streams = source, out, error
        process = ForkedProcess(
            arguments, directory=directory, environment=environment, streams=streams
        )
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
        out.seek(0)
        error.seek(0)
        return subprocess.CompletedProcess(list(arguments), code, out.read(), error.read())


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
