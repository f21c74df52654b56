"""Clients that reach the proxies over TLS, while nodes are replaced."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from tests.operator_e2e.demo import NEW_IMAGE, Demo
from tests.operator_e2e.encryption import secret_with_certificate
from tests.operator_e2e.load import load

pytestmark = pytest.mark.timeout(300)


async def test_another_image_while_clients_use_tls(demo: Demo, tmp_path: Path) -> None:
    authority = await secret_with_certificate(demo, "certificate", tmp_path)
    demo.apply(tls={"secretName": "certificate"}, minReadySeconds=6)
    await demo.settled()
    async with aiohttp.ClientSession() as session:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(f"{demo.https_url}/livez")
        async with session.get(f"{demo.url}/livez") as answer:
            assert answer.status == 400  # nginx tells those who do not encrypt
    async with load(demo.https_url, demo.grpc_target, 20, authority) as clients:
        clients.begin()
        await asyncio.to_thread(demo.change, image=NEW_IMAGE)
        await demo.settled()
    clients.judge("another image, 2 nodes, over TLS to the proxies")
