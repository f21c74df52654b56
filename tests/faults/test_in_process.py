"""600 seeded runs against a broker in this process, or 360 in a short run: no silent loss.

`FAULT_SEED=acknowledging-17 make test ARGS="-k one_seed -s"` runs one of them again. `make soak`
does thousands of other runs.
"""

import os
from itertools import product

import pytest

from megaphone.app import App
from tests.support.checker import Kind
from tests.support.fault_readers import BEFORE_ANSWER, GRPC_CUTS, HTTP_CUTS
from tests.support.fault_runs import TRANSPORTS, Finished, Scenario, run_all
from tests.support.raw_http import Node
from tests.support.settings import IS_LONG

WINDOW_S = 0.3
AT_ONCE = 8
RUNS = 100 if IS_LONG else 60
"""The number of runs of one test."""
FIRSTS = range(0, 2 * RUNS, RUNS)
MIDST = 2
"""So many events and more are the midst of a read."""

pytestmark = [
    pytest.mark.settings(poll_duration_millis=round(WINDOW_S * 1000)),
    pytest.mark.timeout(180),
]


async def finish(app: App, kind: Kind, seeds: range) -> list[Finished]:
    scenarios = [Scenario.draw(kind, seed, window_s=WINDOW_S) for seed in seeds]
    finished = await run_all(Node(app.http_port, app.grpc_port), scenarios, at_once=AT_ONCE)
    assert len(finished) == len(seeds)
    wrong = [run.explanation() for run in finished if not run.is_as_promised]
    assert not wrong, "\n".join(wrong[:3])
    return finished


@pytest.mark.parametrize("first", FIRSTS)
async def test_an_acknowledging_reader_loses_nothing(app: App, first: int) -> None:
    finished = await finish(app, Kind.ACKNOWLEDGING, range(first, first + RUNS))
    verdicts = [run.verdict for run in finished]
    assert sum(verdict.taken for verdict in verdicts) > 60 * RUNS
    assert all(verdict.once + verdict.repeated == verdict.taken for verdict in verdicts)


@pytest.mark.parametrize("first", FIRSTS)
async def test_a_resuming_reader_loses_nothing_within_the_buffer_and_is_told_beyond(
    app: App, first: int
) -> None:
    finished = await finish(app, Kind.RESUMING, range(first, first + RUNS))
    for run in finished:
        verdict = run.verdict
        assert verdict.repeated == 0
        assert verdict.once + verdict.lost_told == verdict.taken
        # The log keeps all events of so short a run, so there is no loss to report.
        assert run.scenario.events > run.history.capacity or verdict.lost_told == 0


@pytest.mark.parametrize("first", FIRSTS)
async def test_a_plain_reader_loses_only_what_is_beyond_its_promise(app: App, first: int) -> None:
    finished = await finish(app, Kind.PLAIN, range(first, first + RUNS))
    for run in finished:
        verdict = run.verdict
        excused = verdict.lost_beyond_ring + verdict.lost_at_window_end
        assert verdict.once + verdict.repeated + excused == verdict.taken
        assert run.scenario.events > run.history.capacity or verdict.lost_beyond_ring == 0


@pytest.mark.parametrize("kind", Kind)
def test_the_seeds_have_every_way_to_go_away_at_every_moment(kind: Kind) -> None:
    moments = (BEFORE_ANSWER, 0, 1, MIDST)
    drawn = set()
    for seed in range(FIRSTS.start, FIRSTS.stop):
        scenario = Scenario.draw(kind, seed, window_s=WINDOW_S)
        for number in range(scenario.cuts):
            cut = scenario.cut_of(number, has_cursor=True)
            assert cut is not None
            drawn.add((scenario.transport_of(number), cut.how, min(cut.after_events, MIDST)))
    assert drawn == {
        (transport, how, moment)
        for transport, moment in product(TRANSPORTS, moments)
        for how in (GRPC_CUTS if transport == "grpc" else HTTP_CUTS)
    }


@pytest.mark.skipif("FAULT_SEED" not in os.environ, reason="repeats the run named by FAULT_SEED")
async def test_one_seed(app: App) -> None:
    kind, _, seed = os.environ["FAULT_SEED"].rpartition("-")
    await finish(app, Kind(kind), range(int(seed), int(seed) + 1))
