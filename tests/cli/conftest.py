"""The commands of users, run as processes against a broker that runs as a process.

A process for each command would spend nearly all of its time on importing. So most of them are
forked from one that has imported what commands need: they are processes all the same, with standard
streams, an environment and an exit code of their own.
"""

import fcntl
import os
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.support.process import MEGAPHONE, BrokerProcess, broker_process, environment

TIMEOUT_S = 60
forked = get_context("forkserver")
forked.set_forkserver_preload(
    ["megaphone.cli.main", "megaphone.config", "megaphone_client.client", "megaphone_client.http"]
)


@pytest.fixture(scope="module")
def home_of_broker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("broker")


@pytest.fixture(scope="module")
def broker(home_of_broker: Path) -> Iterator[BrokerProcess]:
    """A broker for all tests of a module."""
    with broker_process(home_of_broker) as process:
        yield process


@pytest.fixture
def admin_socket(broker: BrokerProcess, home_of_broker: Path) -> str:
    """The path of the broker's admin socket."""
    return str(home_of_broker / "megaphone.sock")


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    returncode: int | None
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class User:
    """Someone with a home directory of their own, who types commands."""

    home: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        clean = {
            key: value
            for key, value in environment(self.home, {}).items()
            if not key.startswith(("XDG_", "MEGAPHONE_"))
            and key not in ("NO_COLOR", "COLUMNS", "LINES")
        }
        return {**clean, "HOME": str(self.home), **self.variables}

    def run(self, *arguments: str, text: str = "", **variables: str) -> Done:
        """Run `megaphone`, with a text as its standard input."""
        with tempfile.TemporaryDirectory() as directory:
            files = [Path(directory) / name for name in ("in", "out", "err")]
            files[0].write_text(text)
            code = self._run(arguments, variables, files)
            return Done(code, files[1].read_text(), files[2].read_text())

    def on_terminal(self, *arguments: str, columns: int = 100, **variables: str) -> str:
        """Run `megaphone` with a terminal as its standard output. Returns: what it sent there."""
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        shown = bytearray()
        reading = threading.Thread(target=read_terminal, args=(master, shown))
        reading.start()
        null = Path(os.devnull)
        try:
            self._run(arguments, variables, [null, Path(os.ttyname(slave)), null])
        finally:
            os.close(slave)
            reading.join()
            os.close(master)
        return shown.decode().replace("\r\n", "\n")

    def _run(
        self, arguments: Sequence[str], variables: Mapping[str, str], streams: Sequence[Path]
    ) -> int | None:
        """Run a command with these standard streams. Returns: its exit code."""
        process = forked.Process(
            target=run_command,
            args=(
                arguments,
                self.home,
                {**self.environment(), **variables},
                [str(stream) for stream in streams],
            ),
        )
        process.start()
        process.join(TIMEOUT_S)
        if process.exitcode is None:
            process.kill()
            process.join()
        return process.exitcode

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start `megaphone` as a shell does."""
        return subprocess.Popen(
            [MEGAPHONE, *arguments],
            cwd=self.home,
            env=self.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def read_terminal(master: int, shown: bytearray) -> None:
    """Read what is sent to a terminal until nobody has it open."""
    with suppress(OSError):
        while data := os.read(master, 65_536):
            shown += data


def run_command(
    arguments: Sequence[str], home: Path, variables: Mapping[str, str], streams: Sequence[str]
) -> None:
    """Be `megaphone`, in a process of its own."""
    from megaphone.cli.main import main

    os.chdir(home)
    os.environ.clear()
    os.environ.update(variables)
    for number, (path, flags) in enumerate(
        zip(streams, (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT), strict=True)
    ):
        os.dup2(os.open(path, flags, 0o600), number)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    sys.argv = ["megaphone", *arguments]
    main()


@pytest.fixture
def user(tmp_path: Path, broker: BrokerProcess) -> User:
    """A user whose commands call the broker."""
    return User(tmp_path, {"MEGAPHONE_URL": broker.url})


@pytest.fixture
def at_room(user: User) -> User:
    """A user who has saved a channel as @room."""
    done = user.run("create", "--save", "room")
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return user
