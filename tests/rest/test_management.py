"""The management API on its Unix socket, as `megactl` and operators call it."""

import stat
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import aiohttp
import pytest

from megaphone.app import App, running
from megaphone.rest.server import listen_unix
from tests.support.settings import fast_settings


@pytest.fixture
def socket_path(tmp_path: Path) -> str:
    return str(tmp_path / "m.sock")


@pytest.fixture
async def node(socket_path: str) -> AsyncIterator[App]:
    async with running(fast_settings(mng_socket_path=socket_path)) as app:
        yield app


@pytest.fixture
async def operator(node: App, socket_path: str) -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.UnixConnector(path=socket_path)
    async with aiohttp.ClientSession("http://megaphone", connector=connector) as session:
        yield session


async def test_agents_are_listed_with_what_operators_need(
    node: App, operator: aiohttp.ClientSession
) -> None:
    await node.broker.create()
    async with operator.get("/vagent/list") as response:
        [agent] = await response.json()
    assert datetime.fromisoformat(agent.pop("since")).tzinfo is not None
    assert agent == {"name": "node", "warmingUp": False, "mode": "MASTER", "channelsCount": 1}


async def test_an_agent_is_added_once(operator: aiohttp.ClientSession) -> None:
    async with operator.post("/vagent/add", json={"name": "second"}) as response:
        assert (response.status, await response.json()) == (201, {"status": "OK"})
    async with operator.post("/vagent/add", json={"name": "second"}) as response:
        assert response.status == 400
        assert "already" in (await response.json())["message"]
    async with operator.get("/vagent/list") as response:
        assert [agent["name"] for agent in await response.json()] == ["node", "second"]


@pytest.mark.parametrize("body", [{"name": "a b"}, {"name": ""}, {"name": 1}, {}, []])
async def test_a_wrong_agent_is_refused(operator: aiohttp.ClientSession, body: object) -> None:
    async with operator.post("/vagent/add", json=body) as response:
        assert (response.status, (await response.json())["code"]) == (400, "BAD_REQUEST")


async def test_channels_are_listed_in_pages(node: App, operator: aiohttp.ClientSession) -> None:
    made = [(await node.broker.create()).consumer_address for _ in range(60)]
    async with operator.get("/channel/list") as response:
        listed = await response.json()
    assert listed == [{"address": address, "agentId": "node"} for address in made[:50]]
    async with operator.get("/channel/list?skip=50&limit=5") as response:
        assert [channel["address"] for channel in await response.json()] == made[50:55]
    async with operator.get("/channel/list?skip=-1") as response:
        assert response.status == 400


async def test_a_channel_is_disposed_of(node: App, operator: aiohttp.ClientSession) -> None:
    address = (await node.broker.create()).consumer_address
    async with operator.delete(f"/channel/{address}") as response:
        assert (response.status, await response.json()) == (200, {"status": "OK"})
    async with operator.delete(f"/channel/{address}") as response:
        assert response.status == 404
    assert await node.broker.exists([address]) == {address: False}


async def test_only_the_owner_may_use_the_socket(node: App, socket_path: str) -> None:
    assert stat.S_IMODE(Path(socket_path).stat().st_mode) == 0o600


async def test_the_socket_goes_with_the_broker(socket_path: str) -> None:
    async with running(fast_settings(mng_socket_path=socket_path)):
        assert Path(socket_path).is_socket()
    assert not Path(socket_path).exists()


async def test_a_socket_that_was_left_behind_is_replaced_and_a_living_one_is_not(
    node: App, socket_path: str, tmp_path: Path
) -> None:
    left_behind = str(tmp_path / "left.sock")
    listen_unix(left_behind).close()
    async with running(fast_settings(mng_socket_path=left_behind)):
        pass
    with pytest.raises(OSError, match="set mng_socket_path to another path"):
        listen_unix(socket_path)


async def test_a_file_in_the_way_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("data")
    with pytest.raises(OSError, match="precious"):
        listen_unix(str(file))
    assert file.read_text() == "data"
