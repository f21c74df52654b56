"""Processes that are forked behave as those that a command starts."""

import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.forked import ForkedProcess, run
from tests.support.process import broker_process, environment


def test_a_forked_broker_ends_with_the_code_of_the_command(tmp_path: Path) -> None:
    with broker_process(tmp_path) as broker:
        with pytest.raises(subprocess.TimeoutExpired):
            broker.process.wait(0.01)
        assert broker.process.poll() is None
        assert Path(f"/proc/{broker.process.pid}/cwd").resolve() == tmp_path
        broker.process.terminate()
        assert broker.process.wait(30) == 0
        broker.process.kill()  # which changes nothing any more
        assert broker.process.poll() == 0


def test_the_signal_that_ends_a_forked_broker_is_known(tmp_path: Path) -> None:
    with broker_process(tmp_path) as broker:
        broker.process.kill()
        assert broker.process.wait(30) == -signal.SIGKILL


def test_a_forked_command_has_its_own_settings_and_errors(tmp_path: Path) -> None:
    variables = environment(tmp_path, {"buffer_capacity": "many"})
    process = ForkedProcess(["megaphone", "serve"], directory=tmp_path, environment=variables)
    assert process.stderr is not None
    with process.stderr:
        assert "buffer_capacity" in process.stderr.read()
    assert process.wait(30) == 2


def test_a_forked_command_has_standard_streams_of_its_own(tmp_path: Path) -> None:
    done = run(["megactl", "--help"], directory=tmp_path, environment=environment(tmp_path, {}))
    assert (done.returncode, done.stderr) == (0, "")
    assert "list-agents" in done.stdout
