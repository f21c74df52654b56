"""The life of a cluster: what cannot start, what is refused, and what a deletion leaves."""

import asyncio
import json

import pytest

from tests.operator_e2e.api import Api, name_of, path_of
from tests.operator_e2e.cluster import until
from tests.operator_e2e.demo import Demo, manifest
from tests.operator_e2e.install import OPERATOR
from tests.operator_e2e.kubectl import Kubectl
from tests.operator_e2e.load import load
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


async def test_the_operator_was_never_refused_a_right(operator: str, kubectl: Kubectl) -> None:
    """The logs have what the operator has done in the scenarios before."""
    pods = kubectl(f"--namespace={operator}", "get", "pods", "--output=name").split()
    for pod in pods:
        log = kubectl(f"--namespace={operator}", "logs", pod)
        refused = [line for line in log.splitlines() if "is forbidden" in line]
        # An API server that has just started knows no rights for a second.
        assert [line for line in refused if "retry" not in line and "lease" not in line] == []


async def test_a_missing_right_is_told(demo: Demo, kubectl: Kubectl) -> None:
    """Without the right to make budgets a pass fails, and the condition says so."""
    role = json.loads(kubectl("get", "clusterrole", OPERATOR, "--output=json"))
    rules = [rule for rule in role["rules"] if "policy" not in rule["apiGroups"]]
    patch = json.dumps({"rules": rules})
    kubectl("patch", "clusterrole", OPERATOR, "--type=merge", f"--patch={patch}")
    try:
        demo.apply(replicas=1)
        await until(lambda: names_missing_right(demo), WITHIN_S)
    finally:
        whole = json.dumps({"rules": role["rules"]})
        kubectl("patch", "clusterrole", OPERATOR, "--type=merge", f"--patch={whole}")


async def names_missing_right(demo: Demo) -> bool:
    degraded = await demo.condition("Degraded")
    is_told = "poddisruptionbudgets" in degraded.get("message", "")
    return degraded.get("reason") == "ReconcileFailed" and is_told
