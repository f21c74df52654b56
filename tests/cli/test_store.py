"""`megaphone store check`: what it prints, how it ends, and that it leaves nothing behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_main import megaphone
from tests.support.process import MEGAPHONE, environment
from tests.support.redis_fixtures import own_server
from tests.support.redis_server import RedisServer, redis_server

__all__ = ["own_server"]

PASSWORD = "hunter2"


def test_a_store_that_will_do(own_server: RedisServer, tmp_path: Path) -> None:
    done = megaphone(tmp_path, "store", "check", own_server.text_url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"The store {own_server.text_url} will do.\n")
    rows = [line.split()[0] for line in done.stdout.splitlines()[2:]]
    assert rows == [
        "server", "memory", "persistence", "replicas", "201", "round", "one", "throughput"
    ]  # fmt: skip
    assert own_server.call("KEYS", "*") == []


def test_what_it_found_in_json(tmp_path: Path) -> None:
    with redis_server(requirepass=PASSWORD) as server:
        url = f"redis://127.0.0.1:{server.port}"
        (tmp_path / "password").write_text(f"{PASSWORD}\n")
        done = megaphone(tmp_path, "store", "check", url, "--json", "--password-file", "password")
        found = json.loads(done.stdout)
        of_settings = megaphone(
            tmp_path, "store", "check", "--json", store=url, store_password_file="password"
        )
    assert found["usable"] is True
    assert found["answerAfter"] == "the master"
    assert found["writesPerSecond"] > 100
    assert 0 < found["roundTripMs"] <= found["slowRoundTripMs"]
    assert json.loads(of_settings.stdout).keys() == found.keys()
    assert PASSWORD not in done.stdout + done.stderr + of_settings.stdout


def test_replicas_are_counted_and_waited_for(own_server: RedisServer, tmp_path: Path) -> None:
    url = own_server.text_url
    alone = megaphone(tmp_path, "store", "check", url, store_wait_replicas=1)
    assert alone.returncode == 1
    assert "store_wait_replicas is 1, but the store has 0 connected replicas" in alone.stdout
    with redis_server(replicaof=f"127.0.0.1 {own_server.port}") as replica:
        while replica.info("replication")["master_link_status"] != "up":
            pass
        both = megaphone(tmp_path, "store", "check", url, "--json", "--wait-replicas", "1")
    assert json.loads(both.stdout)["answerAfter"] == "1 replica"


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_store_that_will_not_do(
    as_json: list[str], own_server: RedisServer, tmp_path: Path
) -> None:
    own_server.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    done = megaphone(tmp_path, "store", "check", own_server.text_url, *as_json)
    assert done.returncode == 1
    assert "set maxmemory-policy to noeviction there" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    if as_json:
        assert json.loads(done.stdout)["usable"] is False


def test_a_url_that_is_none_and_a_store_that_is_not_set(tmp_path: Path) -> None:
    wrong = megaphone(tmp_path, "store", "check", f"redis://:{PASSWORD}@host:x")
    assert (wrong.returncode, PASSWORD in wrong.stdout + wrong.stderr) == (1, False)
    none = megaphone(tmp_path, "store", "check")
    assert none.returncode == 1
    assert none.stderr == "megaphone: no store is set, and no URL is given\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "store_password_file: No such file or directory"),
        ("\n", "store_password_file: its first line is empty"),
        (b"\xff", "store_password_file: is not text in UTF-8"),
    ],
)
def test_a_password_file_that_is_none_stops_the_start(
    content: str | bytes | None, reason: str, tmp_path: Path
) -> None:
    if content is not None:
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / "password").write_bytes(data)
    done = megaphone(tmp_path, "serve", store="redis://127.0.0.1:1", store_password_file="password")
    assert done.returncode == 1
    assert done.stderr == f"megaphone: cannot start: {reason}\n"


def test_two_passwords_stop_the_start(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(PASSWORD)
    store = f"redis://:{PASSWORD}@127.0.0.1:1"
    done = megaphone(tmp_path, "serve", store=store, store_password_file="password")
    assert done.stderr == (
        "megaphone: cannot start: store has a password, and store_password_file too: keep one\n"
    )


@pytest.mark.parametrize(
    ("store", "settings"),
    [
        (f"redis://:{PASSWORD}@h:y", {}),
        (f"redis://:{PASSWORD}@h/x", {}),
        (f"redis://:{PASSWORD}@h#x", {}),
        (f"redis://:{PASSWORD}@h", {"store_password_file": "password"}),
        ("redis://h", {"store_password_file": "missing"}),
        ("rediss://h?ssl_ca_certs=missing", {}),
    ],
)
def test_the_check_of_the_settings_refuses_a_store_in_the_words_of_the_start(
    store: str, settings: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "password").write_text(PASSWORD)
    start = megaphone(tmp_path, "serve", store=store, **settings)
    check = megaphone(tmp_path, "config", "check", store=store, **settings)
    assert (start.returncode, check.returncode) == (1, 2)
    assert check.stdout == ""
    assert start.stderr == check.stderr.replace("megaphone: ", "megaphone: cannot start: ", 1)
    assert PASSWORD not in check.stderr


def test_the_check_of_the_settings_asks_no_server(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(PASSWORD)
    settings = {"store": "redis://127.0.0.1:1", "store_password_file": "password"}
    assert megaphone(tmp_path, "config", "check", **settings).returncode == 0


def test_the_check_of_the_settings_needs_hiredis_only_for_a_store(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['hiredis'] = None; sys.argv = ['megaphone', 'config', 'check'];"
        "import megaphone.cli.main; megaphone.cli.main.main()"
    )

    def check(**settings: object) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", code],
            env=environment(tmp_path, settings),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    assert check().returncode == 0
    with_store = check(store="redis://127.0.0.1:1")
    assert with_store.returncode == 2
    assert with_store.stderr == (
        "megaphone: a store in Redis or Valkey needs hiredis:"
        " pip install 'megaphone-broker[redis]'\n"
    )


def test_a_node_that_cannot_use_its_store_says_so_in_one_line(
    own_server: RedisServer, tmp_path: Path
) -> None:
    own_server.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    done = megaphone(tmp_path, "serve", store=own_server.text_url)
    assert done.returncode == 1
    assert done.stderr == (
        "megaphone: cannot start: the store removes keys when its memory is full"
        " (maxmemory-policy allkeys-lru), and events would be lost: set maxmemory-policy to"
        " noeviction there\n"
    )


def test_the_log_of_a_node_says_what_201_means(tmp_path: Path) -> None:
    with redis_server(requirepass=PASSWORD, appendonly="yes") as server:
        (tmp_path / "password").write_text(PASSWORD)
        settings = {
            "store": f"redis://127.0.0.1:{server.port}",
            "store_password_file": tmp_path / "password",
        }
        with subprocess.Popen(
            [MEGAPHONE, "serve"],
            env=environment(tmp_path, settings),
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            said = ""
            while "serves HTTP" not in said:
                said += (line := process.stderr.readline())
                assert line, said
            process.terminate()
    assert "AOF everysec, 0 replicas, 201 after the master" in said
    assert PASSWORD not in said
