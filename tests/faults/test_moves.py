"""Seeded runs in which channels move between three nodes, under faults: the promise holds.

`MOVES_SEED=17 make test ARGS="-k one_move -s"` repeats one run. `MOVES_SEED=17-processes` repeats a
run whose nodes are processes. `make soak ARGS="--moves 1000"` does any number of runs.
"""

import os

import pytest

from tests.support.move_runs import Finished, run_all, summary
from tests.support.move_scenarios import Act, Scenario
from tests.support.settings import IS_LONG

AT_ONCE = 8
RUNS = 40 if IS_LONG else 22
RUNS_IN_PROCESSES = 2

pytestmark = [pytest.mark.timeout(180), pytest.mark.group("heavy load")]


def check(finished: list[Finished], runs: int) -> None:
    print(summary(finished))
    assert len(finished) == runs
    wrong = [run.explanation() for run in finished if not run.is_as_promised]
    assert not wrong, "\n".join([*wrong[:3], f"{len(wrong)} of {runs} runs are not as promised"])


async def test_channels_keep_their_promise_while_they_move() -> None:
    scenarios = [Scenario.draw(seed) for seed in range(RUNS)]
    scenarios.sort(
        key=lambda scenario: not scenario.is_slow
    )  # the slow scenarios wait most of the time
    check(await run_all(scenarios, at_once=AT_ONCE), RUNS)


def test_the_seeds_have_everything_that_is_done_to_nodes() -> None:
    assert {act for seed in range(RUNS) for act in Scenario.draw(seed).acts} == set(Act)


async def test_channels_keep_their_promise_while_processes_are_killed() -> None:
    seeds = range(10_000, 10_000 + RUNS_IN_PROCESSES)
    scenarios = [Scenario.draw(seed, in_processes=True) for seed in seeds]
    check(await run_all(scenarios, at_once=RUNS_IN_PROCESSES), RUNS_IN_PROCESSES)


@pytest.mark.skipif("MOVES_SEED" not in os.environ, reason="repeats the run named by MOVES_SEED")
async def test_one_move() -> None:
    seed, _, where = os.environ["MOVES_SEED"].partition("-")
    scenario = Scenario.draw(int(seed), in_processes=where == "processes")
    finished = await run_all([scenario], at_once=1)
    print(*finished[0].happened, sep="\n")
    check(finished, 1)
