"""What happens to a cluster: machines are drained or die, and the control plane goes away."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from tests.operator_e2e.api import Api, Object, name_of, path_of
from tests.operator_e2e.cluster import Cluster, until
from tests.operator_e2e.demo import NEW_IMAGE, Demo
from tests.operator_e2e.kubectl import Kubectl
from tests.operator_e2e.load import agent_of, load
from tests.operator_e2e.report import LINES

pytestmark = pytest.mark.timeout(300)
WITHIN_S = 60.0
API_SERVER_AWAY_S = 5.0
COUNTED_WITHIN_S = 12.0
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service=off:NoExecute"
DRAIN = ("--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=120s")


async def evict(api: Api, pod: Object) -> None:
    metadata = pod["metadata"]
    path = path_of("pods", metadata["namespace"], metadata["name"], "eviction")
    body = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
    }
    await api.create(path, body)


async def leader(api: Api, namespace: str) -> str:
    """Return the pod of the copy of the operator that leads."""
    lease = await api.get(path_of("leases", namespace, "megaphone-operator"))
    holder: str = lease["spec"].get("holderIdentity") or ""
    return holder.rpartition("-")[0]  # each start of a copy has an ending of its own


async def test_the_only_node_is_evicted(demo: Demo) -> None:
    demo.apply(replicas=1, minReadySeconds=6)
    await demo.settled()
    async with load(demo.url, demo.grpc_target) as clients:
        clients.begin()
        [node] = await demo.nodes()
        await evict(demo.api, node)
        await demo.settled()
    clients.judge("eviction of the only node", is_orderly=False)


async def test_a_machine_is_drained(demo: Demo, cluster: Cluster) -> None:
    demo.apply(minReadySeconds=6)
    await demo.settled()
    machine = cluster.nodes[0]
    async with load(demo.url, demo.grpc_target) as clients:
        clients.begin()
        await asyncio.to_thread(demo.kubectl, "drain", machine, *DRAIN)
        await demo.settled()
        await asyncio.to_thread(demo.kubectl, "uncordon", machine)
    clients.judge("`kubectl drain` of one of two machines, with everything on it", is_orderly=False)


async def test_the_operator_is_killed_in_a_rolling_upgrade(
    demo: Demo, operator: str, api: Api
) -> None:
    demo.apply(minReadySeconds=6)
    await demo.settled()
    async with load(demo.url, demo.grpc_target) as clients:
        clients.begin()
        await asyncio.to_thread(demo.change, image=NEW_IMAGE)
        await until(lambda: has_begun(demo), WITHIN_S)
        for pod in await api.items(path_of("pods", operator)):
            path = path_of("pods", operator, name_of(pod))
            await api.delete(path, {"gracePeriodSeconds": 0})
        await demo.settled()
    clients.judge("both copies of the operator are killed in a rolling upgrade")


async def has_begun(demo: Demo) -> bool:
    """Return whether a new node has started, and the former ones are there yet."""
    nodes = await demo.nodes()
    images = {node["spec"]["containers"][0]["image"] for node in nodes}
    return NEW_IMAGE in images and len(images) == 2


async def test_the_api_server_is_killed_in_a_rolling_upgrade(demo: Demo, cluster: Cluster) -> None:
    demo.apply(minReadySeconds=6)
    await demo.settled()
    async with load(demo.url, demo.grpc_target) as clients:
        clients.begin()
        await asyncio.to_thread(demo.change, image=NEW_IMAGE)
        await until(lambda: has_begun(demo), WITHIN_S)
        cluster.plane.kill_api_server()
        await asyncio.sleep(API_SERVER_AWAY_S)
        cluster.plane.start_api_server()
        await demo.settled()
    clients.judge("the API server is killed in a rolling upgrade", is_orderly=False)


async def test_another_copy_of_the_operator_leads_when_the_leader_is_gone(
    operator: str, api: Api, kubectl: Kubectl
) -> None:
    for name, grace_s in (("killed", 0), ("stopped in order", 30)):
        await until(lambda: copies_are_ready(api, operator), WITHIN_S)
        former, began = await leader(api, operator), time.monotonic()
        path = path_of("pods", operator, former)
        await api.delete(path, {"gracePeriodSeconds": grace_s})

        async def another_leads(former: str = former) -> bool:
            return await leader(api, operator) not in ("", former)

        await until(another_leads, WITHIN_S)
        took_s = time.monotonic() - began
        LINES.append(f"the leading operator is {name}: another one leads after {took_s:.1f} s")
        assert took_s < WITHIN_S


async def copies_are_ready(api: Api, namespace: str) -> bool:
    deployment = await api.get(path_of("deployments", namespace, "megaphone-operator"))
    names = [name_of(pod) for pod in await api.items(path_of("pods", namespace))]
    is_led = await leader(api, namespace) in names
    return is_led and deployment["status"].get("readyReplicas") == 2


async def test_a_machine_dies(demo: Demo, cluster: Cluster, operator: str) -> None:
    demo.apply(minReadySeconds=6)
    await demo.settled()
    led_from = await machine_of(demo.api, operator, await leader(demo.api, operator))
    machine = next(node for node in cluster.nodes if node != led_from)
    async with replacing(cluster), load(demo.url, demo.grpc_target) as clients:
        dead = await agents_on(demo, machine)
        # The leader counts the channels every ten seconds. It has had no reason for a pass yet.
        await asyncio.sleep(COUNTED_WITHIN_S)
        clients.begin()
        await lose(demo, cluster, machine, sum(agent_of(one) in dead for one in clients.channels))
        await demo.settled()
    assert 0 < clients.gone < len(clients.channels)
    clients.judge("a machine with one of two nodes dies", dead=dead, is_orderly=False)


async def test_a_machine_dies_with_the_copy_of_the_operator_that_leads(
    demo: Demo, cluster: Cluster, operator: str
) -> None:
    """The other copy knows from the status how many channels there were."""
    await until(lambda: copies_are_ready(demo.api, operator), WITHIN_S)
    demo.apply(minReadySeconds=6)
    await demo.settled()
    machine = await machine_of(demo.api, operator, await leader(demo.api, operator))
    async with replacing(cluster), load(demo.url, demo.grpc_target, 20) as clients:
        dead = await agents_on(demo, machine)
        # Each change of the resource begins a pass, which writes the status.
        await asyncio.to_thread(demo.change, legacy={"deadlineSeconds": 1})
        await until(lambda: knows_channels(demo, len(clients.channels)), WITHIN_S)
        clients.begin()
        await lose(demo, cluster, machine, sum(agent_of(one) in dead for one in clients.channels))
        await demo.settled()
    assert 0 < clients.gone < len(clients.channels)
    what = "a machine dies with one of two nodes and the leading operator"
    clients.judge(what, dead=dead, is_orderly=False)


async def lose(demo: Demo, cluster: Cluster, machine: str, channels: int) -> None:
    """Kill a machine, and wait until the status says how many channels were lost with it."""
    cluster.kill_node(machine)
    # What people do when they know that a machine is off: its pods are then forgotten.
    await asyncio.to_thread(demo.kubectl, "taint", "nodes", machine, OUT_OF_SERVICE)
    await until(lambda: has_lost(demo, channels), WITHIN_S)
    await demo.api.delete(path_of("nodes", None, machine))


async def machine_of(api: Api, namespace: str, pod: str) -> str:
    """Return the machine that a pod is on."""
    found = await api.get(path_of("pods", namespace, pod))
    return str(found["spec"]["nodeName"])


@asynccontextmanager
async def replacing(cluster: Cluster) -> AsyncIterator[None]:
    """Start another machine at the end, in the place of one that has died, and wait until pods may
    use it. Otherwise the nodes of the next scenario would share a machine."""
    try:
        yield
    finally:
        cluster.start_node()
        await cluster.wait_for_nodes()


async def agents_on(demo: Demo, machine: str) -> set[str]:
    """Return the agents of the nodes on a machine."""
    found: set[str] = set()
    async with aiohttp.ClientSession() as session:
        for node in await demo.nodes():
            if node["spec"]["nodeName"] == machine:
                url = f"http://{node['status']['podIP']}:3002/agents"
                async with session.get(url) as answer:
                    found |= {agent["name"] for agent in await answer.json()}
    return found


async def knows_channels(demo: Demo, count: int) -> bool:
    resource = await demo.resource()
    return bool(resource["status"]["channels"] == count)


async def has_lost(demo: Demo, channels: int) -> bool:
    degraded = await demo.condition("Degraded")
    is_told = degraded.get("message", "").startswith(f"at least {channels} channels were lost")
    return bool(is_told and degraded["reason"] == "ChannelsLost")
