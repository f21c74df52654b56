"""600 seeded runs against a broker in this process, or about 100 in a short run: no silent loss.

`FAULT_SEED=acknowledging-17 make test ARGS="-k one_seed -s"` runs one of them again. `make soak`
does thousands of other runs.
"""

import os
from collections.abc import Sequence
from itertools import product

import pytest

from megaphone.app import App
from tests.support.checker import Kind
from tests.support.fault_readers import BEFORE_ANSWER, GRPC_CUTS, HTTP_CUTS, How
from tests.support.fault_runs import TRANSPORTS, Finished, Scenario, run_all
from tests.support.raw_http import Node
from tests.support.settings import IS_LONG

WINDOW_S = 0.3
AT_ONCE = 8
SEEDS = range(200 if IS_LONG else 120)
"""The seeds of each kind. A short run leaves out those that go away in no way of their own."""
PARTS = 2
MIDST = 2
"""So many events and more are the midst of a read."""

pytestmark = [
    pytest.mark.settings(poll_duration_millis=round(WINDOW_S * 1000)),
    pytest.mark.timeout(180),
]


def ways(kind: Kind, seed: int) -> set[tuple[str, How, int]]:
    """Return how and when the reader of a seed goes away: transport, way, and events before."""
    scenario = Scenario.draw(kind, seed, window_s=WINDOW_S)
    cuts = [
        (scenario.transport_of(number), scenario.cut_of(number, has_cursor=True))
        for number in range(scenario.cuts)
    ]
    return {(transport, cut.how, min(cut.after_events, MIDST)) for transport, cut in cuts if cut}


def seeds_of(kind: Kind, part: int) -> list[int]:
    """Return a part of the seeds. In a short run each goes away as no smaller seed does."""
    known: set[tuple[str, How, int]] = set()
    chosen = []
    for seed in SEEDS:
        drawn = ways(kind, seed)
        if IS_LONG or not drawn <= known:
            chosen.append(seed)
        known |= drawn
    return chosen[part::PARTS]


async def finish(app: App, kind: Kind, seeds: Sequence[int]) -> list[Finished]:
    scenarios = [Scenario.draw(kind, seed, window_s=WINDOW_S) for seed in seeds]
    finished = await run_all(Node(app.http_port, app.grpc_port), scenarios, at_once=AT_ONCE)
    assert len(finished) == len(seeds)
    wrong = [run.explanation() for run in finished if not run.is_as_promised]
    assert not wrong, "\n".join(wrong[:3])
    return finished


@pytest.mark.parametrize("part", range(PARTS))
async def test_an_acknowledging_reader_loses_nothing(app: App, part: int) -> None:
    finished = await finish(app, Kind.ACKNOWLEDGING, seeds_of(Kind.ACKNOWLEDGING, part))
    verdicts = [run.verdict for run in finished]
    assert sum(verdict.taken for verdict in verdicts) > 60 * len(finished)
    assert all(verdict.once + verdict.repeated == verdict.taken for verdict in verdicts)


@pytest.mark.parametrize("part", range(PARTS))
async def test_a_resuming_reader_loses_nothing_within_the_buffer_and_is_told_beyond(
    app: App, part: int
) -> None:
    finished = await finish(app, Kind.RESUMING, seeds_of(Kind.RESUMING, part))
    for run in finished:
        verdict = run.verdict
        assert verdict.repeated == 0
        assert verdict.once + verdict.lost_told == verdict.taken
        # The log keeps all events of so short a run, so there is no loss to report.
        assert run.scenario.events > run.history.capacity or verdict.lost_told == 0


@pytest.mark.parametrize("part", range(PARTS))
async def test_a_plain_reader_loses_only_what_is_beyond_its_promise(app: App, part: int) -> None:
    finished = await finish(app, Kind.PLAIN, seeds_of(Kind.PLAIN, part))
    for run in finished:
        verdict = run.verdict
        excused = verdict.lost_beyond_ring + verdict.lost_at_window_end
        assert verdict.once + verdict.repeated + excused == verdict.taken
        assert run.scenario.events > run.history.capacity or verdict.lost_beyond_ring == 0


@pytest.mark.parametrize("kind", Kind)
def test_the_seeds_have_every_way_to_go_away_at_every_moment(kind: Kind) -> None:
    moments = (BEFORE_ANSWER, 0, 1, MIDST)
    drawn = set().union(
        *(ways(kind, seed) for part in range(PARTS) for seed in seeds_of(kind, part))
    )
    assert drawn == {
        (transport, how, moment)
        for transport, moment in product(TRANSPORTS, moments)
        for how in (GRPC_CUTS if transport == "grpc" else HTTP_CUTS)
    }


@pytest.mark.skipif("FAULT_SEED" not in os.environ, reason="repeats the run named by FAULT_SEED")
async def test_one_seed(app: App) -> None:
    kind, _, seed = os.environ["FAULT_SEED"].rpartition("-")
    await finish(app, Kind(kind), range(int(seed), int(seed) + 1))
