"""Nodes that share a Redis, without proxies: under load they are replaced, and one dies."""

import asyncio
import base64
from pathlib import Path

import pytest

from tests.operator_e2e.api import Object, name_of, path_of
from tests.operator_e2e.cluster import until
from tests.operator_e2e.demo import NEW_IMAGE, Demo
from tests.operator_e2e.encryption import secret_with_certificate
from tests.operator_e2e.load import load

pytestmark = pytest.mark.timeout(300)
WITHIN_S = 60.0
STORE = "store"
PORT = 6379


async def run_redis(demo: Demo) -> None:
    """Start a Redis with a service, and put its URL into a Secret."""
    labels = {"app": STORE}
    url = f"redis://{demo.host_of(STORE)}:{PORT}/0"
    container = {"name": "redis", "image": "redis:7"}
    parts: dict[str, Object] = {
        "secrets": {"data": {"url": base64.b64encode(url.encode()).decode()}},
        "services": {"spec": {"selector": labels, "ports": [{"port": PORT}]}},
        "pods": {"spec": {"containers": [container]}},
    }
    for resource, body in parts.items():
        body["metadata"] = {"name": STORE, "labels": labels}

        async def is_made(resource: str = resource, body: Object = body) -> bool:
            await demo.api.create(path_of(resource, demo.namespace), body)
            return True

        await until(is_made, WITHIN_S)  # a new namespace has no service account for a moment

    async def is_ready() -> bool:
        pod = await demo.api.get(path_of("pods", demo.namespace, STORE))
        conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", ())}
        return conditions.get("Ready") == "True"

    await until(is_ready, WITHIN_S)


async def test_nodes_that_share_a_redis_lose_nothing(demo: Demo, tmp_path: Path) -> None:
    """They show the certificate for clients themselves, because there are no proxies."""
    await run_redis(demo)
    authority = await secret_with_certificate(demo, "certificate", tmp_path)
    store = {"redis": {"urlSecret": {"name": STORE}}}
    demo.apply(store=store, tls={"secretName": "certificate"}, minReadySeconds=6)
    await demo.settled()
    deployments = await demo.api.items(path_of("deployments", demo.namespace))
    assert [name_of(one) for one in deployments] == [f"mgp-{demo.name}"]
    async with load(demo.https_url, demo.grpc_target, 20, authority) as clients:
        clients.begin()
        await asyncio.to_thread(demo.change, image=NEW_IMAGE)
        await demo.settled()
    clients.judge("another image, 2 nodes that share a Redis, over TLS to the nodes")
    async with load(demo.https_url, demo.grpc_target, 20, authority) as clients:
        clients.begin()
        dead = name_of((await demo.nodes())[0])
        path = path_of("pods", demo.namespace, dead)
        await demo.api.delete(path, {"gracePeriodSeconds": 0})
        await until(lambda: has_successor(demo, dead), WITHIN_S)
        await demo.settled()
    clients.judge("one of 2 nodes that share a Redis dies", is_orderly=False)


async def has_successor(demo: Demo, dead: str) -> bool:
    """Return whether the operator has seen another node in the place of one that has died."""
    status = (await demo.resource())["status"]
    return dead not in status["pods"] and status["readyReplicas"] == 2
