"""Measures two things alternately, so that a disturbance of the machine affects both equally.

Rates use the CPU time of a server, not only the wall time. So other processes on its core, or a
load that is too slow for it, do not make the server look slow.
"""

import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from bench.processes import BenchError


@dataclass(frozen=True, slots=True)
class Plan:
    """How much time a run takes."""

    rounds: int
    round_s: float
    warm_up_s: float
    idle_channels: int
    open_reads: int = 1_000
    load: str = "auto"
    """The load with one write per request: wrk, python, or auto, which prefers wrk."""


FULL = Plan(rounds=9, round_s=0.6, warm_up_s=0.3, idle_channels=50_000)
QUICK = Plan(rounds=3, round_s=0.3, warm_up_s=0, idle_channels=10_000, open_reads=500)


# -- One measurement of one side


@dataclass(frozen=True, slots=True)
class Sample:
    """The work of a server in some time."""

    count: int
    seconds: float
    core_seconds: float
    """The CPU time of the server in that time."""

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


class Watch:
    """Measures a server from the creation of this object on."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.began = time.monotonic()
        self._computed_before = core_seconds(pid)

    def sample(self, count: int, seconds: float | None = None) -> Sample:
        """Return the work since the start. `seconds` is the duration, if the load has measured
        it."""
        if seconds is None:
            seconds = time.monotonic() - self.began
        return Sample(count, seconds, core_seconds(self._pid) - self._computed_before)


def core_seconds(pid: int) -> float:
    """Return the CPU time of a process and all its threads so far.

    Raises: BenchError, if the process has ended, or if the system is not Linux.
    """
    cpu_clock_of_process = (~pid << 3) | 2  # this is what clock_getcpuclockid(3) returns
    try:
        return time.clock_gettime(cpu_clock_of_process)
    except OSError as error:
        raise BenchError("no time of a server: it has ended, or this is not Linux") from error


# -- Rounds


@dataclass(frozen=True, slots=True)
class Round:
    """The broker and the baseline, one directly after the other."""

    ours: Sample
    baseline: Sample

    @property
    def ratio(self) -> float:
        return self.ours.per_core_second / self.baseline.per_core_second

    @property
    def ratio_by_clock(self) -> float:
        return self.ours.per_second / self.baseline.per_second


Measure = Callable[[float], Awaitable[Sample]]
"""Puts load on a server for the given number of seconds."""


async def alternate(name: str, plan: Plan, ours: Measure, baseline: Measure) -> list[Round]:
    """Measure both several times, each time in the opposite order."""
    if plan.warm_up_s:
        for measure in (ours, baseline):
            await measure(plan.warm_up_s)
    rounds = []
    for number in range(plan.rounds):
        first, second = (ours, baseline) if number % 2 == 0 else (baseline, ours)
        samples = {measure: await measure(plan.round_s) for measure in (first, second)}
        rounds.append(Round(samples[ours], samples[baseline]))
        progress(f"{name}: round {number + 1} of {plan.rounds}, ratio {rounds[-1].ratio:.2f}")
    return rounds


def progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
