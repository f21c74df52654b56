"""Taking over from the former operator: its bare pods hold live channels of the former broker.

They stay, with the services of their agents, until they have no channels or their time is over.
New channels go to this operator's nodes. While the resource names the image of those pods there is
nothing to start, so nothing is touched.
"""

from collections.abc import Iterator
from datetime import timedelta

from megaphone_operator.plan.counting import Census
from megaphone_operator.plan.names import Names
from megaphone_operator.plan.nodes import node_template_checksum
from megaphone_operator.plan.resource import Megaphone
from megaphone_operator.plan.routes import empty_legacy_pods
from megaphone_operator.plan.seen import Seen, TooOld


def waits_for_image(resource: Megaphone, seen: Seen) -> bool:
    """Whether the resource still names the image of the former broker."""
    images = {pod.image for pod in seen.legacy_pods if not pod.has_ended}
    return resource.spec.image in images


def has_old_image(resource: Megaphone, seen: Seen) -> bool:
    """Whether a node of the present spec is too old to be asked for its agents."""
    checksum = node_template_checksum(resource)
    return any(
        isinstance(seen.answers.get(pod.name), TooOld) and pod.template == checksum
        for pod in seen.nodes
    )


def finished_legacy_pods(
    resource: Megaphone, seen: Seen, census: Census, empty_before: frozenset[str]
) -> Iterator[str]:
    """Yield the pods of the former operator that are not needed any more.

    A pod must have had no channels in two passes in a row, because a client may have made one just
    before the service led to our nodes.
    """
    is_late = is_past_deadline(resource, seen)
    has_successors = census.ready >= max(1, resource.spec.replicas)
    for pod in seen.legacy_pods:
        is_empty = pod.name in empty_before & empty_legacy_pods(seen)
        if not pod.is_stopping and has_successors and (is_late or is_empty):
            yield pod.name


def is_past_deadline(resource: Megaphone, seen: Seen) -> bool:
    seconds = resource.spec.legacy.deadline_seconds
    nodes = seen.deployments.get(Names(resource.name, resource.uid).nodes)
    if seconds is None or nodes is None:
        return False
    return seen.now >= nodes.created + timedelta(seconds=seconds)
