"""The admin API over HTTP on its Unix socket, as `megactl` and operators call it."""

import json
import os
import stat
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import aiohttp
import pytest

from megaphone.app import App, running
from megaphone.core.access import ANYONE
from megaphone.listen.sockets import grpc_path, is_served, listen_unix
from megaphone.model import AgentMode
from tests.support.owners import ANOTHER_USER, needs_root, open_to_all
from tests.support.settings import fast_settings

OK = b'{"status":"OK"}'


@pytest.fixture
def socket_path(tmp_path: Path) -> str:
    return str(tmp_path / "m.sock")


@pytest.fixture
async def node(socket_path: str) -> AsyncIterator[App]:
    async with running(fast_settings(mng_socket_path=socket_path)) as app:
        yield app


@pytest.fixture
async def target() -> AsyncIterator[App]:
    """Another node. If a test requests it before `node`, it stops after `node`."""
    async with running(fast_settings(agent={"other": AgentMode.MASTER})) as app:
        yield app


@pytest.fixture
async def operator(node: App, socket_path: str) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.UnixConnector(path=socket_path)
    async with aiohttp.ClientSession("http://megaphone", connector=connector) as session:
        yield session


async def answer(
    operator: aiohttp.ClientSession, method: str, path: str, body: object = None
) -> tuple[int, bytes]:
    """Return the status and the body of an answer, after a check of its headers."""
    async with operator.request(method, path, json=body) as response:
        assert response.headers["Content-Type"] == "application/json"
        return response.status, await response.read()


async def test_agents_are_listed_byte_for_byte(node: App, operator: aiohttp.ClientSession) -> None:
    await node.broker.create(ANYONE)
    status, body = await answer(operator, "GET", "/vagent/list")
    since = json.loads(body)[0]["since"]
    assert datetime.fromisoformat(since).tzinfo is not None
    assert (status, body) == (
        200,
        b'[{"name":"node","since":"%b","warmingUp":false,"mode":"MASTER","channelsCount":1}]'
        % since.encode(),
    )


async def test_an_agent_is_added_once(operator: aiohttp.ClientSession) -> None:
    name = {"name": "second"}
    assert await answer(operator, "POST", "/vagent/add", name) == (201, OK)
    status, body = await answer(operator, "POST", "/vagent/add", name)
    assert (status, json.loads(body)["code"]) == (400, "BAD_REQUEST")
    assert "already" in json.loads(body)["message"]
    assert await modes(operator) == {"node": "MASTER", "second": "MASTER"}


async def test_an_agent_is_promoted_once(node: App, operator: aiohttp.ClientSession) -> None:
    node.agents.add("spare", AgentMode.REPLICA, now=0.0)
    assert await answer(operator, "POST", "/vagent/promote", {"name": "spare"}) == (200, OK)
    assert await modes(operator) == {"node": "MASTER", "spare": "MASTER"}
    status, body = await answer(operator, "POST", "/vagent/promote", {"name": "spare"})
    assert (status, json.loads(body)["code"]) == (409, "WRONG_MODE")


async def test_an_agent_is_forwarded(target: App, operator: aiohttp.ClientSession) -> None:
    pipe = {"name": "node", "target": f"http://127.0.0.1:{target.grpc_port}"}
    assert await answer(operator, "POST", "/vagent/pipe", pipe) == (202, OK)
    assert await modes(operator) == {"node": "PIPED"}
    assert target.agents.named("node").mode is AgentMode.REPLICA
    status, body = await answer(operator, "POST", "/vagent/promote", {"name": "node"})
    assert (status, json.loads(body)["code"]) == (409, "WRONG_MODE")


async def test_an_unreachable_target_is_reported(operator: aiohttp.ClientSession) -> None:
    pipe = {"name": "node", "target": "http://127.0.0.1:1"}
    status, body = await answer(operator, "POST", "/vagent/pipe", pipe)
    assert (status, json.loads(body)["code"]) == (503, "TARGET_UNAVAILABLE")
    assert await modes(operator) == {"node": "MASTER"}


