"""Tests run in several processes, each once, and `.ci/run` can repeat those that failed."""

import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
FAILING = """
import pytest

@pytest.mark.group("a group")
@pytest.mark.parametrize("name", ["a@b", "c"])
def test_in_a_group(name): assert name == "c"

def test_alone(): assert False
"""
GROUPED = """
import os
import pathlib
import pytest

@pytest.mark.group("a group")
@pytest.mark.parametrize("number", range(30))
def test_in_a_group(number): note(f"group {os.getpid()}")

@pytest.mark.parametrize("number", range(300))
def test_of_a_module(of_the_module, number): note(f"module {os.getpid()} {of_the_module}")

@pytest.fixture(scope="module")
def of_the_module(): return object()

def note(line):
    with pathlib.Path("ran").open("a") as file:
        file.write(f"{line}\\n")
"""
DYING = """
import os
import pytest

@pytest.mark.group("a group")
@pytest.mark.parametrize("number", range(3))
def test_in_a_group(number): number == 1 and os._exit(3)

@pytest.mark.parametrize("number", range(20))
def test_alone(number): pass
"""
TIDY = """
import atexit
import pathlib
import time
import pytest

@pytest.mark.group("one")
def test_that_waits(fixture):
    note("waits")
    time.sleep(30)

@pytest.mark.group("another")
@pytest.mark.parametrize("number", range(2))
def test_that_fails(number):
    atexit.register(note, "exit")
    while not pathlib.Path("ran").exists(): time.sleep(0.01)
    assert number == 1

@pytest.fixture(scope="session")
def fixture():
    atexit.register(note, "exit")
    yield
    note("fixture")

def note(line):
    with pathlib.Path("ran").open("a") as file:
        file.write(f"{line}\\n")
"""
WARNING = """
import warnings

def test_some(): warnings.warn("something is odd")
"""


def pytest_of(folder: Path, tests: str, *options: str) -> str:
    """Run tests. Returns: what pytest says of them."""
    (folder / "test_some.py").write_text(tests)
    (folder / "pytest.ini").touch()
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.runners", *options]
    command += ["--rootdir", str(folder), str(folder)]
    variables = {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        # A shell and not `preexec_fn`, because a fork of a process with threads of gRPC can fail.
        ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", *command],  # as in the background
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
    ).stdout


def test_a_test_of_a_group_that_failed_runs_again(tmp_path: Path) -> None:
    assert "2 failed, 1 passed" in pytest_of(tmp_path, FAILING, "-n", "1")
    assert "2 failed in" in pytest_of(tmp_path, FAILING, "-n", "0", "--last-failed")


def test_each_test_runs_once_and_a_group_in_one_process(tmp_path: Path) -> None:
    assert "330 passed" in pytest_of(tmp_path, GROUPED, "-n", "3")
    ran = (tmp_path / "ran").read_text().splitlines()
    assert len(ran) == 330
    assert len({line for line in ran if line.startswith("group")}) == 1
    pids = {line.split()[1] for line in ran if line.startswith("module")}
    assert len(pids) > 1
    assert len({line for line in ran if line.startswith("module")}) == len(pids)


def test_groups_come_first_and_modules_with_many_tests_last(tmp_path: Path) -> None:
    for name, tests in {"a_many": "range(50)", "b_few": "range(2)"}.items():
        mark = f"@pytest.mark.parametrize('number', {tests})"
        code = f"import pytest\n{mark}\ndef test_{name}(number): pass"
        (tmp_path / f"test_{name}.py").write_text(code)
    said = pytest_of(tmp_path, GROUPED, "-n", "1", "-v")
    names = re.findall(r"::test_(\w+)\[.* PASSED", said)
    assert list(dict.fromkeys(names)) == ["in_a_group", "b_few", "a_many", "of_a_module"]


def test_a_test_that_ends_its_process_fails_and_the_others_run(tmp_path: Path) -> None:
    said = pytest_of(tmp_path, DYING, "-n", "2")
    assert "1 failed, 22 passed" in said
    assert "the runner ended with 3 in this test" in said


def test_a_run_stops_at_the_first_failure_if_it_shall(tmp_path: Path) -> None:
    said = pytest_of(tmp_path, DYING, "-n", "1", "-x")
    assert "1 failed, 1 passed" in said
    assert "stopping after 1 failures" in said


def test_a_runner_that_is_stopped_tidies_up(tmp_path: Path) -> None:
    began = time.monotonic()
    said = pytest_of(tmp_path, TIDY, "-n", "2", "-x")
    assert time.monotonic() - began < 30  # which the other test would wait
    assert "1 failed" in said
    assert sorted((tmp_path / "ran").read_text().split()) == ["exit", "exit", "fixture", "waits"]


def test_a_warning_is_reported(tmp_path: Path) -> None:
    assert "something is odd" in pytest_of(tmp_path, WARNING, "-n", "2")
    assert "1 passed, 1 warning" in pytest_of(tmp_path, WARNING, "-n", "2")
