"""Many clusters: what a pass costs, and how much memory the operator needs.

The API server is the one of these tests, and a small server stands for all nodes, because 500
brokers would need more than a machine of a developer has.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.operator.api_server import ApiServer, api_server
from tests.operator.process import Operator, operator, until
from tests.operator.test_wiring import is_routed, pod, reason, resource
from tests.support.settings import IS_LONG

CLUSTERS, NODES = 50, 10
MEMORY_BYTES = 150 * 2**20

pytestmark = pytest.mark.skipif(not IS_LONG, reason="takes a minute")


@asynccontextmanager
async def all_nodes() -> AsyncIterator[None]:
    """Answer for each node: its one agent has the digits of its address as a name."""

    async def agents(request: web.Request) -> web.Response:
        assert request.transport is not None
        address = request.transport.get_extra_info("sockname")[0]
        name = "".join(f"{int(part):02x}" for part in address.split("."))
        agent = {"name": name, "mode": "MASTER", "warmingUp": False, "channelsCount": 7}
        return web.json_response([agent])

    app = web.Application()
    app.router.add_get("/agents", agents)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "0.0.0.0", 3002).start()
        yield
    finally:
        await runner.cleanup()


def pod_name(cluster: int, node: int) -> str:
    return f"many-{cluster}-{node}"


def put_cluster(server: ApiServer, cluster: int) -> None:
    server.put("megaphones", resource(f"many-{cluster}", replicas=NODES))
    for node in range(NODES):
        body = pod(pod_name(cluster, node), f"many-{cluster}", f"127.200.{cluster}.{node + 1}")
        body["metadata"]["uid"] = f"uid-{cluster}-{node}"
        server.put("pods", body)


async def samples(running: Operator) -> dict[str, float]:
    _, text = await running.fetch("/metrics")
    found = re.findall(r"^(\w+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


@pytest.mark.timeout(600)
async def test_fifty_clusters_with_ten_nodes_each(tmp_path: Path) -> None:
    async with api_server() as server, all_nodes(), operator(server, tmp_path) as running:
        for cluster in range(CLUSTERS):
            put_cluster(server, cluster)
        pods = [pod_name(cluster, node) for cluster in range(CLUSTERS) for node in range(NODES)]
        await until(
            lambda: all(is_routed(server, name) for name in pods), "all gates are open", 300
        )
        for cluster in range(CLUSTERS):
            settle(server, cluster)
        await until(lambda: all(is_idle(server, one) for one in range(CLUSTERS)), "idle", 300)
        first = await samples(running)
        for cluster in range(CLUSTERS):  # one after the other: it is the cost of one that counts
            body = resource(f"many-{cluster}", replicas=NODES, legacy={"deadlineSeconds": 1})
            server.put("megaphones", body)
            await until(lambda: has_seen(server, cluster), "the change is seen")  # noqa: B023
        last = await samples(running)
    passes, seconds, cpu = (
        last[name] - first[name]
        for name in (
            "megaphone_operator_pass_seconds_count",
            "megaphone_operator_pass_seconds_sum",
            "process_cpu_seconds_total",
        )
    )
    memory = last["process_resident_memory_bytes"]
    print(
        f"\n{CLUSTERS} clusters with {NODES} nodes each: {passes:.0f} passes of"
        f" {1000 * seconds / passes:.0f} ms each, of which {1000 * cpu / passes:.0f} ms CPU;"
        f" {memory / 2**20:.0f} MiB"
    )
    assert reason(server, "many-0", "Degraded") == "AsWanted"
    assert memory < MEMORY_BYTES


def settle(server: ApiServer, cluster: int) -> None:
    """Let the nodes and proxies of a cluster be as a Deployment would have made them."""
    for name in (f"mgp-many-{cluster}", f"mgp-many-{cluster}-proxy"):
        body = server.get("deployments", name) or {}
        counts = dict.fromkeys(("replicas", "readyReplicas", "updatedReplicas"), NODES)
        status = {"observedGeneration": body["metadata"]["generation"]} | counts
        server.put("deployments", body | {"status": status})
    template = (server.get("deployments", f"mgp-many-{cluster}") or {})["spec"]["template"]
    for node in range(NODES):
        body = server.get("pods", pod_name(cluster, node)) or {}
        conditions = [*body["status"]["conditions"], {"type": "Ready", "status": "True"}]
        metadata = body["metadata"] | {"annotations": template["metadata"]["annotations"]}
        status = body["status"] | {"conditions": conditions}
        server.put("pods", body | {"metadata": metadata, "status": status})


def is_idle(server: ApiServer, cluster: int) -> bool:
    return reason(server, f"many-{cluster}", "Progressing") == "Idle"


def has_seen(server: ApiServer, cluster: int) -> bool:
    body = server.get("megaphones", f"many-{cluster}") or {}
    generation = body["metadata"]["generation"]
    seen: int = body.get("status", {}).get("observedGeneration", 0)
    return bool(seen == generation == 2)
