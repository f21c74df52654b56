"""The output of `megaphone`."""

import subprocess
import tomllib
from pathlib import Path

import pytest

from megaphone import __version__
from megaphone.build import build_kind
from tests.support import forked
from tests.support.process import broker_process, environment
from tests.support.settings import lane_settings


def megaphone(
    directory: Path, *arguments: str, **settings: object
) -> subprocess.CompletedProcess[str]:
    return forked.run(
        ["megaphone", *arguments],
        directory=directory,
        environment=environment(directory, settings),
    )


def test_the_version_is_printed_and_whether_the_code_is_compiled(tmp_path: Path) -> None:
    printed = megaphone(tmp_path, "--version").stdout
    assert printed == f"megaphone {__version__} ({build_kind()})\n"


def test_without_a_command_there_is_help(tmp_path: Path) -> None:
    done = megaphone(tmp_path)
    _, clients = (done.stdout + done.stderr).split("\nClients:\n")
    clients, nodes = clients.split("\nNodes:\n")
    assert "  exists   Ask which channels exist. Exits with 3 if one does not.\n" in clients
    assert "  serve   Start the broker;" in nodes
    assert "\x1b[" not in done.stdout + done.stderr


@pytest.mark.parametrize("command", [["serve"], ["config", "check"], ["config", "show"]])
def test_a_wrong_setting_is_one_line_and_exit_code_2(tmp_path: Path, command: list[str]) -> None:
    done = megaphone(tmp_path, *command, buffer_capacity="none")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        'megaphone: variable megaphone_buffer_capacity: buffer_capacity = "none" is not allowed;'
        " allowed is a whole number from 1 to 100000\n"
    )


def test_the_output_of_show_is_a_configuration_with_the_same_meaning(tmp_path: Path) -> None:
    printed = megaphone(tmp_path, "config", "show", buffer_capacity=7, agent="node1").stdout
    assert tomllib.loads(printed)["buffer_capacity"] == 7
    (tmp_path / "megaphone.toml").write_text(printed)
    again = megaphone(tmp_path, "config", "show").stdout
    assert tomllib.loads(again) == tomllib.loads(printed)


def test_check_says_where_settings_come_from(tmp_path: Path) -> None:
    (tmp_path / "megaphone.toml").write_text("max_channels = 5\nmax_body_bytes = 6\n")
    done = megaphone(tmp_path, "config", "check")
    assert done.stdout.startswith("The configuration is in order")
    assert f"{3 + len(lane_settings())} from the environment" in done.stdout
    assert "2 from megaphone.toml" in done.stdout


@pytest.mark.parametrize("key", ["address", "grpc_address"])
def test_an_address_in_use_is_one_line_and_exit_code_1(tmp_path: Path, key: str) -> None:
    with broker_process(tmp_path) as broker:
        port = broker.http_port if key == "address" else broker.grpc_port
        other = tmp_path / "other"
        other.mkdir()
        done = megaphone(other, "serve", **{key: f"127.0.0.1:{port}"})
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("megaphone: cannot start: ")
    assert str(port) in last
    assert "Traceback" not in done.stderr
