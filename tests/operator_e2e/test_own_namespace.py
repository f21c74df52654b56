"""The chart with `ownNamespaceOnly`: an operator without any right outside of its namespace."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import pytest

from tests.operator_e2e.api import Api, name_of, path_of
from tests.operator_e2e.cluster import until
from tests.operator_e2e.demo import NEW_IMAGE, Demo, manifest
from tests.operator_e2e.install import OPERATOR
from tests.operator_e2e.kubectl import Kubectl
from tests.operator_e2e.load import load
from tests.support.nginx import DEPLOY

pytestmark = pytest.mark.timeout(300)
WITHIN_S = 60.0
OWN = "own"
CHART = str(DEPLOY / "helm" / "megaphone-operator")
VALUES = ("ownNamespaceOnly=true", "crd.install=false", "rolesForUsers=false")
WAIT = "--timeout=90s"


@contextmanager
def without_the_usual_operator(kubectl: Kubectl) -> Iterator[None]:
    scale = (f"--namespace={OPERATOR}", "scale", "deployment", OPERATOR)
    kubectl(*scale, "--replicas=0")
    try:
        yield
    finally:
        kubectl(*scale, "--replicas=2")
        kubectl(f"--namespace={OPERATOR}", "rollout", "status", f"deployment/{OPERATOR}", WAIT)


@pytest.fixture
async def own(operator: str, api: Api, kubectl: Kubectl) -> AsyncIterator[Demo]:
    """Install the chart in a namespace of its own, in the place of the usual operator."""
    await api.create(path_of("namespaces"), {"metadata": {"name": OWN}})
    set_all = [f"--set={value}" for value in VALUES]
    with without_the_usual_operator(kubectl):
        await until(lambda: has_no_operator(api), WITHIN_S)
        kubectl.helm("install", OPERATOR, CHART, f"--namespace={OWN}", *set_all)
        kubectl(f"--namespace={OWN}", "rollout", "status", f"deployment/{OPERATOR}", WAIT)
        demo = Demo(api, kubectl, OWN)
        yield demo
        demo.call("delete", "megaphone", "--all", "--wait=false")
        kubectl.helm("uninstall", OPERATOR, f"--namespace={OWN}")
        await api.delete(path_of("namespaces", None, OWN))


async def has_no_operator(api: Api) -> bool:
    return await api.items(path_of("pods", OPERATOR)) == []


async def test_the_operator_of_one_namespace(own: Demo, api: Api) -> None:
    other = path_of("megaphones", "default")
    await api.create(other, manifest("elsewhere"))
    own.apply(minReadySeconds=6)
    await own.settled()
    async with load(own.url, own.grpc_target, 20) as clients:
        clients.begin()
        await asyncio.to_thread(own.change, image=NEW_IMAGE)
        await own.settled()
    clients.judge("another image, 2 nodes, by an operator of one namespace only")
    elsewhere = await api.get(f"{other}/elsewhere")
    assert "status" not in elsewhere
    await api.delete(f"{other}/elsewhere")
    for pod in await api.items(path_of("pods", OWN)):
        if pod["spec"]["containers"][0]["image"].startswith("megaphone-operator"):
            log = own.call("logs", name_of(pod))
            assert [line for line in log.splitlines() if "is forbidden" in line] == []
