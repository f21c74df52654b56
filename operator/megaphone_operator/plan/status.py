"""What the status of a resource says: counts, conditions, and one line for people."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from megaphone_operator.plan.counting import Census, counts_to_note
from megaphone_operator.plan.names import Names
from megaphone_operator.plan.resource import Megaphone
from megaphone_operator.plan.seen import Seen, parse_time
from megaphone_operator.plan.takeover import has_old_image, waits_for_image

LOSS_SHOWN = timedelta(hours=1)
"""How long the status says that channels were lost."""
NEW_IMAGE = "set spec.image to an image of this broker"


class Condition(NamedTuple):
    type: str
    is_true: bool
    reason: str
    message: str


class Outcome(NamedTuple):
    """What a pass does, as far as the status says it."""

    services: tuple[str, ...] = ()
    """The services of the cluster after the pass."""
    taken: tuple[str, ...] = ()
    """The objects that belong to somebody else, such as `Service svc-a`, and are left alone."""


def make_status(
    resource: Megaphone, seen: Seen, census: Census, outcome: Outcome
) -> dict[str, Any]:
    """Return the whole status."""
    names = Names(resource.name, resource.uid)
    progressing = progress(resource, seen, census)
    conditions = [
        _available(resource, seen, census),
        progressing,
        _degraded(resource, seen, census, outcome),
    ]
    is_replaced = bool(seen.legacy_pods) or census.updated < len(census.alive)
    return {
        "observedGeneration": resource.generation,
        "replicas": len(census.alive),
        "readyReplicas": census.ready,
        "updatedReplicas": census.updated,
        "channels": census.channels,
        "channelsToMove": census.channels_to_move,
        "agents": counts_to_note(resource, census),
        "selector": ",".join(f"{label}={value}" for label, value in names.node_selector.items()),
        "pods": sorted(pod.name for pod in seen.pods),
        "services": sorted(outcome.services),
        "clusterStatus": "upgrade" if is_replaced else "idle",
        "conditions": with_times(resource.status, resource.generation, conditions, seen.now),
    }


def failed_status(
    before: Mapping[str, Any], generation: int, reason: str, now: datetime
) -> dict[str, Any]:
    """Return the status of the last pass, with the reason why this pass has failed."""
    failed = Condition("Degraded", True, "ReconcileFailed", reason)
    others = [one for one in before.get("conditions") or () if one["type"] != failed.type]
    return {**before, "conditions": [*others, *with_times(before, generation, [failed], now)]}


def with_times(
    before: Mapping[str, Any], generation: int, conditions: Iterable[Condition], now: datetime
) -> list[dict[str, Any]]:
    """Return conditions as Kubernetes has them. The time is that of the last change from true to
    false or back; `before` is the status that the resource has."""
    last = conditions_of(before)
    return [
        {
            "type": one.type,
            "status": "True" if one.is_true else "False",
            "observedGeneration": generation,
            "lastTransitionTime": _since(last.get(one.type, {}), one, now),
            "reason": one.reason,
            "message": one.message,
        }
        for one in conditions
    ]


def _since(last: Mapping[str, Any], one: Condition, now: datetime) -> str:
    is_same = last.get("status") == ("True" if one.is_true else "False")
    return str(last["lastTransitionTime"]) if is_same else _text(now)


def conditions_of(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {one["type"]: one for one in status.get("conditions") or ()}


def _text(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _available(resource: Megaphone, seen: Seen, census: Census) -> Condition:
    wanted = resource.spec.replicas
    nodes = f"{census.ready} of {wanted} nodes are ready"
    if wanted == 0:
        return Condition("Available", False, "NoNodes", "spec.replicas is 0")
    if census.ready < wanted:
        return Condition("Available", False, "NodesNotReady", nodes)
    proxies = seen.deployments.get(Names(resource.name, resource.uid).proxy)
    if resource.spec.has_proxies and (proxies is None or proxies.ready == 0):
        return Condition("Available", False, "ProxiesNotReady", f"{nodes}, but no proxy is")
    return Condition("Available", True, "NodesReady", nodes)


def progress(resource: Megaphone, seen: Seen, census: Census) -> Condition:
    """Return what is under way, with the line for people."""
    old = len(census.alive) - census.updated
    going, wanted = len(census.alive), resource.spec.replicas
    if reason := stuck_reason(resource, seen, census):
        return Condition("Progressing", False, "Stuck", reason)
    if resource.spec.paused:
        return Condition("Progressing", False, "Paused", _ready_text(census, wanted))
    if waits_for_image(resource, seen):
        return Condition("Progressing", False, "Idle", NEW_IMAGE)
    if old or seen.legacy_pods:
        done = f"{min(census.updated, wanted)} of {wanted} nodes are new"
        return Condition("Progressing", True, "Replacing", _join(done, _to_move(seen, census)))
    if going != wanted or census.ready < wanted or not _is_settled(resource, seen):
        text = _join(_ready_text(census, wanted), _to_move(seen, census))
        return Condition("Progressing", True, "Scaling", text)
    if census.leaving:
        text = _to_move(seen, census) or f"{', '.join(sorted(census.leaving))} stops"
        return Condition("Progressing", True, "Moving", text)
    return Condition("Progressing", False, "Idle", _ready_text(census, wanted))


def _is_settled(resource: Megaphone, seen: Seen) -> bool:
    """Whether Kubernetes has read how many nodes are wanted."""
    nodes = seen.deployments.get(Names(resource.name, resource.uid).nodes)
    return nodes is not None and nodes.is_observed and nodes.wanted == resource.spec.replicas


def _ready_text(census: Census, wanted: int) -> str:
    return f"{census.ready} of {wanted} nodes are ready"


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def _to_move(seen: Seen, census: Census) -> str:
    parts = []
    if census.channels_to_move:
        pods = ", ".join(sorted(pod for pod, count in census.leaving.items() if count))
        parts.append(f"{census.channels_to_move} channels are yet to move from {pods}")
    if seen.legacy_pods:
        parts.append(_legacy_text(seen, census))
    return _join(*parts)


def _legacy_text(seen: Seen, census: Census) -> str:
    count = len(seen.legacy_pods)
    return f"{count} pods of the former operator have {census.legacy} channels"


def stuck_reason(resource: Megaphone, seen: Seen, census: Census) -> str | None:
    """Return why a node cannot start, or None."""
    for pod in census.alive:
        if pod.trouble:
            return f"{pod.name}: {pod.trouble}"
    for name in (
        Names(resource.name, resource.uid).nodes,
        Names(resource.name, resource.uid).proxy,
    ):
        found = seen.deployments.get(name)
        if found and found.failure:
            return found.failure
    return None


def _degraded(resource: Megaphone, seen: Seen, census: Census, outcome: Outcome) -> Condition:
    if waits_for_image(resource, seen) or has_old_image(resource, seen):
        return Condition("Degraded", True, "ImageTooOld", NEW_IMAGE)
    if outcome.taken:
        text = f"these belong to somebody else: {', '.join(outcome.taken)}"
        return Condition("Degraded", True, "NameTaken", text)
    if census.lost:
        text = f"at least {census.lost} channels were lost with their nodes"
        return Condition("Degraded", True, "ChannelsLost", text)
    if message := _recent_loss(resource, seen.now):
        return Condition("Degraded", True, "ChannelsLost", message)
    if message := _failure(census):
        return Condition("Degraded", True, "NodeFails", message)
    if seen.legacy_pods:
        return Condition("Degraded", True, "LegacyNodes", _legacy_text(seen, census))
    return Condition("Degraded", False, "AsWanted", "")


def _failure(census: Census) -> str | None:
    """Return how a node has ended that should run, or None."""
    return next((f"{pod.name}: {pod.failure}" for pod in census.alive if pod.failure), None)


def _recent_loss(resource: Megaphone, now: datetime) -> str | None:
    """Return what the last status says of a loss, if that is not long ago."""
    last = conditions_of(resource.status).get("Degraded", {})
    if last.get("status") != "True" or last.get("reason") != "ChannelsLost":
        return None
    is_recent = now < parse_time(last["lastTransitionTime"]) + LOSS_SHOWN
    return str(last["message"]) if is_recent else None
