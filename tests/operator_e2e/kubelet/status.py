"""The status of a pod, from what its containers tell."""

from collections.abc import Iterable, Sequence

from tests.operator_e2e.api import Object
from tests.operator_e2e.kubelet.container import Container, now


def status_of(
    pod: Object,
    first: Sequence[Container],
    containers: Sequence[Container],
    address: str | None,
    host: str,
    known: Sequence[Object],
) -> Object:
    """Return what a kubelet writes into the status of a pod.

    `first` are its init containers; `known` are the conditions that it wrote before.
    """
    is_set_up = all(one.state.exit_code == 0 for one in first)
    are_ready = is_set_up and all(one.state.is_running and one.state.ready for one in containers)
    gates = [one["conditionType"] for one in pod["spec"].get("readinessGates", ())]
    closed = [gate for gate in gates if not has_condition(pod, gate)]
    wanted = {
        "PodReadyToStartContainers": (address is not None, ""),
        "Initialized": (is_set_up, ""),
        "ContainersReady": (are_ready, "" if are_ready else "ContainersNotReady"),
        "Ready": (
            are_ready and not closed,
            "ContainersNotReady" if not are_ready else "ReadinessGatesNotReady" if closed else "",
        ),
    }
    status: Object = {
        "phase": phase_of(pod, containers, is_set_up=is_set_up),
        "hostIP": host,
        "hostIPs": [{"ip": host}],
        "conditions": [
            condition(kind, verdict, reason, known) for kind, (verdict, reason) in wanted.items()
        ],
        "containerStatuses": [status_of_container(one) for one in containers],
        "observedGeneration": pod["metadata"].get("generation", 1),
    }
    if first:
        status["initContainerStatuses"] = [status_of_container(one) for one in first]
    if address is not None:
        status |= {"podIP": address, "podIPs": [{"ip": address}]}
    return status


def phase_of(pod: Object, containers: Iterable[Container], *, is_set_up: bool) -> str:
    codes = [one.state.exit_code for one in containers]
    if None in codes:
        is_begun = any(one.state.is_running or one.state.last for one in containers)
        return "Running" if is_set_up and is_begun else "Pending"
    return "Failed" if any(codes) else "Succeeded"


def status_of_container(container: Container) -> Object:
    state = container.state
    return {
        "name": container.name,
        "image": container.wanted["image"],
        "imageID": "",
        "containerID": f"process://{container.name}-{state.restarts}",
        "state": state.current,
        "lastState": state.last,
        "restartCount": state.restarts,
        "started": state.started and state.is_running,
        "ready": state.ready and state.is_running,
    }


def has_condition(pod: Object, kind: str) -> bool:
    """Return whether a condition of a pod is true; others write those of the readiness gates."""
    conditions = pod.get("status", {}).get("conditions", ())
    return any(one["type"] == kind and one["status"] == "True" for one in conditions)


def condition(kind: str, verdict: bool, reason: str, known: Sequence[Object]) -> Object:
    """Return a condition, with the time since which it is as it is."""
    made: Object = {"type": kind, "status": str(verdict), "reason": reason or None}
    for one in known:
        if one["type"] == kind and one["status"] == made["status"]:
            return {**made, "lastTransitionTime": one["lastTransitionTime"]}
    return {**made, "lastTransitionTime": now()}
