"""What a pass has seen of a cluster: its objects, and what its nodes said."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from megaphone_operator.plan.names import GATE, TEMPLATE
from megaphone_operator.plan.resource import KIND

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
SERVED_MODES = ("MASTER", "PIPED")
"""The modes in which the node that has an agent serves its channels. A REPLICA is a copy."""

LAST_WORDS = 400
"""How many characters of a container's last line a condition may have."""


class Ref(NamedTuple):
    """Names one object of the cluster's namespace."""

    kind: str
    name: str


class Object(msgspec.Struct, frozen=True):
    """What the operator must know of any object."""

    ref: Ref
    uid: str
    owner: str | None
    """The uid of its controller."""
    labels: Mapping[str, str]
    resource_version: str


class Deployment(msgspec.Struct, frozen=True):
    object: Object
    created: datetime
    wanted: int
    """`spec.replicas`, as the last pass left it."""
    replicas: int
    updated: int
    ready: int
    available: int
    is_observed: bool
    """Whether the counts are those of the present spec, and not of one before it."""
    failure: str | None
    """Why Kubernetes cannot go on, if it says so."""


class Service(msgspec.Struct, frozen=True):
    object: Object
    selector: Mapping[str, str]


class Pod(msgspec.Struct, frozen=True):
    object: Object
    is_legacy: bool
    """Whether the former operator made it: its pods belong to the resource itself."""
    image: str
    template: str
    """The checksum of the template that it was made from."""
    ip: str | None
    created: datetime
    is_ready: bool
    is_running: bool
    """Whether its container runs, so that it can be asked."""
    has_ended: bool
    """Whether its containers have ended for good, so that it has no channels."""
    is_stopping: bool
    has_gate: bool
    """Whether it waits for the operator before it is ready."""
    is_routed: bool
    """Whether its gate is open."""
    cost: int | None
    failure: str | None
    """How its container has ended with an error, in the words of the container if there are some.
    None when it is ready again."""
    trouble: str | None
    """Why its container does not run, as Kubernetes or the container says it."""

    @property
    def name(self) -> str:
        return self.object.ref.name

    @property
    def legacy_agents(self) -> frozenset[str]:
        """The agents that the former operator noted in the labels of the pod."""
        return frozenset(
            parts[0]
            for label in self.object.labels
            if label.startswith("megaphone-")
            and len(parts := label.removeprefix("megaphone-").rsplit("-", 1)) == 2
            and parts[1] in ("read", "write")
        )


class Agent(msgspec.Struct, frozen=True, rename="camel"):
    """One entry of `GET /agents`."""

    name: str
    mode: str
    warming_up: bool = False
    channels_count: int = 0


class Agents(msgspec.Struct, frozen=True):
    """A node answered: these are its agents."""

    agents: tuple[Agent, ...]

    @property
    def channels(self) -> int:
        """How many channels the node serves."""
        return sum(agent.channels_count for agent in self.agents if agent.mode in SERVED_MODES)


class LegacyChannels(msgspec.Struct, frozen=True):
    """A node of the former broker answered: it has this many channels."""

    channels: int


class TooOld(msgspec.Struct, frozen=True):
    """The node answered as one that does not know the question: its image is too old."""


Answer = Agents | LegacyChannels | TooOld
"""What a node said. A node that did not answer in time has no answer."""


class Seen(msgspec.Struct, frozen=True):
    """All that a pass has seen."""

    now: datetime
    deployments: Mapping[str, Deployment] = {}
    services: Mapping[str, Service] = {}
    others: Mapping[Ref, Object] = {}
    """The config maps, budgets and network policies with names of the cluster."""
    pods: tuple[Pod, ...] = ()
    """Pods that are nodes, of the former operator too. Pods of proxies are not among them."""
    answers: Mapping[str, Answer] = {}
    """By the name of the pod."""

    @property
    def nodes(self) -> tuple[Pod, ...]:
        """The pods that this operator's Deployment made."""
        return tuple(pod for pod in self.pods if not pod.is_legacy)

    @property
    def legacy_pods(self) -> tuple[Pod, ...]:
        return tuple(pod for pod in self.pods if pod.is_legacy)

    def agents_of(self, pod: Pod) -> tuple[Agent, ...]:
        """Return the agents that the node named; none if it did not answer."""
        answer = self.answers.get(pod.name)
        return answer.agents if isinstance(answer, Agents) else ()

    def find(self, ref: Ref) -> Object | None:
        if ref.kind == "Deployment" and ref.name in self.deployments:
            return self.deployments[ref.name].object
        if ref.kind == "Service" and ref.name in self.services:
            return self.services[ref.name].object
        return self.others.get(ref)


