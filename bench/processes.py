"""The measured processes. Each is pinned to one core, and is stopped by its id.

The load runs on the other cores. If a process may not choose its cores, or the machine has only one
core, nothing is pinned. The ratios are still comparable.
"""

import asyncio
import os
import resource
import shutil
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import IO

HOST = "127.0.0.1"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
OPEN_FILES = 24_000
FACES = 2
"""Our broker shares the files of its clients evenly between its faces."""
RESERVED_FILES = 500


class BenchError(Exception):
    """A measurement failed. The message gives the reason."""


# -- Cores


def cores() -> tuple[set[int], set[int]] | None:
    """Return the core of the servers and the cores of the load; None if there is no choice."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    first, *others = sorted(os.sched_getaffinity(0))
    return ({first}, set(others)) if others else None


@contextmanager
def pinned(to: set[int] | None) -> Iterator[None]:
    """Run this thread and the processes that it starts in this context only on the given cores."""
    if to is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, to)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# -- Starting and stopping


@asynccontextmanager
async def running(
    command: Sequence[str],
    *,
    on_cores: set[int] | None = None,
    stdin: int = DEVNULL,
    stdout: int | IO[bytes] = DEVNULL,
    stderr: int | IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
    folder: str | None = None,
) -> AsyncIterator[Process]:
    """Run a command within this context. Its process has ended when the context ends."""
    with pinned(on_cores):
        process = await asyncio.create_subprocess_exec(
            *command, stdin=stdin, stdout=stdout, stderr=stderr, env=environment, cwd=folder
        )
    try:
        yield process
    finally:
        await stop(process)


async def stop(process: Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()


async def output_of(command: Sequence[str], on_cores: set[int] | None = None) -> str:
    """Run a command to its end and return its output. Raises: BenchError, if it fails."""
    async with running(command, on_cores=on_cores, stdout=PIPE, stderr=PIPE) as process:
        out, err = await process.communicate()
    if process.returncode != 0:
        raise BenchError(f"{Path(command[0]).name} failed: {last_line(err)}")
    return out.decode()


def opened(log: Path) -> IO[bytes]:
    return log.open("wb")


def last_line_of(log: Path) -> str:
    return last_line(log.read_bytes())


def last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


# -- Servers


def clean_environment() -> dict[str, str]:
    """Return the environment of this process without settings of the broker and of grpc."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.lower().startswith(("megaphone_", "grpc_"))
    }


def environment_of(settings: Mapping[str, object]) -> dict[str, str]:
    return {f"megaphone_{key}": str(value) for key, value in settings.items()}


async def answers(process: Process, port: int, log: Path) -> None:
    """Wait until a process listens on a port. Raises: BenchError, if the process ends first."""
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            while not await listens(port):
                if process.returncode is not None:
                    raise BenchError(f"a server did not start: {last_line_of(log)}")
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise BenchError(f"a server did not start within {START_TIMEOUT_S:g} s") from None


async def listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


def program(name: str) -> str | None:
    """Return the path of a program, also of one that only administrators have on their PATH."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


async def only_child_of(pid: int) -> int:
    """Wait until a process has its child. Raises: BenchError, if it has another number of them."""
    [child] = await children_of(pid, 1)
    return child


async def children_of(pid: int, count: int) -> tuple[int, ...]:
    """Wait until a process has so many children. Raises: BenchError, if it has more."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    async with asyncio.timeout(START_TIMEOUT_S):
        while True:
            if len(children := path.read_text().split()) >= count:
                break
            await asyncio.sleep(0.02)
    if len(children) > count:
        raise BenchError(f"a server has {len(children)} processes instead of {count}")
    return tuple(map(int, children))


# -- The cores and files of this process


def server_cores() -> set[int] | None:
    chosen = cores_at_start
    return chosen[0] if chosen else None


cores_at_start = cores()


def go_to_load_cores() -> None:
    """Keep this process and the load that it starts away from the core of the servers."""
    if cores_at_start:
        os.sched_setaffinity(0, cores_at_start[1])


def allow_open_files() -> None:
    """Raise the limit of open files for this process and its children as far as allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= OPEN_FILES:
        return
    for limits in ((OPEN_FILES, max(OPEN_FILES, hard)), (hard, hard)):
        with suppress(ValueError, OSError):  # only root may raise the second one
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            return


def most_connections() -> int:
    """Return how many connections our broker surely accepts over HTTP with this limit of files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = OPEN_FILES if soft == resource.RLIM_INFINITY else soft
    return limit // FACES - RESERVED_FILES


# -- What a process uses


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process. Raises: BenchError, if the system does not say
    it."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError as error:
        raise BenchError(f"the memory of a process cannot be read: {error.strerror}") from error
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))
