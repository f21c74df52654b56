"""`megaphone top`."""

import json
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from megaphone.cli.channel_details import age
from megaphone.cli.top import page
from megaphone.wire.bodies import Agent, DrainStep, NodeView, Pipe, WatchedChannel
from tests.cli.conftest import User
from tests.support.process import broker_process

END_OF_PAGE = "\x1b[?1049l"
"""With this a terminal shows again what was there before."""
COUNTS = {
    "messages_received": 10,
    "messages_read": 5,
    "messages_redelivered": 0,
    "messages_lost": 1,
}
LEVELS = {
    "channels": 2,
    "reads_open": 1,
    "writers_waiting": 0,
    "connections": 3,
    "buffered_bytes": 1_500_000,
    "loop_lag_us": 1_234,
}
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_a_pipe_gets_a_line_of_json_for_each_view(at_room: User, admin_socket: str) -> None:
    at_room.run("write", "@room", "s", "1")
    done = at_room.run("top", "-n", "2", "-d", "0.1", "--socket", admin_socket)
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first["levels"]["channels"] >= 1
    assert second["at"] > first["at"]
    assert any(channel["depth"] == 1 for channel in second["channels"])


def test_channels_of_one_agent_can_be_chosen(at_room: User, admin_socket: str) -> None:
    one = ("top", "-n", "1", "--socket", admin_socket)
    [agent] = json.loads(at_room.run(*one).stdout)["agents"]
    assert json.loads(at_room.run(*one, "--agent", agent["name"]).stdout)["channels"]
    assert json.loads(at_room.run(*one, "--agent", "another").stdout)["channels"] == []


def test_a_terminal_gets_a_page_without_whole_addresses(at_room: User, admin_socket: str) -> None:
    shown = at_room.on_terminal("top", "-n", "2", "-d", "0.1", "--socket", admin_socket)
    saved = json.loads((at_room.home / ".local/state/megaphone/channels.json").read_text())
    assert "DEPTH" in shown
    assert "/s" in shown
    assert saved["room"]["consumer"] not in shown


def test_the_socket_of_a_context_is_used(user: User, admin_socket: str) -> None:
    user.run("context", "add", "here", "http://localhost", "--socket", admin_socket)
    user.run("context", "add", "there", "http://localhost")
    assert user.run("top", "-n", "1").returncode == 0
    assert user.run("top", "-n", "1", "--context", "here").returncode == 0
    done = user.run("top", "-n", "1", "--context", "there")
    assert done.returncode == 2
    assert "has no admin socket" in done.stderr


def test_no_broker_is_one_line_and_exit_code_1(user: User, tmp_path: Path) -> None:
    done = user.run("top", "--socket", str(tmp_path / "none"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1


def test_on_a_terminal_the_line_stands_below_the_page(user: User, tmp_path: Path) -> None:
    shown = user.on_terminal("top", "--socket", str(tmp_path / "none"), shows_errors=True)
    _, _, after = shown.partition(END_OF_PAGE)
    assert "megaphone: no broker serves at" in after


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_broker_that_goes_away_ends_it_with_a_reason(tmp_path: Path, how: signal.Signals) -> None:
    path = tmp_path / "megaphone.sock"
    with broker_process(tmp_path) as broker:
        process = User(tmp_path).start("top", "-d", "0.1", "--socket", str(path))
        assert process.stdout is not None
        assert process.stdout.readline()
        broker.process.send_signal(how)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert said == f"megaphone: the broker at {path} is not there any more\n"


def test_a_page_has_rates_pipes_a_drain_and_what_is_notable() -> None:
    channels = [
        WatchedChannel(
            "node1.abcdefghijkl.1",
            depth=7,
            in_flight=2,
            waiting_writers=1,
            is_read=True,
            age_s=61.0,
            oldest_s=2.5,
            rate=1_000.0,
            label="orders",
            tenant="shop",
            id="0a1b2c3d",
            unsent=5,
            bytes=9_000,
        ),
        WatchedChannel("node1.zyxwvutsrqpo.1"),
    ]
    before = NodeView(NOON, COUNTS, LEVELS, {}, [], [], None, [])
    later = COUNTS | {"messages_received": 2_010}
    view = NodeView(
        NOON + timedelta(seconds=2),
        later,
        LEVELS,
        {"writes_timed_out": 3},
        [Agent("node1", NOON, True, "MASTER", 2)],
        [Pipe("node1", "host:3001", False, 4)],
        DrainStep("node1", 1, 2, 0, 30, 40, False),
        channels,
    )
    text = "\n".join(page(view, before, "/s"))
    assert "in 1,000/s   out 0/s   again 0/s   lost 1" in text
    assert "memory for clients 1.5 MB" in text
    assert "agent node1   MASTER (warming up)   2 channels" in text
    assert "pipe node1 to host:3001   not connected   4 behind" in text
    assert "drain   1 agents and 30 channels moved, 2 and 40 left" in text
    assert "! writes timed out: 3 more" in text
    head, *rows = text.splitlines()[-3:]
    assert head.endswith("BYTES  LABEL")
    cells = ["node1.abcdefgh…", "0a1b2c3d", "7", "5", "2", "1", "yes", "1m01s", "2.5s", "1,000"]
    cells += ["9,000", "orders"]
    assert rows[0].split() == cells
    assert rows[1].split() == ["node1.zyxwvuts…", *"----------"]


def test_a_first_page_has_no_rates() -> None:
    view = NodeView(NOON, COUNTS, LEVELS, {}, [], [], None, [])
    assert "in -   out -" in "\n".join(page(view, None, "/s"))


def test_ages_are_short() -> None:
    assert [age(one) for one in (0.25, 59.94, 60.0, 3_661.0)] == [
        "0.2s",
        "59.9s",
        "1m00s",
        "1h01m",
    ]