Body = Mapping[str, Any]
"""An object as the API server has it."""


def parse_object(kind: str, body: Body) -> Object:
    metadata = body["metadata"]
    owners = metadata.get("ownerReferences") or ()
    return Object(
        ref=Ref(kind, metadata["name"]),
        uid=metadata["uid"],
        owner=next((owner["uid"] for owner in owners if owner.get("controller")), None),
        labels=metadata.get("labels") or {},
        resource_version=metadata.get("resourceVersion", ""),
    )


def parse_deployment(body: Body) -> Deployment:
    status = body.get("status") or {}
    metadata = body["metadata"]
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    progressing = conditions.get("Progressing", {})
    refused = conditions.get("ReplicaFailure", {})
    failure = None
    if refused.get("status") == "True":
        failure = refused.get("message", "Kubernetes refuses to make a pod")
    elif progressing.get("status") == "False":
        failure = progressing.get("message", "the Deployment makes no progress")
    return Deployment(
        object=parse_object("Deployment", body),
        created=parse_time(metadata["creationTimestamp"]),
        wanted=body["spec"].get("replicas", 1),
        replicas=status.get("replicas", 0),
        updated=status.get("updatedReplicas", 0),
        ready=status.get("readyReplicas", 0),
        available=status.get("availableReplicas", 0),
        is_observed=status.get("observedGeneration", 0) >= metadata.get("generation", 0),
        failure=failure,
    )


def parse_service(body: Body) -> Service:
    return Service(parse_object("Service", body), body["spec"].get("selector") or {})


def parse_pod(body: Body) -> Pod:
    metadata, spec, status = body["metadata"], body["spec"], body.get("status") or {}
    annotations = metadata.get("annotations") or {}
    conditions = {one["type"]: one["status"] for one in status.get("conditions") or ()}
    containers = status.get("containerStatuses") or ()
    phase = status.get("phase", "Pending")
    gates = [one["conditionType"] for one in spec.get("readinessGates") or ()]
    cost = annotations.get(DELETION_COST)
    failure = _failure(containers)
    return Pod(
        object=parse_object("Pod", body),
        is_legacy=any(
            owner.get("controller") and owner["kind"] == KIND
            for owner in metadata.get("ownerReferences") or ()
        ),
        image=spec["containers"][0]["image"],
        template=annotations.get(TEMPLATE, ""),
        ip=status.get("podIP"),
        created=parse_time(metadata["creationTimestamp"]),
        is_ready=conditions.get("Ready") == "True",
        is_running=any("running" in (one.get("state") or {}) for one in containers),
        has_ended=phase in ("Succeeded", "Failed"),
        is_stopping=metadata.get("deletionTimestamp") is not None,
        has_gate=GATE in gates,
        is_routed=conditions.get(GATE) == "True",
        cost=int(cost) if cost is not None and cost.lstrip("-").isdecimal() else None,
        failure=failure,
        trouble=failure or _trouble(status, containers),
    )


def _failure(containers: Any) -> str | None:
    """Return how a container has ended, if that was an error and it has not been ready since.

    The last line that it wrote says why: so the containers of nodes end their logs.
    """
    for one in containers:
        states = [] if one.get("ready") else [one.get("state"), one.get("lastState")]
        for state in states:
            ended = (state or {}).get("terminated") or {}
            if code := ended.get("exitCode"):
                lines = str(ended.get("message") or ended.get("reason") or "").split("\n")
                said = next((line.strip() for line in reversed(lines) if line.strip()), "")
                return ": ".join(filter(None, (f"it ended with code {code}", said[:LAST_WORDS])))
    return None


def _trouble(status: Body, containers: Any) -> str | None:
    """Return why a container does not run, without waiting that is a part of any start."""
    for one in containers:
        waiting = (one.get("state") or {}).get("waiting") or {}
        reason = waiting.get("reason", "")
        if reason and reason not in ("ContainerCreating", "PodInitializing"):
            return ": ".join(filter(None, (reason, waiting.get("message", ""))))
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("message") or condition.get("reason") or "not scheduled")
    return None


def parse_time(text: str) -> datetime:
    """Read a time as Kubernetes writes it, such as 2026-01-31T12:00:00Z."""
    return datetime.fromisoformat(text)
