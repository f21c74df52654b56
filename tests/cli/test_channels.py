"""`megaphone create`, `write`, `tail`, `first`, `ack`, `exists` and `dispose`, as users type
them."""

import errno
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import typer

from megaphone.access.tokens import digest_of
from megaphone.cli import saved
from megaphone.cli.calls import Broker, fail
from megaphone.cli.channels import Output, create
from megaphone.cli.exits import Exit
from megaphone.errors import ReaderBusy as BusyChannel
from megaphone_client import ReaderBusy
from tests.cli.conftest import User
from tests.support.process import BrokerProcess, broker_process
from tests.support.settings import IS_LONG

UNKNOWN_EVENT = "a" * 23
IS_READ = "megaphone: the channel is being read: one reader at a time (BUSY)"


def lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_new_channel_is_json_in_a_pipe(user: User) -> None:
    channel = json.loads(user.run("create", "-p", "HTTP_STREAM_NDJSON_V1").stdout)
    assert user.run("write", channel["producerAddress"], "s", "1").returncode == 0
    [event] = lines(user.run("tail", channel["consumerAddress"], "-n", "1").stdout)
    assert (event["sid"], event["body"]) == ("s", 1)


def test_a_new_channel_has_what_is_asked_for(user: User) -> None:
    asked = ("--ttl", "2m", "--capacity", "1", "--label", "orders")
    channel = json.loads(user.run("create", *asked).stdout)
    assert user.run("write", channel["producerAddress"], "s", "1").returncode == 0
    full = user.run("write", channel["producerAddress"], "s", "2", "--timeout", "300ms")
    assert full.returncode != 0
    too_much = user.run("create", "--ttl", "1000h")
    assert "the TTL must be 0.001 to 3600 seconds" in too_much.stderr


def test_a_new_channel_can_be_variables_of_a_shell(user: User) -> None:
    printed = user.run("create", "--export").stdout
    assert printed.startswith("export PRODUCER=")
    assert " CONSUMER=" in printed


def test_saved_addresses_are_for_the_user_alone(at_room: User) -> None:
    file = at_room.home / ".local/state/megaphone/channels.json"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_write_prints_the_id_by_which_its_event_is_acknowledged(at_room: User) -> None:
    event_id = at_room.run("write", "@room", "chat", '{"text": "hello"}').stdout.strip()
    at_room.run("tail", "@room", "--exec", "false")  # reads it, but does not acknowledge it
    assert at_room.run("ack", "@room", event_id).stdout == "1\n"
    assert at_room.run("ack", "@room", event_id).stdout == "0\n"


def test_a_tail_that_only_looks_shows_the_line_of_the_broker(at_room: User) -> None:
    event_id = at_room.run("write", "@room", "chat", '{"text": "hello"}').stdout.strip()
    [event] = lines(at_room.run("tail", "@room", "-n", "1", "--ack", "none").stdout)
    assert (event["sid"], event["eid"], event["body"]) == ("chat", event_id, {"text": "hello"})


