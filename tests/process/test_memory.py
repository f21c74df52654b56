import subprocess
import sys
from pathlib import Path

import pytest

from megaphone.process import memory

MIB = 1 << 20


def lay_out(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the root of a system without information about memory. Tests add files to it."""
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(memory, "MEMORY_INFO", tmp_path / "meminfo")
    return tmp_path


def test_a_process_may_use_the_memory_of_the_machine(system: Path) -> None:
    lay_out(system, {"meminfo": "MemTotal:        2048 kB\nMemFree:          12 kB\n"})
    assert memory.allowed_bytes() == 2 * MIB


def test_a_limit_of_a_control_group_counts(system: Path) -> None:
    lay_out(
        system,
        {
            "meminfo": "MemTotal: 8192 kB\n",
            "membership": "0::/a/b\n",
            "cgroup/a/b/memory.max": "max\n",
            "cgroup/a/memory.max": f"{3 * MIB}\n",
        },
    )
    assert memory.allowed_bytes() == 3 * MIB


def test_a_limit_of_the_first_version_counts(system: Path) -> None:
    lay_out(
        system,
        {
            "meminfo": "MemTotal: 8192 kB\n",
            "membership": "9:name=systemd:/\n4:cpu,memory:/box\n",
            "cgroup/memory/box/memory.limit_in_bytes": f"{5 * MIB}\n",
            "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert memory.allowed_bytes() == 5 * MIB


def test_a_container_that_sees_its_own_group_as_the_root_is_bounded(system: Path) -> None:
    lay_out(
        system,
        {
            "meminfo": "MemTotal: 8192 kB\n",
            "membership": "0::/not/visible/here\n",
            "cgroup/memory.max": f"{MIB}\n",
        },
    )
    assert memory.allowed_bytes() == MIB


def test_where_the_system_says_nothing_something_modest_is_assumed(system: Path) -> None:
    assert memory.allowed_bytes() == memory.FALLBACK_BYTES


def test_a_limit_of_the_process_counts() -> None:
    code = (
        "import resource; from megaphone.process import memory;"
        f"resource.setrlimit(resource.RLIMIT_DATA, ({256 * MIB}, {256 * MIB}));"
        "print(memory.allowed_bytes())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(told.stdout) == 256 * MIB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_large_blocks_go_back_to_the_system_when_they_are_freed() -> None:
    """The process keeps large blocks between small ones unless it asks for their return."""
    code = """
import pathlib
from megaphone.process import memory

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

memory.return_freed_memory()
freed = b"z" * (8 << 20)
del freed
before = resident()
kept, large = [], []
for number in range(100):
    large.append(b"x" * (1 << 20))
    kept.append(b"y" * 50_000)
large.clear()
print(resident() - before)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(told.stdout) < 20 * MIB


def test_small_blocks_go_back_too_where_memory_is_scarce() -> None:
    code = """
import asyncio
from megaphone.process import memory

memory.TRIM_EVERY_S = memory.TRIM_SELDOM_S = 0.01
memory.SMALL_BYTES = SMALL

async def main():
    kept, freed = [], []
    for number in range(10_000):
        freed.append(b"x" * 10_000)
        kept.append(b"y" * 1_000)
    full = memory.resident_pages()
    freed.append(freed)  # so that only a collection frees it
    del freed
    trimming = asyncio.create_task(memory.keep_small())
    await asyncio.wait({trimming}, timeout=0.5)
    print((full - memory.resident_pages()) * 4096)

asyncio.run(main())
"""
    for small, gives_back in (("memory.allowed_bytes()", True), ("0", False)):
        told = subprocess.run(
            [sys.executable, "-c", code.replace("= SMALL", f"= {small}")],
            capture_output=True,
            text=True,
            check=True,
        )
        assert (int(told.stdout) > 50 * MIB) is gives_back


@pytest.mark.parametrize(
    ("allowed", "for_clients"), [(1024, 512), (320, 160), (256, 96), (100, 16)]
)
def test_clients_may_use_half_of_it_and_less_of_a_little(
    system: Path, allowed: int, for_clients: int
) -> None:
    lay_out(system, {"meminfo": f"MemTotal: {allowed * 1024} kB\n"})
    assert memory.bytes_for_clients() == for_clients * MIB
