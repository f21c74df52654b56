"""A short run of the benchmark as a process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.access import CHECK, COUNTS, PLAIN
from bench.contestants import OTHERS, OURS, chosen, missing_redis
from bench.requests import WRITE
from bench.workers import ONE

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_one_scenario_runs_with_all_who_are_here() -> None:
    done = bench("--quick", "--only", "W1", "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["failures"] == {}
    [figure] = results["figures"]
    assert figure["name"] == "W1"
    others = {name for name in WRITE.who if name in OTHERS and OTHERS[name].missing() is None}
    assert set(figure["rounds"]) == {OURS, *others}
    for name, rounds in figure["rounds"].items():
        assert len(rounds) == 3
        assert min(rounds) > 0
        assert 0 < figure["load_busy"][name] < 1


@pytest.mark.skipif(missing_redis() is not None, reason="needs a Redis or Valkey server")
def test_two_workers_are_measured_beside_one() -> None:
    done = bench("--quick", "--only", "P1", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    assert [one["name"] for one in figures] == ["P1 workers", "P1 Redis"]
    for figure in figures:
        assert {name: len(rounds) for name, rounds in figure["rounds"].items()} == {OURS: 3, ONE: 3}
        assert min(map(min, figure["rounds"].values())) > 0


def test_the_check_of_a_caller_and_its_limits_are_measured() -> None:
    done = bench("--quick", "--only", "access", "--json")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    assert [one["what"] for one in figures] == [PLAIN, CHECK, COUNTS]
    assert 1 < min(figures[0]["rounds"][OURS]) < 1_000
    assert {(one["name"], one["unit"]) for one in figures} == {("access", "µs")}


def test_who_is_not_asked_for_does_not_take_part() -> None:
    contestants, absent = chosen([], None)
    assert [one.name for one in contestants] == [OURS]
    assert absent == []


def test_an_unknown_contestant_is_named() -> None:
    done = bench("--against", "original,nobody")
    assert done.returncode == 2
    assert "nobody" in done.stderr


def test_a_checkout_that_is_not_set_up_is_named(tmp_path: Path) -> None:
    done = bench("--only", "W1", "--before", str(tmp_path))
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