def test_each_line_of_input_is_an_event(at_room: User) -> None:
    done = at_room.run("write", "@room", "n", "-", text="1\n\n[2]\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "2 events written\n")
    assert at_room.run("tail", "@room", "--no-follow", "-o", "raw").stdout == "1\n[2]\n"


def test_each_line_of_a_file_is_an_event(at_room: User) -> None:
    (at_room.home / "events").write_text("hello\nworld")
    at_room.run("write", "@room", "n", "--file", "events", "--raw-string")
    assert at_room.run("tail", "@room", "-n", "2", "-o", "raw").stdout == '"hello"\n"world"\n'


def test_a_text_that_is_no_json_is_refused(at_room: User) -> None:
    done = at_room.run("write", "@room", "chat", "hello")
    assert done.returncode == 2
    assert "--raw-string" in done.stderr


def test_lines_before_one_that_is_no_json_are_written_and_counted(at_room: User) -> None:
    done = at_room.run("write", "@room", "n", "-", text="1\nno\n3\n")
    assert done.returncode == 2
    assert "line 2 is not JSON" in done.stderr
    assert done.stderr.endswith("1 event written\n")
    assert at_room.run("tail", "@room", "--no-follow", "-o", "raw").stdout == "1\n"


def test_events_that_were_printed_are_not_sent_again(at_room: User) -> None:
    at_room.run("write", "@room", "n", "-", text="1\n2\n3\n")
    assert at_room.run("tail", "@room", "-n", "2", "-o", "raw").stdout == "1\n2\n"
    assert at_room.run("tail", "@room", "-n", "1", "-o", "raw").stdout == "3\n"


def test_only_wanted_streams_are_printed(at_room: User) -> None:
    at_room.run("write", "@room", "a", "1")
    at_room.run("write", "@room", "b", "2")
    printed = at_room.run("tail", "@room", "--no-follow", "-o", "raw", "--stream", "b").stdout
    assert printed == "2\n"


def test_server_sent_events_have_the_id_and_the_line(at_room: User) -> None:
    event_id = at_room.run("write", "@room", "a", "1").stdout.strip()
    name, data, end = at_room.run("tail", "@room", "-n", "1", "-o", "sse").stdout.split("\n", 2)
    assert (name, end) == (f"id: {event_id}", "\n")
    assert json.loads(data.removeprefix("data: "))["body"] == 1


def test_lines_of_several_channels_name_them(at_room: User) -> None:
    at_room.run("create", "--save", "other")
    at_room.run("write", "@room", "s", "1")
    at_room.run("write", "@other", "s", "2")
    printed = lines(at_room.run("tail", "@room", "@other", "-n", "2").stdout)
    assert {event["channel"]: event["body"] for event in printed} == {"@room": 1, "@other": 2}


def test_a_command_gets_each_event(at_room: User) -> None:
    at_room.run("write", "@room", "s", "-", text="1\n2\n")
    command = 'echo "$MEGAPHONE_STREAM $(cat)" >> seen'
    assert at_room.run("tail", "@room", "-n", "2", "--exec", command).returncode == 0
    assert (at_room.home / "seen").read_text() == "s 1\ns 2\n"


def test_an_event_whose_command_fails_is_sent_again(at_room: User) -> None:
    at_room.run("write", "@room", "s", "-", text="1\n2\n")
    done = at_room.run("tail", "@room", "--exec", '[ "$(cat)" = 1 ]')
    assert done.returncode == 1
    assert at_room.run("tail", "@room", "-n", "1", "-o", "raw").stdout == "2\n"


def test_ctrl_c_ends_a_tail_as_it_should(at_room: User) -> None:
    at_room.run("write", "@room", "s", "1")
    process = at_room.start("tail", "@room", "-o", "raw")
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 0


def test_a_tail_ends_when_another_one_takes_over(at_room: User) -> None:
    at_room.run("write", "@room", "s", "1")
    older = at_room.start("tail", "@room", "-o", "raw")
    assert older.stdout is not None
    assert older.stdout.readline() == "1\n"
    newer = at_room.start("tail", "@room", "-o", "raw", "--take-over")
    assert older.communicate(timeout=20) == (
        "",
        "megaphone: another reader reads the channel now (TAKEN_OVER)\n",
    )
    assert older.returncode == 1
    at_room.run("write", "@room", "s", "2")
    assert newer.stdout is not None
    assert "2\n" in iter(newer.stdout.readline, "")  # if 1 was not acknowledged, it comes before
    newer.send_signal(signal.SIGINT)
    assert newer.communicate(timeout=20) == ("", "")


@pytest.mark.skipif(not IS_LONG, reason="the tail waits for up to a minute")
def test_a_tail_waits_for_the_end_of_another_reader_and_then_says_so(at_room: User) -> None:
    at_room.run("write", "@room", "s", "1")
    reading = at_room.start("tail", "@room", "-o", "raw")
    assert reading.stdout is not None
    assert reading.stdout.readline() == "1\n"
    done = at_room.run("tail", "@room", "-o", "raw")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == IS_READ
    reading.send_signal(signal.SIGINT)
    reading.communicate(timeout=20)


def test_of_a_channel_with_another_reader_the_line_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(typer.Exit) as exited:
        fail(ReaderBusy("BUSY", BusyChannel().args[0]), Broker("http://localhost:3000"))
    assert exited.value.exit_code == Exit.FAILED
    assert capsys.readouterr().err == f"{IS_READ}\n"


def test_a_tail_ends_when_the_next_program_of_the_pipe_does(at_room: User) -> None:
    at_room.run("write", "@room", "s", "1")
    process = at_room.start("tail", "@room", "-o", "raw")
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "1\n"
    process.stdin.close()
    process.stdout.close()
    at_room.run("write", "@room", "s", "2")
    process.wait(timeout=20)
    assert process.stderr is not None
    assert (process.returncode, process.stderr.read()) == (0, "")
    process.stderr.close()


def test_first_waits_for_one_stream(at_room: User) -> None:
    at_room.run("write", "@room", "progress", "0.5")
    at_room.run("write", "@room", "done", '{"ok": true}')
    assert at_room.run("first", "@room", "done").stdout == '{"ok": true}\n'


def test_first_gives_up_with_4(at_room: User) -> None:
    done = at_room.run("first", "@room", "done", "--timeout", "200ms")
    assert (done.returncode, done.stdout) == (4, "")
    assert "in time" in done.stderr


def test_a_channel_that_has_gone_is_3_and_its_name_stays(at_room: User) -> None:
    file = at_room.home / ".local/state/megaphone/channels.json"
    channels = json.loads(file.read_text())
    address = channels["room"]["consumer"]
    broken = ("a" if address[-10] != "a" else "b").join((address[:-10], address[-9:]))
    channels["room"]["consumer"] = broken
    file.write_text(json.dumps(channels))
    done = at_room.run("exists", "@room")
    assert (done.returncode, done.stdout) == (3, "@room gone\n")
    done = at_room.run("tail", "@room")
    assert done.returncode == 3
    assert "`megaphone create --save room` makes a new one" in done.stderr
    assert json.loads(file.read_text()) == channels


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_an_empty_stream_or_address_is_refused_as_such(
    at_room: User, broker: BrokerProcess, scheme: str
) -> None:
    url = broker.url if scheme == "http" else f"grpc://{broker.grpc_target}"
    for line in ("write @room  1", "first @room "):
        done = at_room.run(*line.split(" "), "-u", url)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "megaphone: the stream id is empty: name a stream\n"
    for line in ("write  s 1", "tail ", f"ack  {UNKNOWN_EVENT}"):
        done = at_room.run(*line.split(" "), "-u", url)
        assert done.returncode == 2
        assert done.stderr.startswith("megaphone: not an address: expected a producer or")
    assert at_room.run("exists", "@room").returncode == 0


def test_a_url_with_a_path_where_no_broker_is_is_said(at_room: User, broker: BrokerProcess) -> None:
    url = ("-u", f"{broker.url}/wrong")
    for line in ("create", "write @room s 1", "dispose @room"):
        done = at_room.run(*line.split(), *url)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "megaphone: there is no broker at the path of this URL (NO_ROUTE)\n"
    assert at_room.run("exists", "@room").returncode == 0


def test_no_channel_is_created_that_cannot_be_saved(user: User) -> None:
    done = user.run("create", "--save", "room", XDG_STATE_HOME="/proc/none")
    assert (done.returncode, done.stdout) == (2, "")
    path = "/proc/none/megaphone/channels.json"
    assert done.stderr == f"megaphone: {path} cannot be written: No such file or directory\n"


def test_addresses_that_could_not_be_saved_are_printed(
    user: User, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(path: Path, content: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("XDG_STATE_HOME", str(user.home))
    monkeypatch.setattr(saved, "replace_file", fail)
    with pytest.raises(typer.Exit) as exited:
        create(name="room", output=Output.JSON, url=user.variables["MEGAPHONE_URL"])
    assert exited.value.exit_code == Exit.FAILED
    out, error = capsys.readouterr()
    address = json.loads(out)["consumerAddress"]
    assert user.run("exists", address).returncode == 0
    assert "channels.json cannot be written: No space left on device\n" in error
    assert "the channel was created, but is not saved as @room" in error


def test_a_context_that_cannot_be_saved_is_said(user: User) -> None:
    done = user.run("context", "add", "x", "http://x", XDG_CONFIG_HOME="/proc/none")
    assert (done.returncode, done.stdout) == (2, "")
    path = "/proc/none/megaphone/contexts.toml"
    assert done.stderr == f"megaphone: {path} cannot be written: No such file or directory\n"


def test_a_channel_is_disposed_of_by_its_name_or_its_producer_address(at_room: User) -> None:
    channel = json.loads(at_room.run("create", "-o", "json").stdout)
    assert at_room.run("dispose", channel["producerAddress"]).returncode == 0
    assert at_room.run("dispose", channel["producerAddress"]).returncode == 3
    assert at_room.run("dispose", channel["consumerAddress"]).returncode == 1
    done = at_room.run("dispose", "@room")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("megaphone: @room is forgotten")
    assert at_room.run("dispose", "@room").returncode == 2  # because the name is not known now


def test_a_token_of_the_environment_goes_with_each_command(tmp_path: Path) -> None:
    token = "mgp_" + "t" * 43
    settings: dict[str, Any] = {
        "auth.require": "create,exists",
        "auth.tokens.ada.sha256": digest_of(token),
        "auth.tokens.ada.actions": "create",
    }
    with broker_process(tmp_path, **settings) as broker:
        user = User(tmp_path, {"MEGAPHONE_URL": broker.url})
        done = user.run("create")
        assert (done.returncode, done.stderr) == (
            1,
            "megaphone: creating a channel needs a token: send `Authorization: Bearer …`"
            " (UNAUTHENTICATED)\n",
        )
        assert user.run("create", MEGAPHONE_TOKEN=token).returncode == 0
        done = user.run("exists", "x", MEGAPHONE_TOKEN=token)
        assert done.stderr == (
            "megaphone: this token may not ask whether channels exist (PERMISSION_DENIED)\n"
        )


def test_no_broker_is_said_in_one_line(tmp_path: Path) -> None:
    user = User(tmp_path, {"MEGAPHONE_URL": "http://127.0.0.1:9"})
    done = user.run("create", "--timeout", "300ms")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("megaphone: no broker answers at http://127.0.0.1:9")
    assert done.stderr.count("\n") == 1


def test_a_password_in_the_url_is_not_repeated(tmp_path: Path) -> None:
    user = User(tmp_path, {"MEGAPHONE_URL": "http://ada:secret@127.0.0.1:9"})
    assert "secret" not in user.run("create", "--timeout", "300ms").stderr


def test_a_context_names_a_broker(user: User) -> None:
    url = user.variables["MEGAPHONE_URL"]
    apart = User(user.home)
    assert apart.run("context", "add", "here", url).returncode == 0
    assert apart.run("context", "ls").stdout == f"* {'here':<15} {url}\n"
    assert apart.run("create").returncode == 0
    assert apart.run("context", "rm", "here").returncode == 0
    assert apart.run("create", "--context", "here").returncode == 2


def test_a_context_keeps_no_password(user: User) -> None:
    assert user.run("context", "add", "here", "http://a:b@localhost").returncode == 2


def test_a_saved_channel_knows_its_broker(user: User) -> None:
    user.run("create", "--save", "room", "-u", user.variables["MEGAPHONE_URL"])
    elsewhere = User(user.home, {"MEGAPHONE_URL": "http://127.0.0.1:9"})
    assert elsewhere.run("write", "@room", "s", "1").returncode == 0


def test_events_that_were_read_can_be_looked_at_again(at_room: User) -> None:
    ids = [at_room.run("write", "@room", "n", str(n)).stdout.strip() for n in (1, 2)]
    seen = ("tail", "@room", "--no-follow", "-o", "raw")
    assert at_room.run(*seen).stdout == "1\n2\n"
    assert at_room.run(*seen, "--after", "-").stdout == "1\n2\n"
    assert at_room.run(*seen, "--after", ids[0]).stdout == "2\n"
    assert at_room.run(*seen).stdout == ""


def test_a_look_at_many_channels_shows_all_of_them(at_room: User) -> None:
    at_room.run("create", "--save", "other")
    at_room.run("write", "@room", "s", "1")
    at_room.run("write", "@other", "s", "2")
    printed = at_room.run("tail", "@room", "@other", "--no-follow", "-o", "raw").stdout
    assert sorted(printed.split()) == ["1", "2"]


def test_a_saved_channel_is_kept_when_another_broker_does_not_know_it(
    at_room: User, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with broker_process(tmp_path_factory.mktemp("other")) as other:
        assert at_room.run("exists", "@room", "-u", other.url).returncode == 3
    assert at_room.run("exists", "@room").returncode == 0


def test_first_leaves_the_events_behind_it(at_room: User) -> None:
    for number, stream in enumerate(("done", "other", "done")):
        at_room.run("write", "@room", stream, str(number))
    assert at_room.run("first", "@room", "done").stdout == "0\n"
    assert at_room.run("tail", "@room", "--no-follow", "-o", "raw").stdout == "1\n2\n"


def test_one_channel_that_has_gone_does_not_end_the_tail_of_another(at_room: User) -> None:
    at_room.run("create", "--save", "other")
    file = at_room.home / ".local/state/megaphone/channels.json"
    channels = json.loads(file.read_text())
    gone = channels["other"]["consumer"]
    at_room.run("write", "@room", "s", "1")
    broken = gone[:-10] + ("a" if gone[-10] != "a" else "b") + gone[-9:]
    done = at_room.run("tail", "@room", broken, "-n", "1", "-o", "raw")
    assert (done.returncode, done.stdout) == (0, "1\n")


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_look_at_many_channels_ends_although_one_has_gone(
    at_room: User, broker: BrokerProcess, scheme: str
) -> None:
    url = broker.url if scheme == "http" else f"grpc://{broker.grpc_target}"
    gone = json.loads(at_room.run("create").stdout)
    at_room.run("dispose", gone["producerAddress"])
    at_room.run("write", "@room", "s", "1")
    look = ("tail", "@room", gone["consumerAddress"], "--no-follow", "-o", "raw", "-u", url)
    done = at_room.run(*look)
    assert (done.returncode, done.stdout) == (0, "1\n")
    assert done.stderr == "megaphone: one of the channels does not exist, or not any more\n"


def test_events_that_a_full_channel_takes_and_does_not_take_are_counted(
    user: User, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with broker_process(tmp_path_factory.mktemp("small"), write_timeout_millis=500) as small:
        there = User(user.home, {"MEGAPHONE_URL": small.url})
        there.run("create", "--save", "full")
        done = there.run("write", "@full", "s", "-", "--timeout", "3s", text="1\n" * 150)
        over_grpc = ("-u", f"grpc://{small.grpc_target}", "--timeout", "3s")
        again = there.run("write", "@full", "s", "-", *over_grpc, text="1\n" * 3)
    assert done.returncode == again.returncode == 4
    assert done.stderr.startswith("megaphone: the event was refused: TIMEOUT\n")
    assert again.stderr.startswith("megaphone: the channel stayed full")
    assert "100 events written\nmegaphone: 50 not written; the first is that of line 101\n" in (
        done.stderr
    )
