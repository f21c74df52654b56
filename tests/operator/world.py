"""A small Kubernetes in memory, for plans: it applies what a plan says, rolls Deployments, and has
nodes whose agents move when they stop. It knows as much of Kubernetes as a plan relies on."""

import itertools
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from megaphone_operator.plan.names import GATE, TEMPLATE
from megaphone_operator.plan.objects import Surroundings
from megaphone_operator.plan.planning import Memory, Plan, plan
from megaphone_operator.plan.resource import Megaphone, parse_resource
from megaphone_operator.plan.seen import (
    DELETION_COST,
    Agent,
    Agents,
    Answer,
    LegacyChannels,
    Ref,
    Seen,
    parse_deployment,
    parse_object,
    parse_pod,
    parse_service,
)
from megaphone_operator.proxy_files import proxy_files

UID = "0c0ffee0-1111-2222-3333-444455556666"
SURROUNDINGS = Surroundings("cluster.local", "10.0.0.10", "megaphone-system", proxy_files())
BEGIN = datetime(2026, 1, 31, 12, tzinfo=UTC)
NODES, PROXIES = "mgp-demo", "mgp-demo-proxy"
PATIENCE = 10
"""How many ticks a stopping node looks for one that takes its agents."""


def resource_body(**spec: Any) -> dict[str, Any]:
    """Return a resource as its user has written it."""
    metadata = {"name": "demo", "namespace": "default", "uid": UID, "generation": 1}
    return {"metadata": metadata, "spec": {"image": "broker:1", "replicas": 2} | spec}


def make_resource(**spec: Any) -> Megaphone:
    return parse_resource(resource_body(**spec))


@dataclass
class Node:
    """A pod and the broker in it."""

    body: dict[str, Any]
    agents: dict[str, int] = field(default_factory=dict)
    """The channels of each of its agents."""
    answer: Answer | None = None
    """What it says instead of its agents."""
    is_silent: bool = False
    age: int = 0
    stopping_for: int | None = None

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    @property
    def template(self) -> str:
        return str(self.body["metadata"]["annotations"].get(TEMPLATE))

    @property
    def is_ready(self) -> bool:
        conditions = {one["type"]: one["status"] for one in self.body["status"]["conditions"]}
        return conditions.get("Ready") == "True"

    @property
    def is_alive(self) -> bool:
        return self.stopping_for is None

    def set_condition(self, kind: str, status: str) -> None:
        kept = [one for one in self.body["status"]["conditions"] if one["type"] != kind]
        self.body["status"]["conditions"] = [*kept, {"type": kind, "status": status}]


