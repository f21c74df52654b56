"""A short run of the benchmark as a process."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_one_scenario_runs() -> None:
    done = bench("--quick", "--only", "W1", "--against", "", "--json")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert results["failures"] == {}
    [figure] = results["figures"]
    assert figure["name"] == "W1"
    assert len(figure["rounds"]["ours"]) == 3
    assert figure["medians"]["ours"] > 0
    assert 0 < figure["load_busy"]["ours"] < 1


def test_an_unknown_contestant_is_named() -> None:
    done = bench("--against", "original,nobody")
    assert done.returncode == 2
    assert "nobody" in done.stderr


def test_a_checkout_that_is_not_set_up_is_named(tmp_path: Path) -> None:
    done = bench("--only", "W1", "--before", str(tmp_path))
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
