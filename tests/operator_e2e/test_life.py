"""The life of a cluster: what cannot start, what is refused, and what a deletion leaves."""

import asyncio
import json
import time

import pytest

from tests.operator_e2e.api import Api, name_of, path_of
from tests.operator_e2e.cluster import until
from tests.operator_e2e.demo import Demo, manifest
from tests.operator_e2e.kubectl import Kubectl
from tests.operator_e2e.load import load
from tests.operator_e2e.report import LINES
from tests.support.checker import Kind
from tests.support.cluster_load import Channel, clients
from tests.support.nginx import DEPLOY

pytestmark = pytest.mark.timeout(300)
WITHIN_S = 60.0
BAD_SPECS: dict[str, tuple[dict[str, object], str]] = {
    "a setting of the operator": ({"settings": {"drain_target": "x"}}, "drain_"),
    "no agents": ({"virtualAgentsPerNode": 0}, "virtualAgentsPerNode"),
    "fewer nodes than none": ({"replicas": -1}, "replicas"),
    "services of agents without proxies": ({"proxy": {"enabled": False}}, "agentServices"),
}
CHILDREN = (
    "deployments",
    "services",
    "configmaps",
    "poddisruptionbudgets",
    "pods",
    "secrets",
    "networkpolicies",
)
OF_KUBERNETES = {"kube-root-ca.crt"}
"""What Kubernetes itself puts into each namespace."""


@pytest.mark.parametrize("what", BAD_SPECS)
async def test_a_bad_spec_is_refused_with_the_reason(demo: Demo, what: str) -> None:
    spec, named = BAD_SPECS[what]
    text = json.dumps(manifest("bad", **spec))
    with pytest.raises(AssertionError, match=named):
        demo.call("apply", "--filename=-", text=text)


async def test_a_name_that_is_too_long_is_refused(demo: Demo) -> None:
    with pytest.raises(AssertionError, match="at most 36 characters"):
        demo.call("apply", "--filename=-", text=json.dumps(manifest("a" * 37)))


async def test_an_image_that_is_missing_changes_nothing_for_clients(demo: Demo) -> None:
    demo.apply(minReadySeconds=6)
    await demo.settled()
    async with load(demo.url, demo.grpc_target, 20) as clients:
        clients.begin()
        await asyncio.to_thread(demo.change, image="megaphone:missing")
        await until(lambda: is_stuck(demo), WITHIN_S)
        await asyncio.to_thread(demo.change, image="megaphone:1")
        await demo.settled()
    clients.judge("an image that is missing, and the former one again")


async def is_stuck(demo: Demo) -> bool:
    progressing = await demo.condition("Progressing")
    is_told = "ErrImagePull" in progressing.get("message", "")
    return progressing.get("reason") == "Stuck" and is_told


async def test_a_value_that_the_broker_refuses_is_named(demo: Demo) -> None:
    demo.apply(minReadySeconds=6)
    await demo.settled()
    async with load(demo.url, demo.grpc_target, 20) as clients:
        clients.begin()
        await asyncio.to_thread(demo.change, settings={"channel_ttl_secs": "soon"})
        await until(lambda: names_bad_setting(demo), WITHIN_S)
        events = await asyncio.to_thread(demo.call, "get", "events")
        await asyncio.to_thread(demo.change, settings={"channel_ttl_secs": "300"})
        await demo.settled()
    clients.judge("a value that the broker refuses, and a good one")
    assert "NodeFails" in events
    assert (await demo.condition("Degraded"))["reason"] == "AsWanted"


async def names_bad_setting(demo: Demo) -> bool:
    degraded, progressing = [await demo.condition(one) for one in ("Degraded", "Progressing")]
    is_told = 'channel_ttl_secs = "soon" is not allowed' in degraded.get("message", "")
    return is_told and (degraded["reason"], progressing["reason"]) == ("NodeFails", "Stuck")


async def test_people_see_how_a_cluster_is(demo: Demo) -> None:
    demo.apply(replicas=1, minReadySeconds=0)
    await demo.settled()
    shown = demo.call("get", "megaphone").splitlines()
    assert shown[0].split() == [
        "NAME",
        "NODES",
        "READY",
        "NEW",
        "CHANNELS",
        "TO",
        "MOVE",
        "STATE",
        "AGE",
    ]
    assert shown[1].split()[:7] == ["demo", "1", "1", "1", "0", "0", "idle"]
    selector = (await demo.resource())["status"]["selector"]
    scale = await demo.api.get(path_of("megaphones", demo.namespace, "demo", "scale"))
    assert scale["status"] == {"replicas": 1, "selector": selector}
    chosen = demo.call("get", "pods", f"--selector={selector}", "--output=name").split()
    assert len(chosen) == 1


async def test_a_deletion_leaves_nothing(demo: Demo) -> None:
    demo.apply(networkPolicy={"enabled": True}, minReadySeconds=0)
    await demo.settled()
    assert await children(demo) != set()
    demo.call("delete", "megaphone", "demo", "--wait=false")
    await until(lambda: is_empty(demo), WITHIN_S)


async def test_a_cluster_with_channels_ends_long_before_its_drain_timeout(demo: Demo) -> None:
    demo.apply(minReadySeconds=0, drainTimeoutSeconds=600)
    await demo.settled()
    async with clients(demo.url, demo.grpc_target) as shared:
        for _ in range(4):
            await Channel(shared, Kind.PLAIN, "ndjson").create()
    began = time.monotonic()
    demo.call("delete", "megaphone", "demo", "--wait=false")
    await until(lambda: is_empty(demo), WITHIN_S)
    took_s = time.monotonic() - began
    LINES.append(f"a cluster with channels is deleted: all is gone after {took_s:.1f} s")


async def children(demo: Demo) -> set[str]:
    found = [await demo.api.items(path_of(one, demo.namespace)) for one in CHILDREN]
    return {name_of(child) for some in found for child in some} - OF_KUBERNETES


async def is_empty(demo: Demo) -> bool:
    return await children(demo) == set()


async def test_a_chart_is_what_the_api_server_takes(
    operator: str, kubectl: Kubectl, api: Api
) -> None:
    chart = str(DEPLOY / "helm" / "megaphone-operator")
    await api.create(path_of("namespaces"), {"metadata": {"name": "chart"}})
    rendered = kubectl.helm("template", "other", chart, "--namespace=chart")
    apply = ("apply", "--dry-run=server", "--server-side", "--force-conflicts", "--filename=-")
    assert "megaphone-operator" in kubectl("--namespace=chart", *apply, text=rendered)
