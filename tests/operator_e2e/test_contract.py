"""The contract of the former operator: its manifest, and back ends that use services of agents."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

import aiohttp
import pytest

from tests.operator_e2e.demo import NEW_IMAGE, OLD_IMAGE, Demo
from tests.operator_e2e.load import load
from tests.operator_e2e.report import LINES

pytestmark = pytest.mark.timeout(300)

MANIFEST = f"""
apiVersion: d71.dev/v1
kind: Megaphone
metadata: {{ name: megaphone-demo }}
spec:
  replicas: 2
  image: {OLD_IMAGE}
  virtualAgentsPerNode: 3
  resources:
    limits: {{ cpu: 50m, memory: 150Mi }}
    requests: {{ cpu: 20m, memory: 50Mi }}
"""
"""A manifest of the former operator; only its image is another one."""
MESSAGES = 3
PAUSE_S = 0.2


class BackEnd:
    """Creates channels at the service of the cluster, and uses them at the services of agents."""

    def __init__(self, demo: Demo, session: aiohttp.ClientSession) -> None:
        self._demo = demo
        self._session = session
        self.channels = 0

    async def use_channels(self, over: asyncio.Event) -> None:
        for number in count():
            if over.is_set():
                return
            await self._use_one(number)
            self.channels += 1
            await asyncio.sleep(PAUSE_S)

    async def _use_one(self, number: int) -> None:
        """Create a channel, write to it in both ways, and read it. Each call must be served."""
        made = json.loads(await self._call("POST", f"{self._demo.url}/create", 200))
        agent = made["agentName"]
        write, read = (
            f"http://{self._demo.host_of(f'svc-{self._demo.name}-{agent}-{way}')}:3000"
            for way in ("write", "read")
        )
        producer, consumer = made["producerAddress"], made["consumerAddress"]
        await self._call("POST", f"{write}/write/{producer}/s", 201, number)
        messages = [{"streamId": "s", "body": n} for n in range(MESSAGES)]
        batch = {"channels": [producer], "messages": messages}
        answer = await self._call("POST", f"{write}/write-batch", 201, batch)
        assert json.loads(answer)["failures"] == []
        lines = await self._call("GET", f"{read}/read/{consumer}?wait_ms=300", 200)
        bodies = [json.loads(line)["body"] for line in lines.splitlines()]
        assert bodies == [number, *range(MESSAGES)]

    async def _call(self, method: str, url: str, status: int, body: object = None) -> str:
        async with self._session.request(method, url, json=body) as answer:
            text = await answer.text()
            assert answer.status == status, f"{method} {url.partition('?')[0]}: {text}"
            return text


@asynccontextmanager
async def back_end(demo: Demo) -> AsyncIterator[BackEnd]:
    """Let a back end use channels within this context. Raises: AssertionError, if it cannot."""
    over = asyncio.Event()
    connector = aiohttp.TCPConnector(force_close=True, use_dns_cache=False)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        one = BackEnd(demo, session)
        group.create_task(one.use_channels(over))
        try:
            yield one
        finally:
            over.set()


async def test_the_former_manifest_with_back_ends_that_use_services_of_agents(demo: Demo) -> None:
    demo.call("apply", "--filename=-", text=MANIFEST)
    demo = Demo(demo.api, demo.kubectl, demo.namespace, "megaphone-demo")
    await demo.settled()
    async with load(demo.url, demo.grpc_target, 20) as clients, back_end(demo) as demo_style:
        clients.begin()
        await asyncio.to_thread(demo.change, image=NEW_IMAGE)
        await demo.settled()
    clients.judge("the former manifest: another image, 2 nodes with 3 agents each")
    LINES.append(
        f"meanwhile a back end used {demo_style.channels} new channels at the services of their "
        "agents: every call was served"
    )
    assert demo_style.channels > 20
