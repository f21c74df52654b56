"""The commands of users, run as processes against a broker that runs as a process."""

import fcntl
import os
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from tests.support import forked
from tests.support.process import MEGAPHONE, BrokerProcess, broker_process, environment

TIMEOUT_S = 60


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

    def run(
        self, *arguments: str, text: str = "", **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run `megaphone`, with a text as its standard input."""
        return forked.run(
            ["megaphone", *arguments],
            directory=self.home,
            environment=self.environment() | variables,
            text=text,
        )

    def on_terminal(
        self, *arguments: str, columns: int = 100, shows_errors: bool = False, **variables: str
    ) -> str:
        """Run `megaphone` with a terminal as its standard output, and as its standard error if that
        is wanted. Returns: what it sent there."""
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        shown = bytearray()
        reading = threading.Thread(target=read_terminal, args=(master, shown))
        reading.start()
        try:
            with Path(os.devnull).open("r+b") as null, os.fdopen(slave, "wb", 0) as terminal:
                process = forked.ForkedProcess(
                    ["megaphone", *arguments],
                    directory=self.home,
                    environment=self.environment() | variables,
                    streams=(null, terminal, terminal if shows_errors else null),
                )
            process.wait(TIMEOUT_S)
        finally:
            reading.join()
            os.close(master)
        return shown.decode().replace("\r\n", "\n")

    def into_full_disk(
        self, *arguments: str, command: str = "megaphone"
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command whose standard output takes nothing."""
        with (
            Path(os.devnull).open("r+b") as null,
            Path("/dev/full").open("wb") as full,
            TemporaryFile("w+") as error,
        ):
            process = forked.ForkedProcess(
                [command, *arguments],
                directory=self.home,
                environment=self.environment(),
                streams=(null, full, error),
            )
            code = process.wait(TIMEOUT_S)
            error.seek(0)
            return subprocess.CompletedProcess(arguments, code, "", error.read())

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