async def modes(operator: aiohttp.ClientSession) -> dict[str, str]:
    _, body = await answer(operator, "GET", "/vagent/list")
    return {agent["name"]: agent["mode"] for agent in json.loads(body)}


@pytest.mark.parametrize("command", ["add", "promote", "pipe"])
@pytest.mark.parametrize("body", [{"name": "a b"}, {"name": ""}, {"name": 1}, {}, []])
async def test_a_wrong_agent_is_refused(
    operator: aiohttp.ClientSession, command: str, body: object
) -> None:
    if isinstance(body, dict) and command == "pipe":
        body = body | {"target": "http://127.0.0.1:1"}
    status, answered = await answer(operator, "POST", f"/vagent/{command}", body)
    assert (status, json.loads(answered)["code"]) == (400, "BAD_REQUEST")


@pytest.mark.parametrize("target", [{}, {"target": 1}, {"target": "nowhere"}])
async def test_a_wrong_target_is_refused(
    operator: aiohttp.ClientSession, target: dict[str, object]
) -> None:
    status, body = await answer(operator, "POST", "/vagent/pipe", {"name": "node"} | target)
    assert (status, json.loads(body)["code"]) == (400, "BAD_REQUEST")


@pytest.mark.parametrize("command", ["promote", "pipe"])
async def test_an_unknown_agent_is_reported(operator: aiohttp.ClientSession, command: str) -> None:
    body = {"name": "absent", "target": "http://127.0.0.1:1"}
    status, answered = await answer(operator, "POST", f"/vagent/{command}", body)
    assert (status, json.loads(answered)["code"]) == (404, "NO_SUCH_AGENT")


async def test_channels_are_listed_byte_for_byte_in_pages(
    node: App, operator: aiohttp.ClientSession
) -> None:
    made = [(await node.broker.create(ANYONE)).consumer_address for _ in range(60)]
    assert await answer(operator, "GET", "/channel/list") == (200, listing(made[:50]))
    page = await answer(operator, "GET", "/channel/list?skip=50&limit=5")
    assert page == (200, listing(made[50:55]))
    assert await answer(operator, "GET", "/channel/list?skip=60") == (200, b"[]")
    status, _ = await answer(operator, "GET", "/channel/list?skip=-1")
    assert status == 400


async def test_channels_are_listed_by_agent(node: App, operator: aiohttp.ClientSession) -> None:
    made = [(await node.broker.create(ANYONE)).consumer_address for _ in range(2)]
    await node.admin.add_agent("second")
    mine = await answer(operator, "GET", "/channel/list?agent=node&skip=1")
    assert mine == (200, listing(made[1:]))
    assert await answer(operator, "GET", "/channel/list?agent=second") == (200, b"[]")
    status, body = await answer(operator, "GET", "/channel/list?agent=third")
    assert (status, json.loads(body)["code"]) == (404, "NO_SUCH_AGENT")


def listing(addresses: list[str]) -> bytes:
    channels = [f'{{"address":"{address}","agentId":"node"}}' for address in addresses]
    return f"[{','.join(channels)}]".encode()


async def test_a_channel_is_disposed_of(node: App, operator: aiohttp.ClientSession) -> None:
    address = (await node.broker.create(ANYONE)).consumer_address
    assert await answer(operator, "DELETE", f"/channel/{address}") == (200, OK)
    status, body = await answer(operator, "DELETE", f"/channel/{address}")
    assert (status, json.loads(body)["code"]) == (404, "NOT_FOUND")
    assert await node.broker.exists(ANYONE, [address]) == {address: False}


async def test_only_the_owner_may_use_the_sockets(node: App, socket_path: str) -> None:
    for path in both(socket_path):
        assert Path(path).is_socket()
        assert stat.S_IMODE(Path(path).stat().st_mode) == 0o600


