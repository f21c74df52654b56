"""A broker with little memory, in its own control group, like a container.

If the test cannot make a control group (it is not root, or the system has none), a setting tells
the broker its limit, and the test measures only the peak of its memory.
"""

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.support.process import MEGAPHONE, BrokerProcess, broker_process
from tests.support.raw_http import Node

ROOTS = (
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"),  # version 1
    (Path("/sys/fs/cgroup"), "memory.max"),
)


PEAKS = ("memory.peak", "memory.max_usage_in_bytes")
"""The files of a control group that have the largest use of memory, in versions 2 and 1."""


@dataclass(frozen=True, slots=True)
class SmallNode:
    process: BrokerProcess
    limit: int
    group: Path | None
    """The control group of the node; None if the system cannot bound its memory. Then the node only
    gets the budget that belongs to the limit, and returns less memory to the system."""

    @property
    def node(self) -> Node:
        return Node(self.process.http_port, self.process.grpc_port)

    @property
    def is_alive(self) -> bool:
        return self.process.process.poll() is None

    def resident(self) -> int:
        """Return how many bytes of memory the broker uses now."""
        return self._status("VmRSS")

    def peak(self) -> int:
        """Return the largest number of bytes that the broker has ever used, as the system counts
        them against its limit."""
        if self.group is not None:
            for name in PEAKS:
                with suppress(OSError):
                    return int((self.group / name).read_text())
        return self._status("VmHWM")

    def _status(self, name: str) -> int:
        status = Path(f"/proc/{self.process.process.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith(f"{name}:")]
        return int(line.split()[1]) * 1024


@contextmanager
def small_node(directory: Path, limit: int, **settings: object) -> Iterator[SmallNode]:
    with ExitStack() as stack:
        command = MEGAPHONE
        group = stack.enter_context(memory_group(limit))
        if group is None:
            settings = {"max_buffered_bytes": limit // 2} | settings
        else:
            command = str(starter(directory, group))
        process = stack.enter_context(broker_process(directory, command, **settings))
        yield SmallNode(process, limit, group)


@contextmanager
def memory_group(limit: int) -> Iterator[Path | None]:
    """Make a control group with a limit of memory. Yields: None if that is impossible."""
    for root, name in ROOTS:
        group = root / f"megaphone-test-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if bounded(group / name, limit):
                yield group
                return
        finally:
            with suppress(OSError):
                group.rmdir()  # the user of this context has ended its processes
    yield None


def bounded(file: Path, limit: int) -> bool:
    try:
        file.write_text(str(limit))
    except OSError:
        return False
    return True


def starter(directory: Path, group: Path) -> Path:
    """Return a command that runs the broker in a control group."""
    script = directory / "megaphone-in-group"
    # Not a shell: dash drops the variables whose names have dots, such as megaphone_tls.key.
    script.write_text(
        f"#!{sys.executable} -IS\n"
        "import os, sys\n"
        f"with open({str(group / 'cgroup.procs')!r}, 'w') as members:\n"
        "    members.write(str(os.getpid()))\n"
        f"os.execv({MEGAPHONE!r}, [{MEGAPHONE!r}, *sys.argv[1:]])\n"
    )
    script.chmod(0o755)
    return script
