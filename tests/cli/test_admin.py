"""The output of `megactl`, with a broker in another process.

Tests that change nothing share one broker, in the folder `shared`. All others have a broker of
their own in `tmp_path`.
"""

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.support import forked
from tests.support.owners import ANOTHER_USER, acting_as, needs_root, open_to_all
from tests.support.process import MEGAPHONE, BrokerProcess, broker_process, environment

MEGACTL = str(Path(MEGAPHONE).with_name("megactl"))
DONE = "Operation completed successfully\n"
AGENTS: dict[str, Any] = {
    "agent.virtual.node": "MASTER",
    "agent.virtual.spare": "REPLICA",
    "agent_warmup_secs": 0,
}
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6} UTC"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    with broker_process(tmp_path, **AGENTS) as process:
        yield process


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder of a broker that no test may change."""
    folder = tmp_path_factory.mktemp("shared")
    with broker_process(folder, **AGENTS):
        yield folder


def megactl(directory: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run `megactl` where the configuration names the socket of the broker of a test."""
    return run(directory, "megactl", *arguments)


def run(directory: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    return forked.run(command, directory=directory, environment=environment(directory, {}))


def create(broker: BrokerProcess, count: int) -> list[str]:
    """Make channels. Returns: their consumer addresses."""
    connection = HTTPConnection("127.0.0.1", broker.http_port)
    addresses = []
    for _ in range(count):
        connection.request("POST", "/create")
        addresses.append(json.loads(connection.getresponse().read())["consumerAddress"])
    connection.close()
    return addresses


def as_json(directory: Path, *arguments: str) -> object:
    done = megactl(directory, "-o", "json", *arguments)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
    return json.loads(done.stdout)


def test_agents_are_listed_as_a_table(broker: BrokerProcess, tmp_path: Path) -> None:
    create(broker, 1)
    done = megactl(tmp_path, "list-agents")
    assert (done.returncode, done.stderr) == (0, "")
    head, node, spare = done.stdout.splitlines()
    assert head == f"{'NAME':16} | MODE    | {'SINCE':33} | CHANNELS  "
    assert re.fullmatch(rf"node {{13}}\| Master  \| {TIME} *\| 1 *", node)
    assert re.fullmatch(rf"spare +\| Replica \| {TIME} *\| 0 *", spare)


def test_the_head_stands_out_on_a_terminal_only(shared: Path) -> None:
    piped = megactl(shared, "list-channels").stdout
    ours, theirs = os.openpty()
    try:
        subprocess.run(
            [MEGACTL, "list-channels"],
            cwd=shared,
            env=environment(shared, {}),
            stdout=theirs,
            timeout=20,
            check=True,
        )
        shown = os.read(ours, 10_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert shown == "\x1b[1m" + piped.replace("\n", "\x1b[0m\r\n")


def test_an_agent_that_is_warming_up_is_marked(tmp_path: Path) -> None:
    with broker_process(tmp_path, agent="node", agent_warmup_secs=60):
        head, row = megactl(tmp_path, "list-agents").stdout.splitlines()
    assert "| Master (warming up) |" in row
    assert [m.start() for m in re.finditer(r"\|", head)] == [
        m.start() for m in re.finditer(r"\|", row)
    ]


def test_agents_are_listed_byte_for_byte_as_the_api_says(shared: Path) -> None:
    assert megactl(shared, "-o", "json", "list-agents").stdout == (
        of_the_api(shared, "/vagent/list") + "\n"
    )


def of_the_api(directory: Path, route: str) -> str:
    connection = HTTPConnection("megaphone")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(directory / "megaphone.sock"))
    connection.request("GET", route)
    body = connection.getresponse().read().decode()
    connection.close()
    return body


def test_agents_are_added_and_promoted(broker: BrokerProcess, tmp_path: Path) -> None:
    done = megactl(tmp_path, "add-agent", "-n", "second")
    assert (done.returncode, done.stdout, done.stderr) == (0, DONE, "")
    assert as_json(tmp_path, "add-agent", "--name", "third") == {"status": "OK"}
    done = megactl(tmp_path, "promote-agent", "-n", "spare")
    assert (done.returncode, done.stdout, done.stderr) == (0, DONE, "")
    assert modes(tmp_path) == dict.fromkeys(["node", "spare", "second", "third"], "MASTER")


def test_what_succeeds_prints_the_answer_of_the_api(broker: BrokerProcess, tmp_path: Path) -> None:
    [first] = create(broker, 1)
    for arguments in (
        ("dispose-channel", "-n", first),
        ("promote-agent", "-n", "spare"),
    ):
        assert as_json(tmp_path, *arguments) == {"status": "OK"}


def test_an_agent_is_forwarded(broker: BrokerProcess, tmp_path: Path) -> None:
    elsewhere = tmp_path / "target"
    elsewhere.mkdir()
    with broker_process(elsewhere, agent="other") as target:
        url = f"http://{target.grpc_target}"
        done = megactl(tmp_path, "pipe-agent", "-n", "node", "-t", url)
        assert (done.returncode, done.stdout, done.stderr) == (0, DONE, "")
        assert modes(tmp_path)["node"] == "PIPED"
        assert modes(elsewhere)["node"] == "REPLICA"
        megactl(tmp_path, "promote-agent", "-n", "spare")
        assert as_json(tmp_path, "pipe-agent", "-n", "spare", "-t", url) == {"status": "OK"}


def test_a_pipe_is_closed_and_an_agent_is_removed(broker: BrokerProcess, tmp_path: Path) -> None:
    elsewhere = tmp_path / "target"
    elsewhere.mkdir()
    create(broker, 1)
    with broker_process(elsewhere, agent="other") as target:
        megactl(tmp_path, "pipe-agent", "-n", "node", "-t", f"http://{target.grpc_target}")
        done = megactl(tmp_path, "unpipe", "-n", "node", "--force")
        assert (done.returncode, done.stdout, done.stderr) == (0, DONE, "")
    assert modes(tmp_path) == {"node": "MASTER", "spare": "REPLICA"}
    assert as_json(tmp_path, "remove-agent", "-n", "spare") == {"status": "OK"}
    done = megactl(tmp_path, "remove-agent", "-n", "node")
    assert (done.returncode, done.stdout) == (1, "")
    assert "agent node has 1 channels, which would end" in done.stderr
    assert megactl(tmp_path, "remove-agent", "-n", "node", "--force").stdout == DONE
    assert modes(tmp_path) == {}


def modes(directory: Path) -> dict[str, str]:
    agents = as_json(directory, "list-agents")
    assert isinstance(agents, list)
    return {agent["name"]: agent["mode"] for agent in agents}


def test_channels_are_listed_in_pages_and_by_agent(broker: BrokerProcess, tmp_path: Path) -> None:
    made = create(broker, 60)
    everything = [{"address": address, "agentId": "node"} for address in made]
    assert as_json(tmp_path, "list-channels") == everything[:50]
    assert as_json(tmp_path, "list-channels", "-s", "50", "-l", "5") == everything[50:55]
    assert as_json(tmp_path, "list-channels", "--agent", "spare") == []
    assert as_json(tmp_path, "list-channels", "-a", "node", "-l", "1") == everything[:1]
    done = megactl(tmp_path, "list-channels", "--skip", "59")
    head, row = done.stdout.splitlines()
    assert (head.split(" | ")[1].strip(), row) == ("ADDRESS", f"{'node':16} | {made[59]}")


def test_channels_are_listed_with_what_is_in_them(broker: BrokerProcess, tmp_path: Path) -> None:
    first, second = create(broker, 2)
    listed = as_json(tmp_path, "list-channels", "--sort", "age", "-l", "1")
    assert isinstance(listed, list)
    assert [one["address"] for one in listed] == [first]
    assert as_json(tmp_path, "list-channels", "--blocked") == []
    head, *rows = megactl(tmp_path, "list-channels", "--details").stdout.splitlines()
    assert [cell.strip() for cell in head.split(" | ")][:4] == ["ID", "AGENT", "TENANT", "LABEL"]
    assert [row.split(" | ")[-1].strip() for row in rows] == [first, second]
    assert rows[0].startswith(listed[0]["id"])


def test_a_channel_is_shown_by_its_address_and_by_its_id(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    [address] = create(broker, 1)
    shown = as_json(tmp_path, "show-channel", "-n", address)
    assert isinstance(shown, dict)
    assert (shown["address"], shown["agentId"], shown["reader"]) == (address, "node", None)
    done = megactl(tmp_path, "show-channel", "--name", shown["id"])
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(re.split(" {2,}", line, maxsplit=1) for line in done.stdout.splitlines())
    assert (lines["address"], lines["id"], lines["reader"]) == (address, shown["id"], "-")
    assert lines["expires in"].endswith("s")
    done = megactl(tmp_path, "show-channel", "-n", "00000000")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("megactl: NOT_FOUND: ")


def test_a_channel_is_disposed_of(broker: BrokerProcess, tmp_path: Path) -> None:
    first, second = create(broker, 2)
    done = megactl(tmp_path, "dispose-channel", "-n", first)
    assert (done.returncode, done.stdout, done.stderr) == (0, DONE, "")
    assert as_json(tmp_path, "list-channels") == [{"address": second, "agentId": "node"}]
    done = megactl(tmp_path, "dispose-channel", "-n", first)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("megactl: NOT_FOUND: ")


def test_it_is_a_command_of_megaphone_too(shared: Path) -> None:
    done = run(shared, "megaphone", "ctl", "-o", "json", "list-agents")
    assert (done.returncode, done.stdout) == (0, of_the_api(shared, "/vagent/list") + "\n")


@pytest.mark.parametrize("option", ["-p", "--path", "--socket-path"])
def test_the_socket_may_be_named(shared: Path, tmp_path: Path, option: str) -> None:
    path = str(shared / "megaphone.sock")
    assert megactl(tmp_path, option, path, "list-agents").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["add-agent", "-n", "node"], "BAD_REQUEST: agent node is on this node already"),
        (
            ["promote-agent", "-n", "node"],
            "WRONG_MODE: agent node is MASTER: it cannot be promoted",
        ),
        (["promote-agent", "-n", "absent"], "NO_SUCH_AGENT: agent absent is not on this node"),
        (["list-channels", "-a", "absent"], "NO_SUCH_AGENT: agent absent is not on this node"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_1(
    shared: Path, arguments: list[str], told: str
) -> None:
    done = megactl(shared, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"megactl: {told}\n")
    done = megactl(shared, "-o", "json", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert json.loads(done.stderr) == {"out": "error", "message": told}


def test_a_missing_broker_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "megaphone.sock"
    expected = f"megactl: no broker serves at {path}; --path names another socket\n"
    done = megactl(tmp_path, "list-agents")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)
    left_behind = socket.socket(socket.AF_UNIX)
    left_behind.bind(str(path))
    left_behind.close()
    done = megactl(tmp_path, "list-agents")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


@needs_root
@pytest.mark.parametrize("shown", [ANOTHER_USER, 0], ids=["at-once", "once-connected"])
def test_a_socket_of_another_user_is_not_trusted_where_everybody_may_put_one(
    tmp_path: Path, shown: int
) -> None:
    """Its owner is root, but the process that listens there belongs to another user."""
    path = tmp_path / "megaphone.sock"
    open_to_all(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        with acting_as(ANOTHER_USER):
            listening.listen()
        os.chown(path, shown, shown)
        done = megactl(tmp_path, "list-agents")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            f"megactl: cannot connect to {path}: it belongs to user {ANOTHER_USER}, and everybody"
            " may put a socket there; --path names another socket\n"
        )
        listening.settimeout(0)
        with suppress(BlockingIOError):
            asked, _ = listening.accept()
            with asked:
                assert asked.recv(1) == b"", "nothing was asked"


@needs_root
def test_root_may_use_the_socket_of_a_broker_in_its_own_folder(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    os.chown(tmp_path / "megaphone.sock", ANOTHER_USER, ANOTHER_USER)
    assert megactl(tmp_path, "list-agents").returncode == 0


def test_ones_own_socket_is_trusted_where_everybody_may_put_one(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    open_to_all(tmp_path)
    assert megactl(tmp_path, "list-agents").returncode == 0


def test_a_path_without_a_socket_is_reported(tmp_path: Path) -> None:
    for path in (tmp_path / "x" / "m.sock", tmp_path / ("x" * 120)):
        done = megactl(tmp_path, "-p", str(path), "list-agents")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert str(path) in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["add-agent"],
        ["pipe-agent", "-n", "node"],
        ["-o", "xml", "list-agents"],
        ["list-channels", "-s", "-1"],
        ["list-channels", "-l", "many"],
    ],
)
def test_wrong_use_is_exit_code_2(tmp_path: Path, arguments: list[str]) -> None:
    done = megactl(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr != "" or not arguments


def test_a_wrong_configuration_is_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "megaphone.toml").write_text("wrong = 1\n")
    done = megactl(tmp_path, "list-agents")
    assert (done.returncode, done.stderr.startswith("megactl: megaphone.toml: wrong")) == (2, True)


@pytest.fixture
def target(tmp_path: Path) -> Iterator[BrokerProcess]:
    folder = tmp_path / "target"
    folder.mkdir()
    with broker_process(folder, agent="target") as process:
        yield process


def test_a_node_is_drained(broker: BrokerProcess, target: BrokerProcess, tmp_path: Path) -> None:
    create(broker, 3)
    done = megactl(tmp_path, "drain", "--target", f"http://{target.grpc_target}")
    assert (done.returncode, done.stdout) == (0, DONE)
    shown = done.stderr.splitlines()
    assert shown[0].endswith("2 agents and 3 channels left, node is on its way")
    assert shown[-1] == "2 agents and 3 channels moved, 0 agents and 0 channels left"
    assert as_json(tmp_path, "list-agents") == []
    agents = as_json(tmp_path / "target", "list-agents")
    assert isinstance(agents, list)
    assert [agent["name"] for agent in agents] == ["target", "node", "spare"]


def test_a_drain_is_followed_by_scripts(
    broker: BrokerProcess, target: BrokerProcess, tmp_path: Path
) -> None:
    done = megactl(tmp_path, "-o", "json", "drain", "-t", f"http://{target.grpc_target}")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]


def test_a_drain_that_fails_says_what_has_not_moved(broker: BrokerProcess, tmp_path: Path) -> None:
    done = megactl(tmp_path, "drain", "--target", "http://127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "megactl: TARGET_UNAVAILABLE: the target node cannot be reached\n"
