"""Measuring two things in turn, so that what disturbs the machine disturbs both alike.

Rates are counted by the time that a server computed, not only by the clock: other processes on its
core, or a load that is too slow for it, then do not count as slowness of the server.
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
    """What sends one write per request: wrk, python, or auto for wrk where there is one."""


FULL = Plan(rounds=9, round_s=0.6, warm_up_s=0.3, idle_channels=50_000)
QUICK = Plan(rounds=3, round_s=0.3, warm_up_s=0, idle_channels=10_000, open_reads=500)


# -- One measurement of one side


@dataclass(frozen=True, slots=True)
class Sample:
    """What a server did in some time."""

    count: int
    seconds: float
    core_seconds: float
    """How long the server computed meanwhile."""

    @property
    def per_second(self) -> float:
        return self.count / self.seconds

    @property
    def per_core_second(self) -> float:
        return self.count / self.core_seconds

    @property
    def busy(self) -> float:
        """The part of the time in which the server computed."""
        return self.core_seconds / self.seconds


class Watch:
    """Times a server from its creation on."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.began = time.monotonic()
        self._computed_before = core_seconds(pid)

    def sample(self, count: int, seconds: float | None = None) -> Sample:
        """Return what was counted since; `seconds` says how long, if the load knows better."""
        if seconds is None:
            seconds = time.monotonic() - self.began
        return Sample(count, seconds, core_seconds(self._pid) - self._computed_before)


def core_seconds(pid: int) -> float:
    """Return how long a process, with all its threads, has computed so far.

    Raises: BenchError, when it has ended, or where that is not told (anywhere but on Linux).
    """
    cpu_clock_of_process = (~pid << 3) | 2  # what clock_getcpuclockid(3) returns
    try:
        return time.clock_gettime(cpu_clock_of_process)
    except OSError as error:
        raise BenchError("no time of a server: it has ended, or this is not Linux") from error


# -- Rounds


@dataclass(frozen=True, slots=True)
class Round:
    """Ours and the baseline, one right after the other."""

    ours: Sample
    baseline: Sample

    @property
    def ratio(self) -> float:
        return self.ours.per_core_second / self.baseline.per_core_second

    @property
    def ratio_by_clock(self) -> float:
        return self.ours.per_second / self.baseline.per_second


Measure = Callable[[float], Awaitable[Sample]]
"""Puts load on a server for so many seconds."""


async def alternate(name: str, plan: Plan, ours: Measure, baseline: Measure) -> list[Round]:
    """Measure both again and again, each time in the other order."""
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
