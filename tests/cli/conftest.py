"""The commands of users, run as processes against a broker that runs as a process.

A process for each command would spend nearly all of its time on importing. So most of them are
forked from one that has imported what commands need: they are processes all the same, with standard
streams, an environment and an exit code of their own.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.support.process import MEGAPHONE, BrokerProcess, broker_process, environment

TIMEOUT_S = 60
forked = get_context("forkserver")
forked.set_forkserver_preload(["megaphone.cli.main", "megaphone_client.http"])


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker for all tests of a module."""
    with broker_process(tmp_path_factory.mktemp("broker")) as process:
        yield process


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
            if not key.startswith(("XDG_", "MEGAPHONE_")) and key != "NO_COLOR"
        }
        return {**clean, "HOME": str(self.home), **self.variables}

    def run(self, *arguments: str, text: str = "") -> Done:
        """Run `megaphone`, with a text as its standard input."""
        with tempfile.TemporaryDirectory() as directory:
            files = [Path(directory) / name for name in ("in", "out", "err")]
            files[0].write_text(text)
            process = forked.Process(
                target=run_command,
                args=(arguments, self.home, self.environment(), [str(file) for file in files]),
            )
            process.start()
            process.join(TIMEOUT_S)
            if process.exitcode is None:
                process.kill()
                process.join()
            return Done(process.exitcode, files[1].read_text(), files[2].read_text())

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start `megaphone` as a shell does."""
        return subprocess.Popen(
            [MEGAPHONE, *arguments],
            cwd=self.home,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


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
