"""The questions to nodes, over real sockets, and what comes of answers that are not as expected."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from megaphone.app import running
from megaphone.model import AgentMode
from megaphone_operator.asking import Asking, legacy_answer
from megaphone_operator.plan.seen import Agent, Agents, Answer, LegacyChannels, TooOld, parse_pod
from tests.operator.test_wiring import loopback_address, pod
from tests.support.settings import fast_settings

METRICS = b"""\
# TYPE megaphone_channel_created counter
megaphone_channel_created 12
megaphone_channel_disposed 5
megaphone_channel_disposed_by_ttl 3
"""


@asynccontextmanager
async def answering(port: int, status: int, body: bytes) -> AsyncIterator[None]:
    """Let a program of somebody else answer every call."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, body=body)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, loopback_address(), port).start()
        yield
    finally:
        await runner.cleanup()


async def ask(*, is_legacy: bool = False) -> Answer | None:
    body = pod("one", "demo", loopback_address())
    body["metadata"] |= {"uid": "one", "creationTimestamp": "2026-01-31T12:00:00Z"}
    if is_legacy:
        [owner] = body["metadata"]["ownerReferences"]
        owner["kind"] = "Megaphone"
    async with aiohttp.ClientSession() as session:
        answers = await Asking(session).ask([parse_pod(body)])
    return answers.get("one")


async def test_a_node_names_its_agents_even_if_calls_need_tokens() -> None:
    settings = fast_settings(
        ops_address=f"{loopback_address()}:3002", agent={"blue": AgentMode.MASTER}
    )
    async with running(settings) as app:
        answer = await ask()
        assert answer == Agents((Agent("blue", "MASTER", False, 0),))
        async with aiohttp.ClientSession() as session:
            for _ in range(3):
                await session.post(f"http://127.0.0.1:{app.http_port}/create")
        answer = await ask()
    assert isinstance(answer, Agents)
    assert answer.channels == 3


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({}, None),
        ({3002: (404, b"")}, TooOld()),
        ({3000: (404, b"")}, TooOld()),
        ({3000: (200, b"[]")}, None),
        ({3002: (200, b"[]")}, Agents(())),
        ({3002: (200, b"{}")}, None),
        ({3002: (200, b"<html>")}, None),
        ({3002: (503, b"[]")}, None),
        ({3002: (302, b"[]")}, None),
        ({3002: (200, json.dumps([{"name": "a"}]).encode())}, None),
        ({3002: (200, b" " * 5_000_000)}, None),
    ],
)
async def test_an_answer_that_is_no_list_of_agents_is_none(
    answers: dict[int, tuple[int, bytes]], expected: Answer | None
) -> None:
    async with AsyncExitStack() as stack:
        for port, (status, body) in answers.items():
            await stack.enter_async_context(answering(port, status, body))
        assert await ask() == expected


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, METRICS, LegacyChannels(7)),
        (200, b"", LegacyChannels(0)),  # as before its first channel
        (200, b"other 1\n", None),
        (500, METRICS, None),
    ],
)
async def test_a_pod_of_the_former_operator_says_how_many_channels_it_has(
    status: int, body: bytes, expected: Answer | None
) -> None:
    async with answering(3000, status, body):
        assert await ask(is_legacy=True) == expected


def test_counters_with_labels_and_with_the_newer_suffix_count_too() -> None:
    text = b"""\
megaphone_channel_created_total{agent="a"} 3.0
megaphone_channel_created_total{agent="b"} 2.0
megaphone_channel_disposed_total{agent="a"} 1.0
"""
    assert legacy_answer(text) == LegacyChannels(4)
