"""What is measured: the broker, and others that do the same work. Each runs on one core."""

import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.http import Channel, make_channels
from bench.processes import (
    HOST,
    BenchError,
    answers,
    clean_environment,
    environment_of,
    free_ports,
    opened,
    running,
    server_cores,
)
from tests.compat.original import BROKER as ORIGINAL_PROGRAM

LONG_POLL_MILLIS = 600_000
"""Longer than any measurement, because measured reads must not end."""
AGENT = "bench"
OURS = "ours"
BEFORE = "before"
ORIGINAL = "original"


@dataclass(frozen=True, slots=True)
class Server:
    """A running broker."""

    pid: int
    http_port: int
    grpc_port: int
    socket_path: Path

    def make_channels(self, count: int) -> list[Channel]:
        return make_channels(self.http_port, count)


Start = Callable[..., AbstractAsyncContextManager[Server]]


@dataclass(frozen=True, slots=True)
class Contestant:
    name: str
    what: str
    start: Start
    """Starts it. The arguments are settings of our broker; others ignore what they do not know."""


# -- Brokers


def broker(program: Sequence[str], own_settings: Mapping[str, object]) -> Start:
    """Return a function that starts a broker as its users do, but with long reads."""

    @asynccontextmanager
    async def start(**settings: object) -> AsyncIterator[Server]:
        http_port, grpc_port = free_ports(2)
        with tempfile.TemporaryDirectory(prefix="megaphone-bench-") as folder:
            log, socket_path = Path(folder, "log"), Path(folder, "manage.sock")
            values = {
                "address": f"{HOST}:{http_port}",
                "grpc_address": f"{HOST}:{grpc_port}",
                "mng_socket_path": socket_path,
                "poll_duration_millis": LONG_POLL_MILLIS,
                "agent_warmup_secs": 0,
                **own_settings,
                **settings,
            }
            with opened(log) as sink:
                async with running(
                    program,
                    on_cores=server_cores(),
                    stdout=sink,
                    stderr=sink,
                    environment=clean_environment() | environment_of(values),
                    folder=folder,
                ) as process:
                    for port in (http_port, grpc_port):
                        await answers(process, port, log)
                    yield Server(process.pid, http_port, grpc_port, socket_path)

    return start


def ours(program: Path) -> Start:
    return broker([str(program), "serve"], {"max_channels": 1_000_000})


def original() -> Contestant:
    start = broker([str(ORIGINAL_PROGRAM)], {f"agent.virtual.{AGENT}": "MASTER"})
    return Contestant(ORIGINAL, "the Rust broker (0.10.5)", start)


def program_of(checkout: Path) -> Path:
    """Return the program of a checkout that was set up. Raises: BenchError."""
    program = checkout.resolve() / ".venv" / "bin" / "megaphone"
    if not program.exists():
        raise BenchError(f"{program} does not exist; `make setup` there makes it")
    return program


OUR_BROKER = Contestant(OURS, "this broker", ours(Path(sys.executable).with_name("megaphone")))


# -- The choice


def before(checkout: Path) -> Contestant:
    return Contestant(BEFORE, f"this broker as it is in {checkout}", ours(program_of(checkout)))


@dataclass(frozen=True, slots=True)
class Other:
    contestant: Callable[[], Contestant]
    missing: Callable[[], str | None]
    """The reason why it cannot take part here; None if it can."""


def missing_original() -> str | None:
    is_built = os.access(ORIGINAL_PROGRAM, os.X_OK)
    return None if is_built else "`python -m tests.compat.build` has not built it"


OTHERS = {ORIGINAL: Other(original, missing_original)}


def chosen(names: Sequence[str], checkout: Path | None) -> tuple[list[Contestant], list[str]]:
    """Return our broker and those of the others that can take part, and who cannot and why."""
    absent = {name: reason for name in names if (reason := OTHERS[name].missing())}
    contestants = [OUR_BROKER]
    if checkout is not None:
        contestants.append(before(checkout))
    contestants += [OTHERS[name].contestant() for name in names if name not in absent]
    return contestants, [f"{name} does not take part: {why}" for name, why in absent.items()]