async def test_the_sockets_go_with_the_broker(socket_path: str) -> None:
    async with running(fast_settings(mng_socket_path=socket_path)):
        assert all(Path(path).is_socket() for path in both(socket_path))
    assert not any(Path(path).exists() for path in both(socket_path))


async def test_sockets_that_were_left_behind_are_replaced(socket_path: str) -> None:
    for path in both(socket_path):
        listen_unix(path).close()
    async with running(fast_settings(mng_socket_path=socket_path)):
        assert all(is_served(path) for path in both(socket_path))


@needs_root
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("lives", [False, True])
async def test_the_socket_of_another_user_in_an_open_folder_is_refused(
    socket_path: str, which: int, lives: bool
) -> None:
    foreign = both(socket_path)[which]
    open_to_all(Path(socket_path).parent)
    told = f"{foreign}: it belongs to user {ANOTHER_USER}.*; set mng_socket_path to another path"
    with listen_unix(foreign) as listening:
        os.chown(foreign, ANOTHER_USER, ANOTHER_USER)
        if not lives:
            listening.close()
        with pytest.raises(OSError, match=told):
            async with running(fast_settings(mng_socket_path=socket_path)):
                pass
        assert Path(foreign).is_socket()


async def test_ones_own_socket_is_replaced_where_everybody_may_put_one(socket_path: str) -> None:
    open_to_all(Path(socket_path).parent)
    listen_unix(socket_path).close()
    async with running(fast_settings(mng_socket_path=socket_path)):
        assert is_served(socket_path)


@needs_root
async def test_the_socket_of_another_user_in_our_folder_is_replaced(
    socket_path: str,
) -> None:
    listen_unix(socket_path).close()
    os.chown(socket_path, ANOTHER_USER, ANOTHER_USER)
    async with running(fast_settings(mng_socket_path=socket_path)):
        assert is_served(socket_path)


@pytest.mark.parametrize("which", [0, 1])
async def test_a_living_socket_is_not_replaced(socket_path: str, which: int) -> None:
    taken = both(socket_path)[which]
    with listen_unix(taken):
        with pytest.raises(OSError, match=f"{taken}: .*; set mng_socket_path to another path"):
            async with running(fast_settings(mng_socket_path=socket_path)):
                pass
        assert is_served(taken)


@pytest.mark.parametrize("which", [0, 1])
async def test_a_file_in_the_way_is_left_alone(socket_path: str, which: int) -> None:
    file = Path(both(socket_path)[which])
    file.write_text("data")
    with pytest.raises(OSError, match=f"{file}: .*; set mng_socket_path to another path"):
        async with running(fast_settings(mng_socket_path=socket_path)):
            pass
    assert file.read_text() == "data"
    assert [path for path in both(socket_path) if Path(path).exists()] == [str(file)]


@pytest.mark.parametrize(
    ("path", "beside"),
    [("/run/m.sock", "/run/m.grpc.sock"), ("/run/m", "/run/m.grpc"), ("a.sock/b", "a.sock/b.grpc")],
)
def test_the_socket_of_grpc_is_beside_the_other(path: str, beside: str) -> None:
    assert grpc_path(path) == beside


async def test_a_path_may_have_any_letters(tmp_path: Path) -> None:
    path = str(tmp_path / "50%25 of ü.sock")
    async with running(fast_settings(mng_socket_path=path)):
        assert all(is_served(one) for one in both(path))


async def test_a_path_that_is_too_long_is_reported(tmp_path: Path) -> None:
    path = str(tmp_path / f"{'x' * 120}.sock")
    with pytest.raises(OSError, match="too long; set mng_socket_path"):
        async with running(fast_settings(mng_socket_path=path)):
            pass


def both(socket_path: str) -> list[str]:
    return [socket_path, grpc_path(socket_path)]
