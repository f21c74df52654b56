"""A HorizontalPodAutoscaler changes the number of nodes by what their memory is said to be."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.operator_e2e.cluster import until
from tests.operator_e2e.demo import Demo
from tests.operator_e2e.load import load
from tests.operator_e2e.metrics_server import MetricsServer, metrics_server

pytestmark = pytest.mark.timeout(300)
WITHIN_S = 90.0
LEAST, MOST = 2, 3
WANTED_MIB = 100


def autoscaler(demo: Demo) -> dict[str, object]:
    target = {"type": "AverageValue", "averageValue": f"{WANTED_MIB}Mi"}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "demo", "namespace": demo.namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "d71.dev/v1", "kind": "Megaphone", "name": demo.name},
            "minReplicas": LEAST,
            "maxReplicas": MOST,
            "metrics": [{"type": "Resource", "resource": {"name": "memory", "target": target}}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    }


@dataclass
class Scaling:
    demo: Demo
    metrics: MetricsServer

    async def settles_at(self, nodes: int) -> None:
        async def is_wanted() -> bool:
            return bool((await self.demo.resource())["spec"]["replicas"] == nodes)

        await until(is_wanted, WITHIN_S)
        await self.demo.settled()


@asynccontextmanager
async def scaled(demo: Demo, folder: Path) -> AsyncIterator[Scaling]:
    """Let an autoscaler look after a cluster of one node."""
    async with metrics_server(demo.api, demo.kubectl, folder) as metrics:
        metrics.mib = WANTED_MIB
        demo.kubectl.apply(autoscaler(demo))
        yield Scaling(demo, metrics)
        demo.call("delete", "horizontalpodautoscaler", "demo")


async def test_an_autoscaler_changes_the_number_of_nodes(demo: Demo, tmp_path: Path) -> None:
    demo.apply(replicas=1, minReadySeconds=6)
    await demo.settled()
    async with scaled(demo, tmp_path) as scaling:
        await scaling.settles_at(LEAST)  # which needs no metric
        async with load(demo.url, demo.grpc_target, 20) as clients:
            clients.begin()
            scaling.metrics.mib = 3 * WANTED_MIB
            await scaling.settles_at(MOST)
            scaling.metrics.mib = WANTED_MIB // 10
            await scaling.settles_at(LEAST)
        clients.judge(f"an autoscaler: {LEAST} nodes to {MOST}, and to {LEAST} again")
    assert scaling.metrics.asked_for == {demo.namespace}
