"""The services that lead clients to nodes, and when a node may be ready.

The services of an agent are there before its node is ready, and go only after every node has
answered twice in a row that it has not the agent. Until then a node that does not answer may have
it.
"""

from collections.abc import Iterable, Iterator, Mapping

from megaphone_operator.plan.names import CLUSTER, Names
from megaphone_operator.plan.nodes import shared_agents
from megaphone_operator.plan.objects import HTTP, PORTS, Manifest, service
from megaphone_operator.plan.resource import Megaphone
from megaphone_operator.plan.seen import Agents, LegacyChannels, Pod, Seen

ABSENT_PASSES = 2
"""In how many passes in a row no node may have an agent before its services go."""
HTTP_ONLY: list[Manifest] = [HTTP]


def client_selector(resource: Megaphone) -> Mapping[str, str]:
    """Return the labels of the pods that any call may reach."""
    names = Names(resource.name, resource.uid)
    return names.proxy_selector if resource.spec.has_proxies else names.node_selector


def agents_of_nodes(resource: Megaphone, seen: Seen) -> frozenset[str]:
    """Return the agents that this operator's nodes have."""
    named = {agent.name for pod in seen.nodes for agent in seen.agents_of(pod)}
    shared = shared_agents(resource) if resource.spec.store else ()
    return frozenset(named.union(shared))


def legacy_agents(resource: Megaphone, seen: Seen) -> frozenset[str]:
    """Return the agents that only pods of the former operator have."""
    labelled = {agent for pod in seen.legacy_pods for agent in pod.legacy_agents}
    return frozenset(labelled - agents_of_nodes(resource, seen))


def everybody_answered(seen: Seen) -> bool:
    """Whether it is known of each node which agents it has."""
    return all(_is_known(seen, pod) for pod in seen.pods)


def _is_known(seen: Seen, pod: Pod) -> bool:
    if pod.has_ended or pod.is_legacy:
        return True
    has_begun = pod.is_running or pod.ip is not None
    return isinstance(seen.answers.get(pod.name), Agents) or not has_begun


def count_absences(
    resource: Megaphone, seen: Seen, before: Mapping[str, int], known: Iterable[str]
) -> dict[str, int]:
    """Return in how many passes in a row nobody has had an agent, for each agent that nobody has.

    `before` is what the last pass returned. Agents are those with services, and those that are
    `known` for another reason.
    """
    names = Names(resource.name, resource.uid)
    routed = {
        agent
        for name, one in seen.services.items()
        if one.object.owner == resource.uid and (agent := names.agent_of(name))
    }
    present = agents_of_nodes(resource, seen) | legacy_agents(resource, seen)
    absent = routed.union(known) - present
    if not everybody_answered(seen):
        return dict.fromkeys(absent, 0)
    return {agent: before.get(agent, 0) + 1 for agent in absent}


def gone_agents(absences: Mapping[str, int]) -> frozenset[str]:
    return frozenset(agent for agent, passes in absences.items() if passes >= ABSENT_PASSES)


def route_objects(resource: Megaphone, seen: Seen) -> Iterator[Manifest]:
    """Yield the services of clients: that of the cluster, and those of each agent."""
    names = Names(resource.name, resource.uid)
    yield service(resource, names.clients, client_selector(resource), PORTS)
    if resource.spec.agent_services:
        for agent in sorted(agents_of_nodes(resource, seen)):
            for name in names.agent_services(agent) or ():
                yield service(resource, name, client_selector(resource), HTTP_ONLY)
    yield from _missing_legacy_services(resource, seen)


def _missing_legacy_services(resource: Megaphone, seen: Seen) -> Iterator[Manifest]:
    """Yield the services that the former operator has not made. The others stay as they are."""
    names = Names(resource.name, resource.uid)
    for agent in sorted(legacy_agents(resource, seen)):
        for name in names.agent_services(agent) or ():
            if name not in seen.services:
                kind = name.rpartition("-")[2]
                selector = {CLUSTER: resource.name, f"megaphone-{agent}-{kind}": "ON"}
                yield service(resource, name, selector, HTTP_ONLY)


def gates_to_open(resource: Megaphone, seen: Seen) -> tuple[str, ...]:
    """Return the pods whose agents all have services, and whose gates are not open yet."""
    return tuple(
        pod.name
        for pod in seen.nodes
        if pod.has_gate and not pod.is_routed and not pod.is_stopping
        if seen.agents_of(pod) and _all_routed(resource, seen, pod)
    )


def _all_routed(resource: Megaphone, seen: Seen, pod: Pod) -> bool:
    if not resource.spec.agent_services:
        return True
    names, selector = Names(resource.name, resource.uid), client_selector(resource)
    return all(
        name in seen.services and seen.services[name].selector == selector
        for agent in seen.agents_of(pod)
        for name in names.agent_services(agent.name) or ()
    )


def waits_for_gate(seen: Seen) -> bool:
    """Whether a node that has answered waits for its gate."""
    return any(
        pod.has_gate and not pod.is_routed and not pod.is_stopping and seen.agents_of(pod)
        for pod in seen.nodes
    )


def unwanted_services(resource: Megaphone, seen: Seen, gone: frozenset[str]) -> Iterator[str]:
    """Yield the services of the cluster that nobody needs any more.

    The former operator made a service for each of its pods, with the name of the pod. Such a
    service stays as long as its pod.
    """
    names = Names(resource.name, resource.uid)
    fixed = {names.clients}
    if resource.spec.store is None:
        fixed |= {names.all_nodes, names.takers}
    pods = {pod.name for pod in seen.legacy_pods}
    legacy = legacy_agents(resource, seen)
    for name, one in seen.services.items():
        if one.object.owner != resource.uid or name in fixed or name in pods:
            continue
        agent = names.agent_of(name)
        is_switched_off = not resource.spec.agent_services and agent not in legacy
        if agent is None or agent in gone or is_switched_off:
            yield name


def empty_legacy_pods(seen: Seen) -> frozenset[str]:
    """Return the pods of the former operator that have no channels."""
    return frozenset(
        pod.name
        for pod in seen.legacy_pods
        if pod.has_ended or seen.answers.get(pod.name) == LegacyChannels(0)
    )
