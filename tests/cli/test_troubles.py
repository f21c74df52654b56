"""Commands when something happens to the broker, the channel or the user."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megaphone import __version__
from megaphone.cli.calls import Broker
from megaphone.cli.contexts import Context
from megaphone.cli.saved import Saved
from tests.cli.conftest import User
from tests.support.process import MEGAPHONE, BrokerProcess, broker_process, wait_until_it_serves

UNKNOWN_EVENT = "a" * 23
NO_TEXT = "\udcff"
"""An argument that is the byte 255."""
NO_SPACE = "the output cannot be written: No space left on device\n"


def test_a_broker_that_was_started_again_has_no_channel_any_more(tmp_path: Path) -> None:
    with broker_process(tmp_path) as broker:
        user = User(tmp_path, {"MEGAPHONE_URL": broker.url})
        user.run("create", "--save", "room")
        user.run("write", "@room", "s", "1")
        tail = user.start("tail", "@room", "-o", "raw")
        assert tail.stdout is not None
        assert tail.stdout.readline() == "1\n"
    with broker_process(tmp_path, address=f"127.0.0.1:{broker.http_port}"):
        _, said = tail.communicate(timeout=50)
    assert tail.returncode == 3
    broke, *_, reason = said.splitlines()
    assert broke.startswith("megaphone: the read broke, and is tried again")
    assert reason.startswith("megaphone: the channel does not exist")


def test_missing_events_are_said(at_room: User) -> None:
    at_room.run("write", "@room", "s", "1")
    look = ("tail", "@room", "--no-follow", "-o", "raw", "--after", UNKNOWN_EVENT)
    done = at_room.run(*look)
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert done.stderr == "megaphone: events are missing here\n"


def test_missing_events_are_exit_code_5_if_that_is_wanted(at_room: User) -> None:
    done = at_room.run("tail", "@room", "--strict", "--after", UNKNOWN_EVENT)
    assert (done.returncode, done.stdout) == (5, "")
    assert "events are missing" in done.stderr


def test_another_reader_can_take_the_channel_over(at_room: User) -> None:
    at_room.run("write", "@room", "s", "1")
    former = at_room.start("tail", "@room", "-o", "raw")
    assert former.stdout is not None
    assert former.stdout.readline() == "1\n"
    at_room.run("write", "@room", "s", "2", "--timeout", "5s")
    done = at_room.run("tail", "@room", "--take-over", "--for", "1s")
    former.send_signal(signal.SIGINT)
    former.communicate(timeout=20)
    assert done.returncode == 0, done.stderr


def test_a_tail_ends_after_a_time(at_room: User) -> None:
    done = at_room.run("tail", "@room", "--for", "200ms")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_ctrl_c_ends_a_write_that_waits_for_input(at_room: User) -> None:
    writing = at_room.start("write", "@room", "s", "-")
    assert writing.stdin is not None
    writing.stdin.write("1\n")
    writing.stdin.flush()
    assert at_room.run("tail", "@room", "-n", "1", "-o", "raw").stdout == "1\n"
    writing.send_signal(signal.SIGINT)
    assert writing.wait(timeout=20) == 130
    assert writing.stderr is not None
    assert writing.stderr.read() == "1 event written\n"
    writing.communicate()


def test_a_rate_keeps_all_events(at_room: User) -> None:
    done = at_room.run("write", "@room", "n", "-", "--rate", "200", text="1\n2\n3\n")
    assert (done.returncode, done.stderr) == (0, "3 events written\n")
    assert at_room.run("tail", "@room", "--no-follow", "-o", "raw").stdout == "1\n2\n3\n"


def test_a_large_event_arrives_whole(at_room: User) -> None:
    text = "x" * 900_000
    assert at_room.run("write", "@room", "s", "-", "--raw-string", text=text).returncode == 0
    printed = at_room.run("tail", "@room", "-n", "1", "-o", "raw").stdout
    assert json.loads(printed) == text


def test_an_event_that_is_too_large_is_said(at_room: User) -> None:
    text = "x" * 30_000_000
    done = at_room.run("write", "@room", "s", "-", "--raw-string", text=text)
    assert done.returncode == 1
    assert done.stderr.startswith("megaphone: ")
    assert "Traceback" not in done.stderr


def test_commands_do_the_same_over_grpc(at_room: User, broker: BrokerProcess) -> None:
    url = ("-u", f"grpc://{broker.grpc_target}")
    event_id = at_room.run("write", "@room", "s", "1", *url).stdout.strip()
    [line] = at_room.run("tail", "@room", "-n", "1", *url).stdout.splitlines()
    assert (json.loads(line)["eid"], json.loads(line)["body"]) == (event_id, 1)
    assert at_room.run("exists", "@room", *url).stdout == "@room exists\n"
    assert at_room.run("ack", "@room", event_id, *url).stdout == "0\n"


def test_a_shell_completes_the_names_of_channels(at_room: User) -> None:
    done = at_room.run(
        _MEGAPHONE_COMPLETE="complete_bash", COMP_WORDS="megaphone tail @", COMP_CWORD="2"
    )
    assert done.stdout.split() == ["@room"]


def test_flags_choose_the_ports(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [MEGAPHONE, "serve", "--host", "127.0.0.1", "--port", "0", "--grpc-port", "0"],
        cwd=tmp_path,
        env=User(tmp_path, {"megaphone_mng_socket_path": str(tmp_path / "s")}).environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        port, grpc_port = wait_until_it_serves(process.stderr)
        assert len({port, grpc_port, 3000, 3001}) == 4
    finally:
        process.terminate()
        process.wait(timeout=20)
        process.stderr.close()


@pytest.mark.parametrize(
    "arguments",
    [
        ["write", "@room", "s", "--raw-string", NO_TEXT],
        ["write", "@room", NO_TEXT, "1"],
        ["write", NO_TEXT, "s", "1"],
        ["create", "--label", NO_TEXT],
        ["first", "@room", NO_TEXT],
        ["tail", "@room", "--stream", NO_TEXT],
        ["ack", "@room", NO_TEXT],
        ["exists", NO_TEXT],
        ["create", "--url", f"http://{NO_TEXT}"],
    ],
)
def test_an_argument_that_is_no_text_is_said_in_one_line(
    at_room: User, arguments: list[str]
) -> None:
    done = at_room.run(*arguments)
    number = next(at for at, one in enumerate(arguments, 1) if NO_TEXT in one)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"megaphone: argument {number} is not UTF-8\n"


@pytest.mark.parametrize(
    "line",
    [
        "create",
        "write @room s 1",
        "tail @room -n 1",
        "exists @room",
        "top -n 1",
        "bench --channels 1 --rate 10 --for 100ms",
        "config show",
        "--version",
        "--help",
    ],
)
def test_a_full_disk_is_said_in_one_line(at_room: User, admin_socket: str, line: str) -> None:
    at_room.run("write", "@room", "s", "1")
    arguments = line.split()
    if line.startswith("top"):
        arguments += ["--socket", admin_socket]
    done = at_room.into_full_disk(*arguments)
    assert (done.returncode, done.stderr) == (1, f"megaphone: {NO_SPACE}")


def test_a_full_disk_is_said_by_megactl_too(user: User, admin_socket: str) -> None:
    done = user.into_full_disk("-p", admin_socket, "list-agents", command="megactl")
    assert (done.returncode, done.stderr) == (1, f"megactl: {NO_SPACE}")


def test_an_event_that_could_not_be_printed_is_sent_again(at_room: User) -> None:
    at_room.run("write", "@room", "s", "1")
    at_room.into_full_disk("tail", "@room", "-n", "1")
    assert at_room.run("tail", "@room", "-n", "1", "-o", "raw").stdout == "1\n"


@pytest.mark.parametrize("scheme", ["http", "grpc"])
@pytest.mark.parametrize("value", ["a\nb", "é", "\udcff"])
def test_a_variable_that_is_no_value_of_a_header_is_said(
    user: User, broker: BrokerProcess, scheme: str, value: str
) -> None:
    url = broker.url if scheme == "http" else f"grpc://{broker.grpc_target}"
    user.run("context", "add", "here", url, "--header", "X-Key=KEY")
    done = user.run("create", "--context", "here", KEY=value)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("megaphone: the variable KEY is no value of a header")
    assert done.stderr.count("\n") == 1
    assert user.run("create", "--context", "here", KEY="a b").returncode == 0


@pytest.mark.parametrize("name", ["Fo o", "Fö", "key-bin", "a:b"])
def test_a_header_that_cannot_be_sent_is_not_kept(user: User, name: str) -> None:
    done = user.run("context", "add", "here", "http://x", "--header", f"{name}=KEY")
    assert done.returncode == 2
    assert f"{name!r} is no name of a header" in done.stderr


def test_a_host_with_a_name_that_is_too_long_is_said(user: User) -> None:
    done = user.run("create", "--url", f"http://{'a' * 64}.example")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "megaphone: the host in the URL of a broker is no name of a host\n"


def test_a_directory_is_no_file_of_events(at_room: User) -> None:
    done = at_room.run("write", "@room", "s", "--file", "/")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("megaphone: the input cannot be read: Is a directory\n")


def test_python_runs_the_package() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "megaphone", "--version"], capture_output=True, text=True
    )
    assert done.stdout.startswith(f"megaphone {__version__} (")


def test_help_imports_nothing_that_is_slow() -> None:
    code = (
        "import sys; from megaphone.cli.main import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "slow = {'aiohttp', 'grpc', 'google', 'cryptography', 'rich', 'yaml', 'megaphone_client',"
        " 'megaphone.config', 'megaphone.model', 'megaphone.settings'}\n"
        "print(sorted(slow & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "[]\n"


def test_what_a_command_keeps_shows_no_secret() -> None:
    url = "http://me:secret@host"
    for value in (
        Broker(url, {"Authorization": "secret"}),
        Context(url),
        Saved("secret", "secret", url),
    ):
        assert "secret" not in repr(value)
