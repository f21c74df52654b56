"""The plan of one pass. `plan` is a pure function, and this module is the whole of its result."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import msgspec

from megaphone_operator.plan.counting import (
    Census,
    count_by_agent,
    noted_counts,
    served_channels,
    take_census,
)
from megaphone_operator.plan.events import Event, Transitions, find_transitions
from megaphone_operator.plan.names import SERVICE_OF, Names
from megaphone_operator.plan.nodes import node_objects
from megaphone_operator.plan.objects import Manifest, Surroundings
from megaphone_operator.plan.proxies import proxy_objects
from megaphone_operator.plan.resource import FORMER_FINALIZER, Megaphone
from megaphone_operator.plan.routes import (
    count_absences,
    empty_legacy_pods,
    gates_to_open,
    gone_agents,
    route_objects,
    unwanted_services,
    waits_for_gate,
)
from megaphone_operator.plan.seen import Agents, Object, Ref, Seen
from megaphone_operator.plan.status import Outcome, make_status, progress, stuck_reason
from megaphone_operator.plan.takeover import finished_legacy_pods, waits_for_image

SOON_S = 0.2
"""The next pass while a node waits for services that this pass makes."""
MOVING_S = 1.0
STUCK_S = 5.0
LEGACY_S = 5.0
IDLE_S = 60.0
LACKS_SOMETHING = "CreateContainerConfigError"
"""What Kubernetes says of a container whose Secret is not there."""


class Memory(msgspec.Struct, frozen=True):
    """What a pass must know of the passes before it. After a start of the operator it is empty.

    Nothing here is needed for correctness: without it services stay longer, and events may lack.
    """

    absences: Mapping[str, int] = {}
    """In how many passes in a row nobody had an agent, for agents that nobody has."""
    channels: Mapping[str, int] = {}
    """The channels of each agent, when it was seen last."""
    empty_legacy: frozenset[str] = frozenset()
    transitions: Transitions = Transitions()
    trusts_status: bool = False
    """Whether the status says how many channels there were a moment ago, because this is the first
    pass after another copy of the operator has ended."""

    @property
    def has_begun(self) -> bool:
        """Whether there was a pass before."""
        return self.transitions.ready is not None


class Plan(msgspec.Struct, frozen=True):
    """What one pass does, in the order of the fields.

    An error ends the pass, and the next pass plans anew.
    """

    finalizers: tuple[str, ...] | None
    """The finalizers that the resource is to have, if they must change."""
    costs: Mapping[str, int]
    """By pod, what its deletion costs: scaling down takes the nodes with fewest channels."""
    secret: str | None
    """The Secret of the nodes, which must be made if it is not there."""
    apply: tuple[Manifest, ...]
    """The objects that must be there, in this order. One that is there already is not changed."""
    gates: tuple[str, ...]
    """The pods whose gates must be opened. The services of their agents are there."""
    delete: tuple[Ref, ...]
    """The objects that must go. All of them belong to the resource."""
    status: Mapping[str, Any] | None
    """The whole status; None if it is nobody's concern any more."""
    events: tuple[Event, ...]
    next_pass_s: float
    memory: Memory


NOTHING = Plan(
    finalizers=None, costs={}, secret=None, apply=(), gates=(), delete=(), status=None, events=(),
    next_pass_s=IDLE_S, memory=Memory(),
)  # fmt: skip


def plan(resource: Megaphone, seen: Seen, memory: Memory, surroundings: Surroundings) -> Plan:
    """Decide what a cluster needs now."""
    finalizers = _finalizers(resource)
    if resource.is_deleted:
        return msgspec.structs.replace(NOTHING, finalizers=finalizers)
    counted = noted_counts(resource.status) if memory.trusts_status else memory.channels
    absences = count_absences(resource, seen, memory.absences, counted)
    gone = gone_agents(absences)
    census = take_census(resource, seen, counted, gone)
    wanted, taken = _divide(resource, seen, _wanted(resource, seen, surroundings))
    unwanted = tuple(_unwanted(resource, seen, census, gone, memory))
    outcome = Outcome(_services_after(seen, wanted, unwanted), taken)
    status = make_status(resource, seen, census, outcome)
    transitions, events = find_transitions(resource, seen, census, status, memory.transitions)
    return Plan(
        finalizers=finalizers,
        costs=_costs(resource, seen),
        secret=_secret(resource, seen, is_first=not memory.has_begun),
        apply=wanted,
        gates=gates_to_open(resource, seen),
        delete=unwanted,
        status=status,
        events=events,
        next_pass_s=_next_pass_s(resource, seen, census, absences),
        memory=Memory(
            absences={agent: count for agent, count in absences.items() if agent not in gone},
            channels=census.by_agent,
            empty_legacy=empty_legacy_pods(seen),
            transitions=transitions,
        ),
    )


def count_again(seen: Seen, memory: Memory) -> Memory:
    """Take note of what nodes said between two passes. `seen` is of the last pass, with the new
    answers."""
    channels = count_by_agent(seen, memory.channels)
    return msgspec.structs.replace(memory, channels=channels)


