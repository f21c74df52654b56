"""A test that failed is found again by `--last-failed`, with which `.ci/run` repeats it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = """
import pytest

@pytest.mark.xdist_group("a group")
@pytest.mark.parametrize("name", ["a@b", "c"])
def test_in_a_group(name): assert name == "c"

def test_alone(): assert False
"""


def pytest_of(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "pytest", "-p", "no:randomly", "--rootdir", str(folder)]
    command += [*options, "--dist=loadgroup", "-W", "ignore", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout


def test_a_test_of_a_group_that_failed_runs_again(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text("from tests.conftest import pytest_runtest_logreport")
    (tmp_path / "pytest.ini").touch()
    assert "2 failed, 1 passed" in pytest_of(tmp_path, "-n", "1")
    assert "2 failed in" in pytest_of(tmp_path, "-n", "0", "--last-failed")
