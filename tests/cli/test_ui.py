"""`megaphone ui`: who gets an answer from its server, and what the relay says and does."""

import json
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from megaphone.cli.ui_relay import Relay
from megaphone.cli.ui_server import INLINE, MOST_BODY_BYTES, PAGE, UiServer, sha256
from tests.cli.conftest import User
from tests.support.process import BrokerProcess, broker_process, wait_for

MOST_PAGE_BYTES = 20 * 1024


@contextmanager
def serving(socket: str, *, allow_actions: bool) -> Iterator[UiServer]:
    with UiServer(0, Relay(socket, allow_actions=allow_actions)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def watching(admin_socket: str) -> Iterator[UiServer]:
    """A server that allows no actions."""
    with serving(admin_socket, allow_actions=False) as server:
        yield server


@pytest.fixture
def acting(admin_socket: str) -> Iterator[UiServer]:
    """A server that allows actions."""
    with serving(admin_socket, allow_actions=True) as server:
        yield server


@contextmanager
def request(
    server: UiServer,
    name: str = "",
    *,
    method: str = "GET",
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    without: str = "",
) -> Iterator[HTTPResponse]:
    """Send a request of the page, but with other headers or without one of them."""
    usual = {
        "Host": f"127.0.0.1:{server.server_port}",
        "Cookie": f"megaphone-ui={server.token}",
    }
    if method == "POST":
        usual |= {
            "Origin": f"http://127.0.0.1:{server.server_port}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body or b"")),
        }
    sent = {key: value for key, value in (usual | (headers or {})).items() if key != without}
    with closing(HTTPConnection("127.0.0.1", server.server_port, timeout=20)) as connection:
        path = name if name.startswith("/") else f"{server.folder}{name}"
        connection.putrequest(method, path, skip_host=True)
        for key, value in sent.items():
            connection.putheader(key, value)
        connection.endheaders(body)
        yield connection.getresponse()


def act(server: UiServer, action: str, of: str, **others: Any) -> tuple[int, str]:
    body = json.dumps({"of": of}).encode()
    with request(server, action, method="POST", body=body, **others) as answer:
        return answer.status, answer.read().decode()


def view(server: UiServer, query: str = "sort=age") -> Any:
    with request(server, f"watch?{query}") as answer:
        assert answer.status == 200
        return json.loads(answer.readline())


# -- Who gets an answer


def test_the_link_gives_the_page_and_a_cookie(watching: UiServer) -> None:
    query = f"?token={watching.token}"
    with request(watching, query, without="Cookie") as answer:
        assert answer.status == 200
        assert b"<title>" in answer.read()
        cookie = answer.headers["Set-Cookie"]
    name_and_value, *attributes = cookie.split("; ")
    assert set(attributes) == {"HttpOnly", "SameSite=Strict", f"Path={watching.folder}"}
    with request(watching, headers={"Cookie": f"other=1; {name_and_value}"}) as answer:
        assert answer.status == 200


def test_the_policy_allows_only_what_is_in_the_page(watching: UiServer) -> None:
    with request(watching) as answer:
        policy = answer.headers["Content-Security-Policy"]
        page = answer.read().decode()
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
    directives = dict(one.strip().split(" ", 1) for one in policy.split(";"))
    inline = dict(INLINE.findall(page))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == f"'{sha256(inline['script'])}'"
    assert directives["style-src"] == f"'{sha256(inline['style'])}'"
    assert directives["frame-ancestors"] == "'none'"
    assert "unsafe" not in policy
    assert not re.search(r"\son\w+=|\sstyle=", page.replace(inline["script"], ""))


def test_the_page_is_small() -> None:
    assert PAGE.stat().st_size < MOST_PAGE_BYTES


@pytest.mark.parametrize(
    ("headers", "without"),
    [
        ({}, "Cookie"),
        ({"Cookie": "megaphone-ui="}, ""),
        ({"Cookie": "megaphone-ui=wrong"}, ""),
        ({"Cookie": "megaphone-ui=\xe4"}, ""),
        ({"Host": "evil.example"}, ""),
        ({"Host": "127.0.0.1.evil.example:3080"}, ""),
        ({"Host": "127.0.0.1:3080, evil.example"}, ""),
        ({"Host": ""}, ""),
        ({}, "Host"),
        ({"Origin": "http://evil.example"}, ""),
        ({"Origin": "null"}, ""),
        ({"Origin": "http://127.0.0.1:1"}, ""),
    ],
)
@pytest.mark.parametrize("name", ["", "watch"])
def test_strangers_are_refused(
    watching: UiServer, name: str, headers: dict[str, str], without: str
) -> None:
    with request(watching, name, headers=headers, without=without) as answer:
        assert answer.status == 403
        assert "Set-Cookie" not in answer.headers
        assert watching.token not in answer.read().decode()


def test_a_wrong_token_and_another_folder_are_refused(watching: UiServer) -> None:
    for name in ("?token=wrong", "?token=", f"/?token={watching.token}", "/other/watch"):
        with request(watching, name, without="Cookie") as answer:
            assert answer.status == 403
    for name, status in (("/", 403), (watching.folder[:-1], 403), ("else", 404)):
        with request(watching, name) as answer:
            assert answer.status == status


def test_a_tunnel_may_have_another_port(watching: UiServer) -> None:
    host = "localhost:8080"
    with request(watching, headers={"Host": host, "Origin": f"http://{host}"}) as answer:
        assert answer.status == 200


# -- What the page gets to know


def test_the_page_learns_no_address(watching: UiServer, at_room: User) -> None:
    saved = json.loads((at_room.home / ".local/state/megaphone/channels.json").read_text())["room"]
    at_room.run("write", "@room", "s", "1")
    with request(watching, "watch?filtered=yes") as answer:
        line = answer.readline().decode()
        assert json.loads(answer.readline())["at"] > json.loads(line)["at"]
    shown = json.loads(line)
    name = re.sub(r"^(\w[\w-]*\..{8}).*", r"\1…", saved["consumer"])
    assert name in [one["name"] for one in shown["channels"]]
    assert {"counts", "levels", "agents", "pipes"} <= set(shown)
    for address in (saved["consumer"], saved["producer"]):
        assert address not in line


def test_a_channel_is_shown_by_its_key_without_its_address(
    watching: UiServer, at_room: User
) -> None:
    saved = json.loads((at_room.home / ".local/state/megaphone/channels.json").read_text())["room"]
    name = re.sub(r"^(\w[\w-]*\..{8}).*", r"\1…", saved["consumer"])
    key = next(one["key"] for one in view(watching)["channels"] if one["name"] == name)
    with request(watching, f"channel?key={key}") as answer:
        assert answer.status == 200
        body = answer.read().decode()
    shown = json.loads(body)
    assert (shown["name"], shown["tenant"]) == (name, "default")
    assert "address" not in shown
    assert saved["consumer"] not in body
    with request(watching, "channel?key=unknown") as answer:
        assert (answer.status, answer.read()) == (404, b"this channel was not shown lately")


def test_a_wrong_question_has_the_reason(watching: UiServer) -> None:
    with request(watching, "watch?sort=size") as answer:
        assert answer.status == 502
        assert "channels can be sorted by" in answer.read().decode()


def test_the_page_hears_that_there_is_no_broker(tmp_path: Path) -> None:
    with (
        serving(str(tmp_path / "none"), allow_actions=False) as server,
        request(server, "watch") as answer,
    ):
        assert answer.status == 502
        assert "no broker serves" in answer.read().decode()


def test_a_broker_that_stops_ends_the_views(tmp_path: Path) -> None:
    with (
        broker_process(tmp_path) as broker,
        serving(str(tmp_path / "megaphone.sock"), allow_actions=False) as server,
        request(server, "watch") as answer,
    ):
        assert answer.readline()
        broker.process.send_signal(signal.SIGTERM)
        while line := answer.readline():
            last = line
        assert last


# -- Actions


def test_actions_must_be_allowed(watching: UiServer) -> None:
    status, text = act(watching, "promote", "any")
    assert (status, "--allow-actions" in text) == (400, True)


@pytest.mark.parametrize(
    ("headers", "without", "status"),
    [
        ({}, "Cookie", 403),
        ({}, "Origin", 403),
        ({"Origin": "http://evil.example"}, "", 403),
        ({"Content-Type": "text/plain"}, "", 400),
        ({"Content-Length": str(MOST_BODY_BYTES + 1)}, "", 400),
        ({"Content-Length": "-1"}, "", 400),
        ({}, "Content-Length", 400),
    ],
)
def test_an_action_of_a_stranger_is_refused(
    acting: UiServer, headers: dict[str, str], without: str, status: int
) -> None:
    assert act(acting, "promote", "any", headers=headers, without=without)[0] == status


def test_a_channel_is_disposed_of_by_its_key(acting: UiServer, at_room: User) -> None:
    keys = {one["key"] for one in view(acting)["channels"]}
    at_room.run("create", "--save", "other")
    [key] = {one["key"] for one in view(acting)["channels"]} - keys
    assert act(acting, "dispose", key) == (200, "")
    assert at_room.run("exists", "@other").returncode == 3
    assert at_room.run("exists", "@room").returncode == 0
    status, text = act(acting, "dispose", key)
    assert (status, "NOT_FOUND" in text) == (502, True)
    assert act(acting, "dispose", "wrong") == (400, "this channel was not shown lately")


def test_a_body_that_is_wrong_has_the_reason(acting: UiServer) -> None:
    with request(acting, "drain", method="POST", body=b'{"to": 1}') as answer:
        assert answer.status == 400
        assert "not as it must be" in answer.read().decode()


@pytest.fixture
def source(tmp_path: Path) -> Iterator[UiServer]:
    """A server that allows actions, for a broker of its own with a replica."""
    agents = {"agent.virtual.here": "MASTER", "agent.virtual.spare": "REPLICA"}
    with (
        broker_process(tmp_path, **agents),
        serving(str(tmp_path / "megaphone.sock"), allow_actions=True) as server,
    ):
        yield server


@pytest.fixture
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker that has no agent of the names of `source`, as it would have after another test."""
    with broker_process(tmp_path_factory.mktemp("target")) as process:
        yield process


def test_an_agent_is_promoted_and_a_node_is_drained(
    source: UiServer, target: BrokerProcess
) -> None:
    assert act(source, "promote", "spare") == (200, "")
    assert modes(source) == {"here": "MASTER", "spare": "MASTER"}
    status, text = act(source, "promote", "spare")
    assert (status, "MASTER" in text) == (502, True)
    status, text = act(source, "drain", "nonsense")
    assert (status, "BAD_REQUEST" in text) == (502, True)
    status, text = act(source, "drain", f"http://{target.grpc_target}")
    assert status == 200
    assert json.loads(text.splitlines()[-1])["done"]
    assert modes(source) == {}


def test_a_drain_goes_on_when_the_page_has_gone(source: UiServer, target: BrokerProcess) -> None:
    body = json.dumps({"of": f"http://{target.grpc_target}"}).encode()
    with request(source, "drain", method="POST", body=body):
        pass
    wait_for(lambda: "MASTER" not in modes(source).values())


def modes(server: UiServer) -> dict[str, str]:
    return {agent["name"]: agent["mode"] for agent in view(server)["agents"]}


# -- The command


def test_the_command_prints_a_link(user: User, admin_socket: str) -> None:
    process = user.start("ui", "--port", "0", "--socket", admin_socket)
    try:
        assert process.stdout is not None
        found = re.fullmatch(
            r"http://127\.0\.0\.1:(\d+)(/\w+/\?token=\S+)\n", process.stdout.readline()
        )
        assert found is not None
        with closing(HTTPConnection("127.0.0.1", int(found[1]), timeout=20)) as connection:
            connection.request("GET", found[2])
            assert connection.getresponse().status == 200
        taken = user.run("ui", "--port", found[1], "--socket", admin_socket)
        assert (taken.returncode, taken.stdout) == (1, "")
        assert "cannot listen" in taken.stderr
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=20)
        assert process.returncode == 0
        assert talk.count("\n") == 1
    finally:
        process.kill()
        process.wait()
