"""The memory of this process: how much the system lets it have, and giving back what it frees."""

import asyncio
import ctypes
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
"""What is assumed where the system does not say."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Options of glibc's mallopt(3)."""
MAPPED_FROM_BYTES = 131_072
"""Blocks from this size on are mapped one by one, so that each goes back when it is freed."""

SMALL_BYTES = 1 << 31
"""A process that may have no more than this gives back small blocks too. It takes some milliseconds
for each 100 MB, which a larger one would not earn back."""
TRIM_EVERY_S = 5.0
TRIM_SELDOM_S = 80.0
WORTHWHILE = 0.02
"""The part of its memory that a process must have given back for the next try to come as soon."""


def allowed_bytes() -> int:
    """Return how many bytes of memory this process may use.

    That is the least of what the machine has, of the limits of the process (`ulimit -d`, `-v`), and
    of those of its control groups (versions 1 and 2), by which containers are bounded.
    """
    return min(_limits(), default=FALLBACK_BYTES)


def _limits() -> Iterator[int]:
    for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS):
        soft, _ = resource.getrlimit(kind)
        if soft != resource.RLIM_INFINITY:
            yield soft
    for file in _cgroup_files():
        text = _read(file).strip()
        if text.isdecimal():  # version 2 says "max" where there is no limit
            yield int(text)
    for line in _read(MEMORY_INFO).splitlines():
        if line.startswith("MemTotal:"):
            yield int(line.split()[1]) * 1024


def _cgroup_files() -> Iterator[Path]:
    """Yield the files with the limits of each control group of this process, up to the root.

    In a container the path of the group may not be there, because the container sees its own
    group as the root; so the root is always among them.
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


def give_back_what_is_freed() -> None:
    """Have the C library return the memory of large blocks to the system when they are freed.

    By default glibc raises its threshold for mapped blocks to the size of whatever was freed last.
    From then on large blocks lie between small ones, and their memory stays with the process.
    Without effect under another C library.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, MAPPED_FROM_BYTES)
        library.mallopt(M_ARENA_MAX, 1)  # one heap for all threads, or each keeps what it freed


async def keep_small() -> None:
    """Give back the memory of small blocks too, again and again, where memory is scarce.

    The C library does so by itself only at the end of its heap. Returns where there is plenty.
    """
    library = ctypes.CDLL(None)
    if allowed_bytes() > SMALL_BYTES or not hasattr(library, "malloc_trim"):
        return
    pause_s = TRIM_EVERY_S
    while True:
        await asyncio.sleep(pause_s)
        before = resident_pages()
        library.malloc_trim(0)
        freed = before - resident_pages()
        pause_s = TRIM_EVERY_S if freed > WORTHWHILE * before else min(2 * pause_s, TRIM_SELDOM_S)


def resident_pages() -> int:
    return int(STATISTICS.read_text().split()[1])
