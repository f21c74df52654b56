"""The events of a cluster: each says once that something has begun or ended."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec

from megaphone_operator.plan.counting import Census
from megaphone_operator.plan.names import Names
from megaphone_operator.plan.resource import Megaphone
from megaphone_operator.plan.seen import SERVED_MODES, Seen
from megaphone_operator.plan.status import conditions_of
from megaphone_operator.plan.takeover import waits_for_image

REPORTED = ("ImageTooOld", "NameTaken", "NodeFails")
"""The reasons of the condition `Degraded` that have an event when they begin."""


class Event(msgspec.Struct, frozen=True):
    type: Literal["Normal", "Warning"]
    reason: str
    message: str


class Transitions(msgspec.Struct, frozen=True):
    """What the events of the next pass are compared with."""

    ready: frozenset[str] | None = None
    """The nodes that were ready; None before the first pass, which reports no node as new."""
    moving: Mapping[str, frozenset[str]] = {}
    """The nodes that stop, each with the agents whose channels are yet to move."""


def find_transitions(
    resource: Megaphone, seen: Seen, census: Census, status: Mapping[str, Any], before: Transitions
) -> tuple[Transitions, tuple[Event, ...]]:
    """Return what to compare the next pass with, and what has happened since the last one."""
    ready = frozenset(pod.name for pod in census.alive if pod.is_ready)
    moving, moved = _movements(seen, census, before.moving)
    started = sorted(moving.keys() - before.moving.keys())
    events = [
        *_takeovers(resource, seen),
        *_changes_of_state(resource, status),
        *(_normal("NodeAdded", f"{pod} takes channels") for pod in _new(ready, before.ready)),
        *(_normal("Moving", f"{pod} stops, and its channels move") for pod in started),
        *(_normal("Moved", f"the channels of {pod} have moved") for pod in moved),
    ]
    if census.lost:
        text = f"at least {census.lost} channels were lost with their nodes"
        events.append(Event("Warning", "ChannelsLost", text))
    return Transitions(ready, moving), tuple(events)


def _normal(reason: str, message: str) -> Event:
    return Event("Normal", reason, message)


def _new(ready: frozenset[str], before: frozenset[str] | None) -> list[str]:
    return [] if before is None else sorted(ready - before)


def _takeovers(resource: Megaphone, seen: Seen) -> Iterator[Event]:
    """Yield the event of the first pass that finds pods of the former operator."""
    has_begun = Names(resource.name, resource.uid).nodes in seen.deployments
    if seen.legacy_pods and not has_begun and not waits_for_image(resource, seen):
        count = len(seen.legacy_pods)
        yield _normal("Takeover", f"{count} pods of the former operator keep their channels")


def _changes_of_state(resource: Megaphone, status: Mapping[str, Any]) -> Iterator[Event]:
    now = conditions_of(status)["Degraded"]
    last = conditions_of(resource.status).get("Degraded", {})
    if now["reason"] in REPORTED and now["reason"] != last.get("reason"):
        yield Event("Warning", now["reason"], now["message"])


def _movements(
    seen: Seen, census: Census, before: Mapping[str, frozenset[str]]
) -> tuple[dict[str, frozenset[str]], list[str]]:
    """Return the nodes whose channels move, and those whose channels have all moved."""
    moving: dict[str, frozenset[str]] = dict(before)
    for pod in seen.nodes:
        agents = frozenset(
            agent.name
            for agent in seen.agents_of(pod)
            if agent.mode in SERVED_MODES and agent.channels_count
        )
        if pod.is_stopping and agents and census.leaving.get(pod.name):
            moving[pod.name] = moving.get(pod.name, frozenset()) | agents
    settled = {
        agent.name
        for pod in census.alive
        for agent in seen.agents_of(pod)
        if agent.mode == "MASTER"
    }
    moved = sorted(pod for pod, agents in moving.items() if agents <= settled)
    unknown = {pod for pod, agents in moving.items() if not agents & census.by_agent.keys()}
    left = {pod: agents for pod, agents in moving.items() if pod not in {*moved, *unknown}}
    return left, moved
