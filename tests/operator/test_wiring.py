"""The operator as a process: what happens at the API server wakes it, and it does what it planned.

All tests of this module but the last two share one operator, and each has a cluster of its own.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from megaphone.app import running
from megaphone.model import AgentMode
from megaphone_operator.plan.names import GATE, MANAGER
from megaphone_operator.plan.resource import API_VERSION, FORMER_FINALIZER, KIND
from tests.operator.api_server import ApiServer, Call, api_server
from tests.operator.process import Operator, operator, until
from tests.support.settings import IS_LONG, fast_settings

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.group("operator")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[ApiServer]:
    async with api_server() as one:
        yield one


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running_operator(
    server: ApiServer, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Operator]:
    async with operator(server, tmp_path_factory.mktemp("operator")) as one:
        yield one


def put_resource(server: ApiServer, name: str, **spec: Any) -> None:
    server.put("megaphones", resource(name, **spec))


def resource(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"image": "broker:1", "replicas": 2} | spec,
    }


def status(server: ApiServer, name: str) -> dict[str, Any]:
    found: dict[str, Any] = (server.get("megaphones", name) or {}).get("status", {})
    return found


def reason(server: ApiServer, name: str, condition: str) -> str | None:
    conditions = status(server, name).get("conditions", [])
    return next((one["reason"] for one in conditions if one["type"] == condition), None)


def replicas(server: ApiServer, name: str) -> int | None:
    found = server.get("deployments", f"mgp-{name}")
    return found["spec"]["replicas"] if found else None


async def test_a_resource_becomes_a_cluster(server: ApiServer, running_operator: Operator) -> None:
    put_resource(server, "made")
    await until(lambda: reason(server, "made", "Progressing") == "Scaling", "there is a status")
    assert {"mgp-made-nodes", "mgp-made-takers", "svc-made"} <= server.names("services")
    assert {"mgp-made", "mgp-made-proxy"} <= server.names("deployments")
    assert "mgp-made-proxy" in server.names("configmaps")
    [secret] = [name for name in server.names("secrets") if name.startswith("mgp-made-")]
    data = (server.get("secrets", secret) or {})["stringData"]
    assert len(data["secret"]) > 40
    assert not any(data["secret"] in str(line) for line in running_operator.lines)


async def test_a_change_of_the_resource_is_carried_out(
    server: ApiServer, running_operator: Operator
) -> None:
    put_resource(server, "changed")
    await until(lambda: replicas(server, "changed") == 2, "the Deployment is there")
    put_resource(server, "changed", replicas=5)
    await until(lambda: replicas(server, "changed") == 5, "the Deployment has five replicas")


@pytest.mark.parametrize("plural", ["services", "deployments"])
async def test_what_somebody_removes_is_made_again(
    server: ApiServer, running_operator: Operator, plural: str
) -> None:
    name = f"removed-{plural}"
    put_resource(server, name)
    wanted = {f"svc-{name}"} if plural == "services" else {f"mgp-{name}"}
    await until(lambda: wanted <= server.names(plural), "it is there")
    await until(lambda: status(server, name), "the pass is over")
    server.remove(plural, *wanted)
    await until(lambda: wanted <= server.names(plural), "it is there again")


async def test_what_somebody_changes_is_made_right(
    server: ApiServer, running_operator: Operator
) -> None:
    put_resource(server, "right")
    await until(lambda: status(server, "right"), "the cluster is made")
    changed = dict(server.get("deployments", "mgp-right") or {})
    changed["spec"] = changed["spec"] | {"replicas": 9}
    server.put("deployments", changed)
    await until(lambda: replicas(server, "right") == 2, "the Deployment is as wanted")


async def test_an_object_that_is_right_is_not_written_again(
    server: ApiServer, running_operator: Operator
) -> None:
    put_resource(server, "quiet")
    await until(lambda: status(server, "quiet"), "the cluster is made")
    put_resource(server, "quiet", settings={"channel_ttl_secs": "5"})
    generation = (server.get("megaphones", "quiet") or {})["metadata"]["generation"]
    begun = len(server.calls)
    await until(
        lambda: status(server, "quiet").get("observedGeneration") == generation, "it is seen"
    )
    patched = [call for call in server.calls[begun:] if call.verb == "patch"]
    names = {(call.resource, call.name) for call in patched if "quiet" in call.name}
    assert names == {("deployments", "mgp-quiet"), ("megaphones/status", "quiet")}


def loopback_address() -> str:
    """Return an address that no other process of these tests uses."""
    pid = os.getpid()
    return f"127.{100 + (pid >> 16) % 100}.{pid >> 8 & 255}.{pid & 255 or 1}"


def pod(name: str, cluster: str, ip: str) -> dict[str, Any]:
    owner = {"kind": "ReplicaSet", "uid": "some", "controller": True}
    running_container: dict[str, Any] = {"state": {"running": {}}}
    return {
        "metadata": {
            "name": name,
            "namespace": "default",
            "labels": {"megaphone-cluster": cluster, "app.kubernetes.io/managed-by": MANAGER},
            "ownerReferences": [owner],
        },
        "spec": {
            "containers": [{"image": "broker:1"}],
            "readinessGates": [{"conditionType": GATE}],
        },
        "status": {"phase": "Running", "podIP": ip, "containerStatuses": [running_container]},
    }


def is_routed(server: ApiServer, name: str) -> bool:
    conditions = (server.get("pods", name) or {})["status"].get("conditions", [])
    return any(one["type"] == GATE and one["status"] == "True" for one in conditions)


async def test_a_node_is_let_in_after_its_agents_have_services(
    server: ApiServer, running_operator: Operator
) -> None:
    put_resource(server, "gated")
    ip = loopback_address()
    settings = fast_settings(
        ops_address=f"{ip}:3002", agent={"aaaa": AgentMode.MASTER, "bbbb": AgentMode.MASTER}
    )
    async with running(settings):
        server.put("pods", pod("gated-1", "gated", ip))
        wanted = {
            f"svc-gated-{name}" for name in ("aaaa-read", "aaaa-write", "bbbb-read", "bbbb-write")
        }
        await until(lambda: is_routed(server, "gated-1"), "the gate is open")
        assert wanted <= server.names("services")
    server.remove("pods", "gated-1")
    await until(lambda: not wanted & server.names("services"), "the services have gone")


async def test_scaling_down_says_what_each_node_costs(
    server: ApiServer, running_operator: Operator
) -> None:
    put_resource(server, "cost")
    await until(lambda: replicas(server, "cost") == 2, "the Deployment is there")
    ip = loopback_address()
    async with running(fast_settings(ops_address=f"{ip}:3002")):
        server.put("pods", pod("cost-1", "cost", ip))
        await until(lambda: is_routed(server, "cost-1"), "the node is known")
        put_resource(server, "cost", replicas=1)
        await until(lambda: replicas(server, "cost") == 1, "the Deployment has one")
    annotations = (server.get("pods", "cost-1") or {})["metadata"]["annotations"]
    assert annotations["controller.kubernetes.io/pod-deletion-cost"] == "0"


async def test_the_finalizer_of_the_former_operator_goes(
    server: ApiServer, running_operator: Operator
) -> None:
    body = resource("former")
    body["metadata"]["finalizers"] = [FORMER_FINALIZER]
    server.put("megaphones", body)
    await until(
        lambda: not (server.get("megaphones", "former") or {})["metadata"]["finalizers"],
        "there is no finalizer",
    )


async def test_an_event_tells_of_a_name_that_is_taken(
    server: ApiServer, running_operator: Operator
) -> None:
    theirs = {"metadata": {"name": "mgp-taken-proxy", "namespace": "default"}, "data": {"a": "b"}}
    server.put("configmaps", theirs)
    put_resource(server, "taken")
    await until(lambda: reason(server, "taken", "Degraded") == "NameTaken", "the status says it")
    assert (server.get("configmaps", "mgp-taken-proxy") or {})["data"] == {"a": "b"}
    events = [body for key, body in server.objects.items() if key[0] == "events"]
    await until(
        lambda: any(
            body["involvedObject"]["name"] == "taken" and body["reason"] == "NameTaken"
            for key, body in server.objects.items()
            if key[0] == "events"
        ),
        f"there is an event, not only {events}",
    )


async def test_a_call_that_is_refused_is_shown_and_repeated(
    server: ApiServer, running_operator: Operator
) -> None:
    def refuse(call: Call) -> int | None:
        return 403 if call.name == "svc-refused" else None

    server.refuse = refuse
    try:
        put_resource(server, "refused")
        await until(
            lambda: reason(server, "refused", "Degraded") == "ReconcileFailed", "it is shown"
        )
        [message] = [
            one["message"]
            for one in status(server, "refused")["conditions"]
            if one["type"] == "Degraded"
        ]
        assert message == "refused by the test"
        code, _ = await running_operator.fetch("/livez")
        assert code == 200
    finally:
        server.refuse = lambda _: None
    await until(lambda: reason(server, "refused", "Degraded") == "AsWanted", "it is well again")


async def test_a_resource_that_is_wrong_is_shown(
    server: ApiServer, running_operator: Operator
) -> None:
    put_resource(server, "wrong", drainTimeoutSeconds="soon")
    await until(lambda: reason(server, "wrong", "Degraded") == "ReconcileFailed", "it is shown")
    [condition] = status(server, "wrong")["conditions"]
    assert "drainTimeoutSeconds" in condition["message"]


async def test_probes_and_metrics_say_what_it_does(
    server: ApiServer, running_operator: Operator
) -> None:
    put_resource(server, "measured")
    await until(lambda: status(server, "measured"), "a pass is over")
    assert await running_operator.fetch("/livez") == (200, "ok\n")
    assert await running_operator.fetch("/readyz") == (200, "ok\n")
    _, text = await running_operator.fetch("/metrics")
    samples = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(samples['megaphone_operator_passes_total{result="ok"}']) >= 1
    assert samples["megaphone_operator_is_leader"] == "1.0"
    assert float(samples["megaphone_operator_last_success_timestamp_seconds"]) > 1e9
    assert float(samples['megaphone_operator_clusters{condition="Available",status="False"}']) >= 1
    assert "measured" not in text


async def test_a_resource_that_is_gone_costs_nothing_more(
    server: ApiServer, running_operator: Operator
) -> None:
    put_resource(server, "gone")
    await until(lambda: status(server, "gone"), "the cluster is made")
    server.remove("megaphones", "gone")
    await until(
        lambda: [call.verb for call in server.calls if call.name == "gone"][-1] == "get",
        "the operator has looked",
    )


async def test_the_shipped_role_is_enough(server: ApiServer, running_operator: Operator) -> None:
    put_resource(server, "role", networkPolicy={"enabled": True})
    await until(lambda: status(server, "role"), "the cluster is made")
    put_resource(server, "role", proxy={"enabled": False}, agentServices=False)
    await until(lambda: "mgp-role-proxy" not in server.names("deployments"), "the proxies go")
    await until(lambda: "mgp-role" not in server.names("networkpolicies"), "the policy goes")
    assert not [line for line in running_operator.lines if "does not allow" in line["message"]]


async def test_of_two_operators_one_works_until_it_stops(tmp_path: Path) -> None:
    async with (
        api_server() as server,
        operator(server, tmp_path) as first,
        operator(server, tmp_path) as second,
    ):
        await until(lambda: first.logged("leads") or second.logged("leads"), "one leads")
        leader, other = (first, second) if first.logged("leads") else (second, first)
        put_resource(server, "two")
        await until(lambda: status(server, "two"), "the cluster is made")
        _, text = await other.fetch("/metrics")
        assert "megaphone_operator_is_leader 0.0" in text
        assert 'passes_total{result="ok"} 0.0' in text
        assert await leader.stop() == 0
        await until(lambda: other.logged("leads"), "the other one leads")
        put_resource(server, "two", replicas=3)
        await until(lambda: replicas(server, "two") == 3, "the other one works")
        lease = server.get("leases", MANAGER) or {}
        spec = lease["spec"] | {"holderIdentity": "a third one"}
        server.put("leases", lease | {"spec": spec})
        async with asyncio.timeout(20):
            assert await other.process.wait() == 3
        assert other.logged("another copy has the lease")


async def test_with_a_namespace_it_works_only_there(tmp_path: Path) -> None:
    async with api_server() as server, operator(server, tmp_path, "--namespace", "mine") as one:
        here, elsewhere = resource("here"), resource("elsewhere")
        here["metadata"]["namespace"] = "mine"
        server.put("namespaces", {"metadata": {"name": "mine"}})
        server.put("megaphones", elsewhere)
        server.put("megaphones", here)
        await until(lambda: server.names("deployments", "mine"), "the cluster is made")
        assert server.names("deployments") == set()
        assert await one.stop(signal.SIGINT) == 0


@pytest.mark.skipif(not IS_LONG, reason="takes fifteen seconds")
async def test_it_goes_on_when_the_api_server_is_back(tmp_path: Path) -> None:
    async with api_server() as server, operator(server, tmp_path) as one:
        put_resource(server, "patient")
        await until(lambda: status(server, "patient"), "the cluster is made")
        server.refuse = lambda _: 503
        await until(lambda: one.logged("the lease was not renewed"), "it has stopped its work")
        _, text = await one.fetch("/metrics")
        assert "megaphone_operator_is_leader 0.0" in text
        begun = len(server.calls)
        put_resource(server, "patient", replicas=3)
        server.refuse = lambda _: None
        await until(lambda: replicas(server, "patient") == 3, "it works again")
        assert any(call.resource == "leases" for call in server.calls[begun:])
        assert one.process.returncode is None
