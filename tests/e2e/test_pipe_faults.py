"""Nodes that die while one forwards its agent to the other: processes that are killed."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

from tests.support.process import BrokerProcess, broker_process

EVENTS = 200
WITHIN_S = 30.0
FAST: dict[str, Any] = {"agent_warmup_secs": 0, "buffer_capacity": 1000}


class Node:
    """A broker process and how it is called."""

    def __init__(self, stack: ExitStack, folder: Path, agent: str, **settings: object) -> None:
        self._stack = stack
        self._folder = folder
        self._settings = {"agent": agent} | FAST | settings
        folder.mkdir(exist_ok=True)
        self.process = self.start()

    def start(self) -> BrokerProcess:
        self.process = self._stack.enter_context(broker_process(self._folder, **self._settings))
        # When it comes back it is where it was.
        self._settings["address"] = f"127.0.0.1:{self.process.http_port}"
        self._settings["grpc_address"] = self.process.grpc_target
        return self.process

    def kill(self) -> None:
        self.process.process.send_signal(signal.SIGKILL)
        self.process.process.wait()

    @property
    def target(self) -> str:
        return f"http://{self.process.grpc_target}"

    async def create(self) -> dict[str, str]:
        created: dict[str, str] = await self._call("POST", "/create")
        return created

    async def write(self, channel: dict[str, str], number: int) -> None:
        await self._call("POST", f"/write/{channel['producerAddress']}/s", number)

    async def read(self, channel: dict[str, str]) -> list[int]:
        """Return what is ready, and leave it there."""
        path = f"/read/{channel['consumerAddress']}?wait_ms=0&ack=explicit&window=1000"
        async with aiohttp.ClientSession(self.process.url) as session, session.get(path) as answer:
            return [json.loads(line)["body"] async for line in answer.content]

    async def exists(self, channel: dict[str, str]) -> bool:
        address = channel["consumerAddress"]
        answer = await self._call("POST", "/channelsExists", {"channels": [address]})
        return bool(answer["channels"][address])

    async def manage(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        connector = aiohttp.UnixConnector(path=str(self._folder / "megaphone.sock"))
        async with (
            aiohttp.ClientSession("http://megaphone", connector=connector) as session,
            session.request(method, path, json=body) as answer,
        ):
            return answer.status, await answer.json()

    async def pipe(self, agent: str, target: "Node") -> int:
        body = {"name": agent, "target": target.target}
        return (await self.manage("POST", "/vagent/pipe", body))[0]

    async def is_fed(self, agent: str) -> bool:
        """Tell whether a node feeds a replica: it cannot be forwarded then, not even in vain."""
        body = {"name": agent, "target": self.target}
        status, answer = await self.manage("POST", "/vagent/pipe", body)
        assert status == 409
        return "another node replicates it here" in answer["message"]

    async def promote(self, agent: str) -> int:
        return (await self.manage("POST", "/vagent/promote", {"name": agent}))[0]

    async def modes(self) -> dict[str, str]:
        _, agents = await self.manage("GET", "/vagent/list")
        return {agent["name"]: agent["mode"] for agent in agents}

    async def metric(self, name: str) -> float:
        async with (
            aiohttp.ClientSession(self.process.url) as session,
            session.get("/metrics") as answer,
        ):
            [value] = [
                float(line.split()[1])
                for line in (await answer.text()).splitlines()
                if line.startswith(f"megaphone_{name} ")
            ]
        return value

    async def _call(self, method: str, path: str, body: object = None) -> Any:
        async with (
            aiohttp.ClientSession(self.process.url) as session,
            session.request(method, path, json=body) as answer,
        ):
            assert answer.ok, await answer.text()
            return await answer.json()


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Node]]:
    """Starts nodes, each with an agent of its own name."""
    with ExitStack() as stack:
        yield lambda name, **settings: Node(stack, tmp_path / name, name, **settings)


T = TypeVar("T")


async def within(ask: Callable[[], Awaitable[T]], is_enough: Callable[[T], bool]) -> T:
    """Ask until the answer is enough."""
    async with asyncio.timeout(WITHIN_S):
        while not is_enough(answer := await ask()):  # noqa: ASYNC110  # nothing announces it
            await asyncio.sleep(0.05)
    return answer


async def has_all(node: Node, channel: dict[str, str], count: int) -> None:
    """Wait until a node has all events, each once and in order."""

    async def read() -> list[int]:
        return await node.read(channel) if await node.exists(channel) else []

    got = await within(read, lambda got: len(got) >= count)
    assert got == list(range(count))


async def test_a_target_that_dies_in_mid_pipe_and_comes_back_gets_everything(
    start: Callable[..., Node],
) -> None:
    target, source = start("target"), start("source")
    channel = await source.create()
    for number in range(EVENTS // 4):
        await source.write(channel, number)
    assert await source.pipe("source", target) == 202
    for number in range(EVENTS // 4, EVENTS):
        await source.write(channel, number)
        if number == EVENTS // 2:
            target.kill()
        if number == EVENTS * 3 // 4:
            await asyncio.to_thread(target.start)
    await has_all(target, channel, EVENTS)
    assert await source.modes() == {"source": "PIPED"}
    assert await target.modes() == {"target": "MASTER", "source": "REPLICA"}
    assert await source.metric("messages_lost") == await target.metric("messages_lost") == 0


async def test_a_source_that_dies_in_mid_pipe_leaves_what_it_has_forwarded(
    start: Callable[..., Node],
) -> None:
    target, source = start("target"), start("source")
    channel = await source.create()
    assert await source.pipe("source", target) == 202
    for number in range(EVENTS):
        await source.write(channel, number)
    source.kill()
    await within(lambda: target.is_fed("source"), lambda is_fed: not is_fed)
    got = await target.read(channel)
    assert got == list(range(len(got)))
    assert (await target.modes())["source"] == "REPLICA"
    assert await target.promote("source") == 200
    await target.write(channel, len(got))
    await has_all(target, channel, len(got) + 1)


async def test_a_source_that_comes_back_with_another_key_overwrites_nothing(
    start: Callable[..., Node],
) -> None:
    target, source = start("target"), start("source")
    channel = await source.create()
    await source.write(channel, 0)
    assert await source.pipe("source", target) == 202
    await has_all(target, channel, 1)
    source.kill()
    await asyncio.to_thread(source.start)
    assert await source.pipe("source", target) == 409
    assert await source.modes() == {"source": "MASTER"}
    await has_all(target, channel, 1)


async def test_two_nodes_that_forward_the_same_agent_give_each_event_once(
    start: Callable[..., Node],
) -> None:
    first, second, third = start("first"), start("second"), start("third")
    channel = await first.create()
    for target in (second, third):
        assert await first.pipe("first", target) == 202
    for number in range(3):
        await first.write(channel, number)
    for target in (second, third):
        await has_all(target, channel, 3)
    first.process.process.send_signal(signal.SIGSTOP)  # to the others it seems to have ended
    assert await second.promote("first") == 200
    # Refused until the second has seen that the first is silent.
    await within(lambda: second.pipe("first", third), lambda status: status == 202)
    await second.write(channel, 3)
    await has_all(third, channel, 4)
    first.process.process.send_signal(signal.SIGCONT)
    await first.write(channel, 4)
    await has_all(third, channel, 5)
    assert (await third.modes())["first"] == "REPLICA"
