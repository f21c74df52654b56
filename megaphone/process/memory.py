"""The memory of this process: how much it may use, and returning freed memory to the system."""

import asyncio
import ctypes
import gc
import resource
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
"""The control groups of this process, a line each: number, controllers, path."""
MEMORY_INFO = Path("/proc/meminfo")
STATISTICS = Path("/proc/self/statm")
"""The memory of this process in pages: all, resident, …"""
FALLBACK_BYTES = 1 << 30
"""The assumed limit if the system does not report one."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Options of glibc's mallopt(3)."""
MAPPED_FROM_BYTES = 131_072
"""From this size on, malloc maps each block of memory separately. So the block goes back to the
system when it is freed, even if other blocks are still in use."""

OWN_BYTES = 160 << 20
"""What a node needs at most beside the memory of its clients: for itself, for messages that gRPC
receives, and for gaps between blocks of memory."""
LEAST_FOR_CLIENTS = 16 << 20

SMALL_BYTES = 1 << 31
"""A process that may use at most this much gives smaller blocks back to the system too. That takes
some milliseconds for each 100 MB, which is not worthwhile in a larger process."""
YOUNG = 1
"""The generation up to which objects are collected then, because garbage is seldom old."""
TRIM_EVERY_S = 5.0
TRIM_SELDOM_S = 80.0
WORTHWHILE = 0.02
"""If one try gives more than this part of the memory back to the system, the next try follows
soon."""


def allowed_bytes(workers: int = 1) -> int:
    """Return how many bytes of memory this process may use, if it is one of so many equal ones.

    All of them may use the smallest of the memory of the machine, the limits of the process
    (`ulimit -d`, `-v`), and the limits of its control groups (versions 1 and 2), which bound
    containers.
    """
    return min(_limits(), default=FALLBACK_BYTES) // workers


def bytes_for_clients(workers: int = 1) -> int:
    """Return how many bytes clients may make this process use, if no setting says it.

    That is half of what the process may use, but less if the other half would be too small for the
    process itself.
    """
    allowed = allowed_bytes(workers)
    return max(LEAST_FOR_CLIENTS, min(allowed // 2, allowed - OWN_BYTES))


def _limits() -> Iterator[int]:
    for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield soft
    for file in _cgroup_files():
        text = _read(file).strip()
        if text.isdecimal():  # version 2 writes "max" for no limit
            yield int(text)
    for line in _read(MEMORY_INFO).splitlines():
        if line.startswith("MemTotal:"):
            yield int(line.split()[1]) * 1024


def _cgroup_files() -> Iterator[Path]:
    """Yield the files with the limits of each control group of this process, up to the root.

    A container sees its own group as the root, so the path of the group may be missing there.
    Therefore the root is always among them.
    """
    for line in _read(MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.lstrip("/")
        while group != root:
            yield group / name
            group = group.parent
        yield root / name


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def return_freed_memory() -> None:
    """Make the C library return the memory of large blocks to the system when they are freed.

    By default glibc raises its threshold for mapped blocks to the size of the last block that was
    freed. From then on large blocks lie between small ones, and the process keeps their memory.
    Another C library is left as it is.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, MAPPED_FROM_BYTES)
        library.mallopt(M_ARENA_MAX, 1)  # one heap, because each heap keeps what it frees


async def keep_small(workers: int = 1) -> None:
    """Return the memory of small blocks to the system too, again and again, if memory is scarce.

    The C library does that by itself only at the end of its heap. And the interpreter collects
    garbage only while new objects are made, so an idle process would keep what refers to itself.
    If memory is not scarce, this coroutine ends at once.
    """
    library = ctypes.CDLL(None)
    if allowed_bytes(workers) > SMALL_BYTES or not hasattr(library, "malloc_trim"):
        return
    pause_s = TRIM_EVERY_S
    while True:
        await asyncio.sleep(pause_s)
        before = resident_pages()
        gc.collect(YOUNG)
        library.malloc_trim(0)
        freed = before - resident_pages()
        pause_s = TRIM_EVERY_S if freed > WORTHWHILE * before else min(2 * pause_s, TRIM_SELDOM_S)


def resident_pages() -> int:
    return int(STATISTICS.read_text().split()[1])
