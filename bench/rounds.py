"""Measures several servers alternately, so that a disturbance of the machine affects all equally.

Rates use the CPU time of a server, not only the wall time. So other processes on its core, or a
load that is too slow for it, do not make the server look slow.
"""

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bench.processes import BenchError


@dataclass(frozen=True, slots=True)
class Plan:
    """How much time a run takes."""

    rounds: int
    round_s: float
    warm_up_s: float
    latency_rounds: int
    latency_s: float
    """How long a round lasts that measures latencies."""
    idle_channels: int
    open_reads: int
    open_rpc_reads: int
    buffered_events: int
    hold_rounds: int
    store_rounds: int
    node_sizes: Sequence[int]
    """How many channels the nodes have whose growth is measured."""


FULL = Plan(
    rounds=7,
    round_s=0.6,
    warm_up_s=0.3,
    latency_rounds=3,
    latency_s=4,
    idle_channels=100_000,
    open_reads=10_000,
    open_rpc_reads=2_000,
    buffered_events=50_000,
    hold_rounds=5,
    store_rounds=2,
    node_sizes=(1_000, 10_000, 100_000),
)
QUICK = Plan(
    rounds=3,
    round_s=0.3,
    warm_up_s=0.1,
    latency_rounds=2,
    latency_s=1,
    idle_channels=10_000,
    open_reads=1_000,
    open_rpc_reads=1_000,
    buffered_events=10_000,
    hold_rounds=2,
    store_rounds=1,
    node_sizes=(1_000, 10_000),
)


# -- One measurement of one server


@dataclass(frozen=True, slots=True)
class Sample:
    """The work of a server in some time."""

    count: int
    seconds: float
    core_seconds: float
    """The CPU time of the server in that time."""
    load_seconds: float = 0.0
    """The CPU time of the load in that time."""
    waiting_seconds: float = 0.0
    """How long the server was ready to compute while its core did other work."""

    @property
    def per_second(self) -> float:
        return self.count / self.seconds

    @property
    def per_core_second(self) -> float:
        return self.count / self.core_seconds

    @property
    def busy(self) -> float:
        """The share of the time in which the server was computing."""
        return self.core_seconds / self.seconds

    @property
    def waiting(self) -> float:
        return self.waiting_seconds / self.seconds

    @property
    def load_busy(self) -> float:
        """The share of the time in which the load was computing."""
        return self.load_seconds / self.seconds


class Watch:
    """Measures the processes of a server, and the load, which is this process, from the creation of
    this object."""

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self.began = time.monotonic()
        self._load_before = time.process_time()
        self._waited_before = self._waited()
        self._computed_before = self._computed()

    def _waited(self) -> float:
        return sum(map(waiting_seconds, self._pids))

    def _computed(self) -> float:
        return sum(map(core_seconds, self._pids))

    def sample(self, count: int) -> Sample:
        return Sample(
            count,
            core_seconds=self._computed() - self._computed_before,
            seconds=time.monotonic() - self.began,
            load_seconds=time.process_time() - self._load_before,
            waiting_seconds=self._waited() - self._waited_before,
        )


def core_seconds(pid: int) -> float:
    """Return the CPU time of a process and all its threads so far.

    Raises: BenchError, if the process has ended, or if the system is not Linux.
    """
    cpu_clock_of_process = (~pid << 3) | 2  # this is what clock_getcpuclockid(3) returns
    try:
        return time.clock_gettime(cpu_clock_of_process)
    except OSError as error:
        raise BenchError("no time of a server: it has ended, or this is not Linux") from error


def waiting_seconds(pid: int) -> float:
    """Return how long the main thread of a process has waited for a core so far."""
    try:
        _, waited_ns, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    except OSError:  # some kernels do not say it
        return 0.0
    return int(waited_ns) / 1e9


# -- Rounds


T = TypeVar("T")
Measure = Callable[[float], Awaitable[Sample]]
"""Puts load on a server for the given number of seconds."""


def in_thread(measure: Callable[[float], T]) -> Callable[[float], Awaitable[T]]:
    """Measure by a load that blocks, so that signals still end the run."""

    async def run(seconds: float) -> T:
        return await asyncio.to_thread(measure, seconds)

    return run


async def alternate(name: str, plan: Plan, sides: Mapping[str, Measure]) -> dict[str, list[Sample]]:
    """Measure all sides several times, each time beginning with another one."""
    if plan.warm_up_s:
        for measure in sides.values():
            await measure(plan.warm_up_s)
    samples: dict[str, list[Sample]] = {side: [] for side in sides}
    for number in range(plan.rounds):
        for side in rotated(list(sides), number):
            samples[side].append(await sides[side](plan.round_s))
        rates = ", ".join(
            f"{side} {all_[-1].per_core_second:,.0f}" for side, all_ in samples.items()
        )
        progress(f"{name}: round {number + 1} of {plan.rounds}: {rates} /s")
    return samples


def rotated(sides: Sequence[str], by: int) -> list[str]:
    start = by % len(sides)
    return [*sides[start:], *sides[:start]]


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
