"""What users do with a cluster under load: they change its image and its size, and lose nothing."""

import asyncio

import pytest

from tests.operator_e2e.demo import NEW_IMAGE, Demo
from tests.operator_e2e.load import load

pytestmark = pytest.mark.timeout(300)


async def test_another_image(demo: Demo) -> None:
    demo.apply(virtualAgentsPerNode=3)
    await demo.settled()
    async with load(demo.url, demo.grpc_target) as clients:
        clients.begin()
        await asyncio.to_thread(demo.change, image=NEW_IMAGE)
        await demo.settled()
    clients.judge("another image, 2 nodes")


async def test_another_number_of_nodes(demo: Demo) -> None:
    demo.apply(replicas=3, minReadySeconds=6)
    await demo.settled()
    async with load(demo.url, demo.grpc_target) as clients:
        clients.begin()
        await asyncio.to_thread(demo.scale, 1)
        await demo.settled()
        await asyncio.to_thread(demo.scale, 3)
        await demo.settled()
    clients.judge("3 nodes to 1, and to 3 again")


async def test_another_image_of_a_single_node(demo: Demo) -> None:
    demo.apply(replicas=1, minReadySeconds=6)
    await demo.settled()
    async with load(demo.url, demo.grpc_target) as clients:
        clients.begin()
        await asyncio.to_thread(demo.change, image=NEW_IMAGE)
        await demo.settled()
    clients.judge("another image, 1 node")
