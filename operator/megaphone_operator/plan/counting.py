"""How many channels there are, where, and which are lost. A node that does not answer has as many
as it had when it answered last."""

from collections.abc import Mapping
from typing import Any

import msgspec

from megaphone_operator.plan.nodes import node_template_checksum
from megaphone_operator.plan.resource import Megaphone
from megaphone_operator.plan.seen import SERVED_MODES, LegacyChannels, Pod, Seen


class Census(msgspec.Struct, frozen=True):
    """The channels and the nodes of a cluster, as a pass counts them."""

    by_agent: Mapping[str, int]
    """The channels of each agent that some node serves or served last."""
    lost: int
    """The channels of agents that have gone with their nodes, in this pass."""
    alive: tuple[Pod, ...]
    """This operator's nodes that are not to stop and have not ended."""
    ready: int
    updated: int
    """How many of `alive` are as the resource says."""
    leaving: Mapping[str, int]
    """The pods that stop or will be replaced, each with the channels that must move before. With a
    shared store none must."""
    legacy: int
    """The channels on pods of the former operator."""

    @property
    def channels(self) -> int:
        return sum(self.by_agent.values()) + self.legacy

    @property
    def channels_to_move(self) -> int:
        return sum(self.leaving.values())


def take_census(
    resource: Megaphone, seen: Seen, before: Mapping[str, int], gone: frozenset[str]
) -> Census:
    """Count. `before` is `by_agent` of the last pass, and `gone` the agents that no node has."""
    checksum = node_template_checksum(resource)
    nodes = [pod for pod in seen.nodes if not pod.has_ended]
    alive = tuple(pod for pod in nodes if not pod.is_stopping)
    by_agent = count_by_agent(seen, before)
    lost = sum(by_agent.pop(agent, 0) for agent in gone)
    has_memory = resource.spec.store is None
    return Census(
        by_agent=by_agent,
        lost=lost if has_memory else 0,
        alive=alive,
        ready=sum(pod.is_ready for pod in alive),
        updated=sum(pod.template == checksum for pod in alive),
        leaving={
            pod.name: served_channels(seen, pod) if has_memory else 0
            for pod in nodes
            if pod.is_stopping or pod.template != checksum
        },
        legacy=sum(
            answer.channels
            for answer in seen.answers.values()
            if isinstance(answer, LegacyChannels)
        ),
    )


def count_by_agent(seen: Seen, before: Mapping[str, int]) -> dict[str, int]:
    """Return the channels of each agent. An agent that no node names has as many as before."""
    by_agent = dict(before)
    for pod in seen.nodes:
        for agent in () if pod.has_ended else seen.agents_of(pod):
            if agent.mode in SERVED_MODES:
                by_agent[agent.name] = agent.channels_count
    return by_agent


def noted_counts(status: Mapping[str, Any]) -> dict[str, int]:
    """Return the channels of each agent as the status of a resource has them."""
    return {one["name"]: one["channels"] for one in status.get("agents") or ()}


def counts_to_note(resource: Megaphone, census: Census) -> list[dict[str, Any]]:
    """Return what the status says of each agent with channels, so that another copy of the operator
    knows it. With a shared store no channel is lost with a node, so nobody needs to know."""
    if resource.spec.store is not None:
        return []
    counts = sorted(census.by_agent.items())
    return [{"name": agent, "channels": channels} for agent, channels in counts if channels]


def served_channels(seen: Seen, pod: Pod) -> int:
    """Return the channels that a node serves; 0 if it did not answer."""
    return sum(agent.channels_count for agent in seen.agents_of(pod) if agent.mode in SERVED_MODES)
