"""The original's `megactl` works on our socket as on its own, and ours on the original's."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.compat.brokers import Broker, Pair
from tests.compat.original import MEGACTL as THEIRS
from tests.support.process import MEGAPHONE

OURS = Path(MEGAPHONE).with_name("megactl")
TOOLS = {"theirs": THEIRS, "ours": OURS}
NOT_YET = "our own megactl is not installed"
FORMATS = ["plain", "json"]
HEAD = "NAME             | MODE   | SINCE                             | CHANNELS  \n"
ROW = re.compile(r"node {13}\| Master \| \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ UTC *\| 1 {9}\n")
DONE = {"plain": "Operation completed successfully\n", "json": '{"status":"OK"}\n'}


def megactl(
    tool: Path, broker: Broker, output: str, *arguments: str
) -> "subprocess.CompletedProcess[str]":
    return on_socket(tool, broker.socket_path, output, *arguments)


def on_socket(
    tool: Path, socket_path: Path, output: str, *arguments: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [tool, "-p", socket_path, "-o", output, *arguments],
        capture_output=True,
        text=True,
        timeout=20,
    )


@pytest.fixture(params=TOOLS)
def tool(request: pytest.FixtureRequest) -> Path:
    """Each `megactl` in turn."""
    if request.param == "ours" and not OURS.exists():
        pytest.skip(NOT_YET)
    return TOOLS[request.param]


@pytest.fixture(params=["theirs", "ours"])
def broker(brokers: Pair, request: pytest.FixtureRequest) -> Broker:
    """Each broker in turn; with `tool` beside it, all four pairs."""
    chosen: Broker = getattr(brokers, request.param)
    return chosen


def test_agents_are_listed_as_a_table(tool: Path, broker: Broker) -> None:
    broker.create()
    done = megactl(tool, broker, "plain", "list-agents")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(HEAD)
    assert ROW.fullmatch(done.stdout.removeprefix(HEAD)), done.stdout


def test_agents_are_listed_as_the_json_of_the_api(tool: Path, broker: Broker) -> None:
    broker.create()
    done = megactl(tool, broker, "json", "list-agents")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == broker.get("/vagent/list").body.decode() + "\n"


@pytest.mark.parametrize("output", FORMATS)
def test_an_agent_is_added(tool: Path, broker: Broker, output: str) -> None:
    done = megactl(tool, broker, output, "add-agent", "-n", "second")
    assert (done.returncode, done.stdout, done.stderr) == (0, DONE[output], "")
    assert broker.agents().keys() == {"node", "second"}


@pytest.mark.parametrize("output", FORMATS)
def test_a_channel_is_disposed_of(tool: Path, broker: Broker, output: str) -> None:
    address = broker.create().consumer
    done = megactl(tool, broker, output, "dispose-channel", "-n", address)
    assert (done.returncode, done.stdout, done.stderr) == (0, DONE[output], "")
    assert broker.get("/channel/list").json() == []


@pytest.mark.parametrize(
    ("command", "name"), [("add-agent", "a b"), ("dispose-channel", "no-address")]
)
def test_a_refusal_is_told_on_stderr(tool: Path, broker: Broker, command: str, name: str) -> None:
    plain = megactl(tool, broker, "plain", command, "-n", name)
    assert plain.stdout == ""
    assert "BAD_REQUEST" in plain.stderr
    as_json = megactl(tool, broker, "json", command, "-n", name)
    assert as_json.stdout == ""
    told = json.loads(as_json.stderr)
    assert told["out"] == "error"
    assert "BAD_REQUEST" in told["message"]


def test_a_socket_that_is_not_there_is_told_on_stderr(tool: Path, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere.sock"
    plain = on_socket(tool, nowhere, "plain", "list-agents")
    assert plain.stdout == ""
    assert plain.stderr != ""
    told = json.loads(on_socket(tool, nowhere, "json", "list-agents").stderr)
    assert told["out"] == "error"


def test_the_long_names_of_the_options_work(tool: Path, broker: Broker) -> None:
    done = subprocess.run(
        [tool, "--path", broker.socket_path, "--out-format", "json", "add-agent", "--name", "b"],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stdout) == (0, DONE["json"])


@pytest.mark.parametrize("output", FORMATS)
def test_theirs_cannot_list_channels_of_either_broker(brokers: Pair, output: str) -> None:
    """It parses the list as if it were the outcome of a command."""
    for broker in brokers.both():
        broker.create()
    theirs, ours = [
        megactl(THEIRS, broker, output, "list-channels", "-s", "0", "-l", "9")
        for broker in brokers.both()
    ]
    assert (ours.returncode, ours.stdout, ours.stderr) == (0, "", theirs.stderr)
    assert "expected `OK`" in ours.stderr


@pytest.mark.skipif(not OURS.exists(), reason=NOT_YET)
def test_ours_lists_channels_of_either_broker(broker: Broker) -> None:
    broker.create()
    broker.create()
    listed = broker.get("/channel/list").json()
    done = megactl(OURS, broker, "json", "list-channels")
    assert (done.returncode, json.loads(done.stdout)) == (0, listed)
    done = megactl(OURS, broker, "json", "list-channels", "-s", "1", "-l", "1")
    assert json.loads(done.stdout) == listed[1:]
    done = megactl(OURS, broker, "plain", "list-channels")
    assert all(channel["address"] in done.stdout for channel in listed)