class World:
    def __init__(self, **spec: Any) -> None:
        self.resource: dict[str, Any] = resource_body(**spec)
        self.now = BEGIN
        self.deployments: dict[str, dict[str, Any]] = {}
        self.services: dict[str, dict[str, Any]] = {}
        self.others: dict[Ref, dict[str, Any]] = {}
        self.nodes: dict[str, Node] = {}
        self.memory = Memory()
        self.plans: list[Plan] = []
        self.lost = 0
        self._numbers = itertools.count(1)

    # -- What users and accidents do

    def change(self, **spec: Any) -> None:
        self.resource["spec"] |= spec
        self.resource["metadata"]["generation"] += 1

    def kill(self, name: str) -> None:
        """Let a pod and its channels be gone at once."""
        self.lost += sum(self.nodes.pop(name).agents.values())

    def evict(self, name: str) -> None:
        self._stop(self.nodes[name])

    def fill(self, name: str, channels: int) -> None:
        """Give each agent of a node this many channels."""
        self.nodes[name].agents = dict.fromkeys(self.nodes[name].agents, channels)

    def add_legacy_pod(self, name: str, image: str, agent: str, channels: int) -> Node:
        labels = {"megaphone-cluster": "demo", "megaphone-node": name}
        labels |= {f"megaphone-{agent}-{kind}": "ON" for kind in ("read", "write")}
        body = self._pod_body(name, labels, {}, {"containers": [{"image": image}]})
        body["metadata"]["ownerReferences"] = [
            {"kind": "Megaphone", "uid": UID, "controller": True}
        ]
        node = self.nodes[name] = Node(body, answer=LegacyChannels(channels), age=2)
        self._run(node)
        node.set_condition("Ready", "True")
        for kind in ("read", "write"):
            selector = {"megaphone-cluster": "demo", f"megaphone-{agent}-{kind}": "ON"}
            self.add_service(f"svc-demo-{agent}-{kind}", selector)
        self.add_service(name, {"megaphone-node": name})
        return node

    def add_service(
        self, name: str, selector: dict[str, str], owner: str | None = UID, label: str = "demo"
    ) -> None:
        metadata = {"name": name, "uid": f"uid-{name}", "resourceVersion": "1"}
        owners = [{"kind": "Megaphone", "uid": owner, "controller": True}] if owner else []
        self.services[name] = {
            "kind": "Service",
            "metadata": metadata
            | {"labels": {"svc-megaphone-cluster": label}, "ownerReferences": owners},
            "spec": {"selector": selector},
        }

    # -- What the operator sees and does

    def look(self) -> Seen:
        deployments = [parse_deployment(body) for body in self.deployments.values()]
        services = [parse_service(body) for body in self.services.values()]
        nodes = [node for node in self.nodes.values() if not node.is_silent]
        return Seen(
            now=self.now,
            deployments={one.object.ref.name: one for one in deployments},
            services={one.object.ref.name: one for one in services},
            others={ref: parse_object(ref.kind, body) for ref, body in self.others.items()},
            pods=tuple(parse_pod(node.body) for node in self.nodes.values()),
            answers={node.name: self._answer(node) for node in nodes if node.age >= 2},
        )

    def _answer(self, node: Node) -> Answer:
        if node.answer is not None:
            return node.answer
        return Agents(
            tuple(
                Agent(name, "MASTER" if node.is_alive else "PIPED", False, channels)
                for name, channels in node.agents.items()
            )
        )

    def run_pass(self) -> Plan:
        """Let the operator run one pass. Returns: what it planned."""
        planned = plan(parse_resource(self.resource), self.look(), self.memory, SURROUNDINGS)
        self.memory = planned.memory
        self.plans.append(planned)
        self._do(planned)
        return planned

    def _do(self, planned: Plan) -> None:
        if planned.finalizers is not None:
            self.resource["metadata"]["finalizers"] = list(planned.finalizers)
        for name, cost in planned.costs.items():
            self.nodes[name].body["metadata"]["annotations"][DELETION_COST] = str(cost)
        for one in planned.apply:
            self._apply(one)
        for name in planned.gates:
            self.nodes[name].set_condition(GATE, "True")
        for ref in planned.delete:
            self._delete(ref)
        if planned.status is not None:
            self.resource["status"] = dict(planned.status)

    def _apply(self, one: dict[str, Any]) -> None:
        name, kind = one["metadata"]["name"], one["kind"]
        place: dict[Any, dict[str, Any]] = {
            "Deployment": self.deployments,
            "Service": self.services,
        }.get(kind, self.others)
        key = name if kind in ("Deployment", "Service") else Ref(kind, name)
        before = place.get(key, {})
        metadata = one["metadata"]
        metadata |= {
            "uid": before.get("metadata", {}).get("uid", f"uid-{next(self._numbers)}"),
            "creationTimestamp": before.get("metadata", {}).get(
                "creationTimestamp", self.now.isoformat()
            ),
            "resourceVersion": str(next(self._numbers)),
            "generation": before.get("metadata", {}).get("generation", 0)
            + (before.get("spec") != one.get("spec")),
        }
        place[key] = one | {"status": before.get("status", {})}

    def _delete(self, ref: Ref) -> None:
        match ref.kind:
            case "Pod":
                self.kill(ref.name)
            case "Deployment":
                del self.deployments[ref.name]
            case "Service":
                del self.services[ref.name]
            case _:
                del self.others[ref]

    # -- What Kubernetes and the nodes do

    def tick(self) -> None:
        """Let a second pass: each controller and each node does its next step."""
        self.now += timedelta(seconds=1)
        for node in list(self.nodes.values()):
            self._live(node)
        if NODES in self.deployments:
            self._roll(self.deployments[NODES])
        if PROXIES in self.deployments:
            wanted = self.deployments[PROXIES]["spec"]["replicas"]
            self.deployments[PROXIES]["status"] = {"replicas": wanted, "readyReplicas": wanted}

    def ours(self) -> list[Node]:
        """Return the nodes that a Deployment has made and that are not to stop."""
        return [node for node in self.nodes.values() if node.answer is None and node.is_alive]

    def _roll(self, deployment: dict[str, Any]) -> None:
        spec = deployment["spec"]
        wanted, surge = spec["replicas"], spec["strategy"]["rollingUpdate"]["maxSurge"]
        checksum = spec["template"]["metadata"]["annotations"][TEMPLATE]
        alive = self.ours()
        new = [node for node in alive if node.template == checksum]
        old = [node for node in alive if node.template != checksum]
        if len(new) < wanted and len(alive) < wanted + surge:
            self._start(spec["template"])
        ready = sum(node.is_ready for node in alive)
        surplus = old or (new if len(new) > wanted else [])
        for node in sorted(surplus, key=self._rank):
            if not node.is_ready or ready > wanted:
                self._stop(node)
                break
        self._count(deployment, checksum)

    def _rank(self, node: Node) -> tuple[bool, int]:
        return node.is_ready, int(node.body["metadata"]["annotations"].get(DELETION_COST, 0))

    def _count(self, deployment: dict[str, Any], checksum: str) -> None:
        alive = self.ours()
        deployment["status"] = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": len(alive),
            "readyReplicas": sum(node.is_ready for node in alive),
            "updatedReplicas": sum(node.template == checksum for node in alive),
        }

    def _start(self, template: dict[str, Any]) -> None:
        name = f"{NODES}-{next(self._numbers)}"
        metadata = deepcopy(template["metadata"])
        body = self._pod_body(name, metadata["labels"], metadata["annotations"], template["spec"])
        body["metadata"]["ownerReferences"] = [
            {"kind": "ReplicaSet", "uid": "set", "controller": True}
        ]
        self.nodes[name] = Node(body)

    def _pod_body(
        self, name: str, labels: dict[str, str], annotations: dict[str, str], spec: dict[str, Any]
    ) -> dict[str, Any]:
        metadata = {
            "name": name,
            "uid": f"uid-{name}",
            "creationTimestamp": self.now.isoformat(),
            "labels": labels,
            "annotations": annotations,
        }
        status = {"phase": "Pending", "conditions": []}
        return {"metadata": metadata, "spec": deepcopy(spec), "status": status}

    def _live(self, node: Node) -> None:
        node.age += 1
        if node.stopping_for is not None:
            self._hand_over(node)
        elif node.age >= 2 and node.answer is None:
            if not node.agents:
                self._run(node)
                count = self.resource["spec"].get("virtualAgentsPerNode", 1)
                node.agents = {f"{next(self._numbers):016x}": 0 for _ in range(count)}
            gates = node.body["spec"].get("readinessGates", [])
            conditions = {one["type"]: one["status"] for one in node.body["status"]["conditions"]}
            if all(conditions.get(gate["conditionType"]) == "True" for gate in gates):
                node.set_condition("Ready", "True")

    def _run(self, node: Node) -> None:
        node.body["status"] |= {
            "phase": "Running",
            "podIP": "10.1.0.1",
            "containerStatuses": [{"state": {"running": {}}}],
        }

    def _stop(self, node: Node) -> None:
        node.stopping_for = 0
        node.body["metadata"]["deletionTimestamp"] = self.now.isoformat()
        node.set_condition("Ready", "False")

    def _hand_over(self, node: Node) -> None:
        assert node.stopping_for is not None
        node.stopping_for += 1
        takers = [other for other in self.ours() if other.is_ready]
        if takers:
            takers[0].agents |= node.agents
            del self.nodes[node.name]
        elif node.stopping_for > PATIENCE:
            self.kill(node.name)

    def settle(self, passes: int = 80) -> int:
        """Let passes and seconds alternate until nothing is under way. Returns: how many passes.

        Fails if that takes more than so many.
        """
        for number in range(1, passes + 1):
            planned = self.run_pass()
            self.tick()
            if planned.next_pass_s == 60.0:
                return number
        raise AssertionError(f"not settled after {passes} passes: {self.resource['status']}")

    def agents(self) -> Iterator[str]:
        """Yield all agents that exist, on nodes that do not answer too."""
        for node in self.nodes.values():
            yield from node.agents

    @property
    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.resource["status"]
        return status

    def condition(self, kind: str) -> tuple[str, str, str]:
        """Return the status, the reason and the message of a condition."""
        [one] = [one for one in self.status["conditions"] if one["type"] == kind]
        return one["status"], one["reason"], one["message"]
