"""Runs readers of all kinds, writers and faults for minutes, and looks for leaks.

    python -m tests.soak [--minutes 10]
    python -m tests.soak --moves 1000 [--first 0] [--at-once 8]

It prints a line every ten seconds. At the end no open read, no waiting writer and no channel may be
left, and memory must be flat: the mean of the last quarter is compared with that of the second.
With `--moves` it does the given number of runs in which channels move between three nodes, under
faults (`tests.support.move_runs`). It explains each run that violates the promise, and sums up.
The exit code is 0 if nothing is left and no run violates the promise; otherwise it is 1.
"""

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import aiohttp

from tests.support import move_runs
from tests.support.checker import Kind
from tests.support.fault_runs import Finished, Scenario, run_all
from tests.support.move_scenarios import Scenario as MoveScenario
from tests.support.process import MEGAPHONE, BrokerProcess, broker_process
from tests.support.raw_http import Node

WINDOW_S = 0.5
TTL_S = 3
AT_ONCE = 6
RUNS_A_ROUND = 30
REPORT_EVERY_S = 10.0
REPORT_EVERY_RUNS = 100
GROWTH_ALLOWED = 0.05
LEFTOVERS = ("megaphone_reads_open", "megaphone_writers_waiting", "megaphone_channels")
RESIDENT = "process_resident_memory_bytes"


@dataclass
class Soak:
    broker: BrokerProcess
    ends_at: float
    runs: int = 0
    events: int = 0
    wrong: list[Finished] = field(default_factory=list)
    resident: list[float] = field(default_factory=list)

    async def work(self) -> None:
        node = Node(self.broker.http_port, self.broker.grpc_port)
        kinds = itertools.cycle(Kind)
        for first in itertools.count(0, RUNS_A_ROUND):
            if time.monotonic() >= self.ends_at:
                return
            kind = next(kinds)
            seeds = range(first, first + RUNS_A_ROUND)
            scenarios = [Scenario.draw(kind, seed, window_s=WINDOW_S) for seed in seeds]
            for finished in await run_all(node, scenarios, at_once=AT_ONCE):
                self.runs += 1
                self.events += finished.verdict.taken
                if not finished.is_as_promised:
                    self.wrong.append(finished)

    async def watch(self) -> None:
        started = time.monotonic()
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            values = await metrics(self.broker)
            self.resident.append(values[RESIDENT])
            print(
                f"{time.monotonic() - started:5.0f} s  runs {self.runs:5}  events {self.events:7}"
                f"  resident {values[RESIDENT] / 1e6:6.1f} MB"
                f"  reads {values['megaphone_reads_open']:3.0f}"
                f"  channels {values['megaphone_channels']:4.0f}  wrong {len(self.wrong)}",
                flush=True,
            )

    def complaints(self) -> Iterator[str]:
        yield from (finished.explanation() for finished in self.wrong)
        quarter = len(self.resident) // 4
        if quarter:
            early, late = mean(self.resident[quarter : 2 * quarter]), mean(self.resident[-quarter:])
            if late > early * (1 + GROWTH_ALLOWED):
                yield f"memory grew from {early / 1e6:.1f} to {late / 1e6:.1f} MB"


async def metrics(broker: BrokerProcess) -> dict[str, float]:
    async with aiohttp.ClientSession(broker.url) as session, session.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


async def leftovers(broker: BrokerProcess) -> list[str]:
    """Wait until every channel should have expired. Returns: what is left nevertheless."""
    deadline = time.monotonic() + TTL_S + 10
    while True:
        values = await metrics(broker)
        left = [f"{name} is {values[name]:g}" for name in LEFTOVERS if values[name]]
        if not left or time.monotonic() > deadline:
            return left
        await asyncio.sleep(0.5)


async def soak(minutes: float) -> list[str]:
    with (
        tempfile.TemporaryDirectory() as directory,
        broker_process(
            Path(directory),
            MEGAPHONE,
            poll_duration_millis=round(WINDOW_S * 1000),
            channel_ttl_secs=TTL_S,
        ) as broker,
    ):
        run = Soak(broker, ends_at=time.monotonic() + minutes * 60)
        watching = asyncio.create_task(run.watch())
        await run.work()
        watching.cancel()
        return [*run.complaints(), *await leftovers(broker)]


async def soak_moves(runs: int, first: int, at_once: int) -> list[str]:
    done: list[move_runs.Finished] = []

    def report(finished: move_runs.Finished) -> None:
        done.append(finished)
        if not finished.is_as_promised:
            print(finished.explanation(), flush=True)
        if len(done) % REPORT_EVERY_RUNS == 0:
            print(move_runs.summary(done), flush=True)

    scenarios = (MoveScenario.draw(seed) for seed in range(first, first + runs))
    await move_runs.run_all(scenarios, at_once=at_once, report=report)
    wrong = [f"run {one.scenario.name}" for one in done if not one.is_as_promised]
    print(move_runs.summary(done))
    return [f"not as promised: {', '.join(wrong)}"] if wrong else []


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--moves", type=int, metavar="RUNS")
    parser.add_argument("--first", type=int, default=0, metavar="SEED")
    parser.add_argument("--at-once", type=int, default=8)
    asked = parser.parse_args()
    if asked.moves is not None:
        wrong = asyncio.run(soak_moves(asked.moves, asked.first, asked.at_once))
        print("\n".join(wrong) or "Every run was as promised.")
        sys.exit(1 if wrong else 0)
    complaints = asyncio.run(soak(asked.minutes))
    print("\n".join(complaints) or "Nothing is left over, and memory is flat.")
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
