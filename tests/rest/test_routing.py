"""Proxies ask a node whether it owns an agent, and whether it takes new channels."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import aiohttp
import pytest

from megaphone.app import App, running
from megaphone.model import AgentMode
from tests.support.settings import fast_settings


@asynccontextmanager
async def node(**settings: Any) -> AsyncIterator[tuple[App, aiohttp.ClientSession]]:
    async with (
        running(fast_settings(**settings)) as app,
        aiohttp.ClientSession(f"http://127.0.0.1:{app.http_port}") as session,
    ):
        yield app, session


async def asked(session: aiohttp.ClientSession, path: str) -> tuple[int, str]:
    """Return the status, and the error code if there is one."""
    async with session.get(path) as response:
        return response.status, (await response.json())["code"] if response.status >= 400 else ""


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("master", (204, "")),
        ("replica", (404, "NO_SUCH_AGENT")),
        ("unknown", (404, "NO_SUCH_AGENT")),
        ("%7B..%7D", (404, "NO_SUCH_AGENT")),
        ("%80", (400, "BAD_REQUEST")),
    ],
)
async def test_a_node_says_which_agents_are_its_own(name: str, answer: tuple[int, str]) -> None:
    agents = {"master": AgentMode.MASTER, "replica": AgentMode.REPLICA}
    async with node(agent=agents) as (_, session):
        assert await asked(session, f"/agents/{name}") == answer


async def test_a_node_lists_its_agents_for_those_who_run_it() -> None:
    agents = {"master": AgentMode.MASTER, "replica": AgentMode.REPLICA}
    async with node(agent=agents, agent_warmup_secs=60) as (app, session):
        app.agents.promote("replica", 0.0)
        for _ in range(2):
            async with session.post("/create") as response:
                assert (await response.json())["agentName"] == "replica"
        async with session.get("/agents") as response:
            assert response.status == 200
            first, second = await response.json()
    assert datetime.fromisoformat(first.pop("since")).tzinfo is not None
    assert first == {"name": "master", "mode": "MASTER", "warmingUp": True, "channelsCount": 0}
    del second["since"]
    assert second == {"name": "replica", "mode": "MASTER", "warmingUp": False, "channelsCount": 2}


async def test_a_question_for_a_moving_agent_waits_until_it_has_moved() -> None:
    async with node() as (app, session):
        with app.agents.moving("node"):
            asking = asyncio.create_task(asked(session, "/agents/node"))
            assert await asked(session, "/agents/other") == (404, "NO_SUCH_AGENT")
            assert not asking.done()
            app.agents.mark_moved("node")
        assert await asking == (404, "NO_SUCH_AGENT")


async def test_a_call_for_a_moving_agent_waits_and_gets_moved() -> None:
    async with node() as (app, session):
        async with session.post("/create") as response:
            created = await response.json()
        path = f"/write/{created['producerAddress']}/s"
        with app.agents.moving("node"):
            writing = asyncio.create_task(session.post(path, json=1).__aenter__())
            assert await asked(session, "/livez") == (200, "")
            assert not writing.done()
            app.agents.mark_moved("node")
        response = await writing
        answer = await response.json()
        assert (response.status, answer["code"]) == (421, "MOVED")
        assert answer["message"] == "agent node has moved to another node"


async def test_a_call_for_an_agent_that_stays_after_all_goes_on() -> None:
    async with node() as (app, session):
        async with session.post("/create") as response:
            created = await response.json()
        with app.agents.moving("node"):
            path = f"/write/{created['producerAddress']}/s"
            writing = asyncio.create_task(session.post(path, json=1).__aenter__())
            assert await asked(session, "/livez") == (200, "")
            assert not writing.done()
        assert (await writing).status == 201


async def test_the_wrong_node_names_the_agent_and_says_how_to_find_it() -> None:
    address = f"elsewhere.{'a' * 50}.0"
    async with node() as (_, session), session.get(f"/read/{address}") as response:
        assert response.status == 404
        message = (await response.json())["message"]
    assert "agent elsewhere is not on this node" in message
    assert "megaphone-agent: elsewhere" in message
    assert address not in message


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({}, (200, "")),
        ({"agent_warmup_secs": 60}, (503, "NO_AGENT")),
        ({"agent": {"a": AgentMode.REPLICA}}, (503, "NO_AGENT")),
    ],
)
async def test_a_node_says_whether_it_takes_new_channels(
    settings: dict[str, Any], answer: tuple[int, str]
) -> None:
    async with node(**settings) as (_, session):
        assert await asked(session, "/readyz/create") == answer
        assert await asked(session, "/readyz") == (200, "")


async def test_a_node_that_is_full_says_that_it_takes_no_new_channels() -> None:
    async with node(max_channels=1) as (app, session):
        async with session.post("/create") as response:
            created = await response.json()
        assert await asked(session, "/readyz/create") == (429, "LIMIT_EXCEEDED")
        assert await asked(session, "/readyz") == (200, "")
        await app.admin.dispose(created["consumerAddress"])
        assert await asked(session, "/readyz/create") == (200, "")


async def test_a_node_whose_memory_is_used_up_says_that_it_takes_no_new_channels() -> None:
    async with node(max_buffered_bytes=1_048_576) as (_, session):
        async with session.post("/create") as response:
            created = await response.json()
        size = 500_000
        while size > 100:  # until hardly a byte is left
            write = f"/write/{created['producerAddress']}/s"
            async with session.post(write, json="x" * size) as response:
                size = size if response.status == 201 else size // 2
        assert await asked(session, "/readyz/create") == (429, "LIMIT_EXCEEDED")
        async with session.get(f"/read/{created['consumerAddress']}?wait_ms=0") as response:
            await response.read()
        assert await asked(session, "/readyz/create") == (200, "")