def _services_after(
    seen: Seen, wanted: Iterable[Manifest], unwanted: Iterable[Ref]
) -> tuple[str, ...]:
    """Return the services that are there after the pass, except those of somebody else."""
    applied = {one["metadata"]["name"] for one in wanted if one["kind"] == "Service"}
    deleted = {ref.name for ref in unwanted if ref.kind == "Service"}
    listed = {name for name, one in seen.services.items() if SERVICE_OF in one.object.labels}
    return tuple(sorted((listed | applied) - deleted))


def _finalizers(resource: Megaphone) -> tuple[str, ...] | None:
    """Take away the finalizer of the former operator, which nobody else removes."""
    if FORMER_FINALIZER not in resource.finalizers:
        return None
    return tuple(one for one in resource.finalizers if one != FORMER_FINALIZER)


def _wanted(resource: Megaphone, seen: Seen, surroundings: Surroundings) -> Iterator[Manifest]:
    """Yield what must be there. The names of nodes come before the nodes, which look for them."""
    if waits_for_image(resource, seen):
        return
    objects = [*node_objects(resource, surroundings)]
    if resource.spec.has_proxies:
        objects += proxy_objects(resource, surroundings)
    if resource.spec.paused:
        objects = [one for one in objects if one["kind"] == "Service"]
    yield from objects
    yield from route_objects(resource, seen)


def _divide(
    resource: Megaphone, seen: Seen, wanted: Iterable[Manifest]
) -> tuple[tuple[Manifest, ...], tuple[str, ...]]:
    """Divide what is wanted into objects that can be applied and names that somebody else has."""
    free, taken = [], []
    for one in wanted:
        ref = Ref(one["kind"], one["metadata"]["name"])
        found = seen.find(ref)
        if found is None or found.owner == resource.uid or _may_adopt(resource, found):
            free.append(one)
        else:
            taken.append(f"{ref.kind} {ref.name}")
    return tuple(free), tuple(taken)


def _may_adopt(resource: Megaphone, found: Object) -> bool:
    """Whether it is a service of the former operator that has lost its owner."""
    is_service = found.ref.kind == "Service" and found.ref.name.startswith(f"svc-{resource.name}")
    return is_service and found.owner is None and found.labels.get(SERVICE_OF) == resource.name


def _costs(resource: Megaphone, seen: Seen) -> dict[str, int]:
    """Return the costs that must change before the Deployment is scaled down."""
    nodes = seen.deployments.get(Names(resource.name, resource.uid).nodes)
    if nodes is None or resource.spec.replicas >= nodes.wanted:
        return {}
    if resource.spec.paused or resource.spec.store is not None:
        return {}
    costs = {
        pod.name: (pod.cost, served_channels(seen, pod))
        for pod in seen.nodes
        if not pod.is_stopping and isinstance(seen.answers.get(pod.name), Agents)
    }
    return {pod: channels for pod, (cost, channels) in costs.items() if cost != channels}


def _secret(resource: Megaphone, seen: Seen, *, is_first: bool) -> str | None:
    """Return the Secret to make.

    The operator cannot read whether it is there. So it tries to make it in its first pass, before
    the nodes, and when a node lacks something.
    """
    names, spec = Names(resource.name, resource.uid), resource.spec
    has_own = spec.store is not None or spec.node_secret_name is not None
    if has_own or waits_for_image(resource, seen):
        return None
    lacks = any((pod.trouble or "").startswith(LACKS_SOMETHING) for pod in seen.nodes)
    is_needed = is_first or lacks or names.nodes not in seen.deployments
    return names.secret if is_needed else None


def _unwanted(
    resource: Megaphone, seen: Seen, census: Census, gone: frozenset[str], memory: Memory
) -> Iterator[Ref]:
    if waits_for_image(resource, seen):
        return
    for name in unwanted_services(resource, seen, gone):
        yield Ref("Service", name)
    if resource.spec.paused:
        return
    for ref in _unwanted_parts(resource):
        found = seen.find(ref)
        if found is not None and found.owner == resource.uid:
            yield ref
    for pod in finished_legacy_pods(resource, seen, census, memory.empty_legacy):
        yield Ref("Pod", pod)


def _unwanted_parts(resource: Megaphone) -> Iterator[Ref]:
    """Yield the objects of what the resource has switched off."""
    names = Names(resource.name, resource.uid)
    if not resource.spec.has_proxies:
        kinds: tuple[Literal["Deployment", "PodDisruptionBudget", "ConfigMap"], ...] = (
            "Deployment", "PodDisruptionBudget", "ConfigMap",
        )  # fmt: skip
        for kind in kinds:
            yield Ref(kind, names.proxy)
    if not resource.spec.network_policy.enabled:
        yield Ref("NetworkPolicy", names.nodes)


def _next_pass_s(
    resource: Megaphone, seen: Seen, census: Census, absences: Mapping[str, int]
) -> float:
    if waits_for_gate(seen):
        return SOON_S
    if stuck_reason(resource, seen, census):
        return STUCK_S
    if progress(resource, seen, census).is_true and not _waits_only_for_legacy(
        resource, seen, census
    ):
        return MOVING_S
    if absences:
        return MOVING_S
    return LEGACY_S if seen.legacy_pods else IDLE_S


def _waits_only_for_legacy(resource: Megaphone, seen: Seen, census: Census) -> bool:
    """Whether only pods of the former operator are left to go, which may take hours."""
    has_nodes = census.ready >= resource.spec.replicas and not census.leaving
    return bool(seen.legacy_pods) and has_nodes
