"""Carries out a plan: calls the API server for each part of it, in the order of the plan.

An object that is already as the plan wants it needs no call.
"""

import secrets
import uuid
from datetime import UTC, datetime

from megaphone_operator.kube import Kube
from megaphone_operator.plan.events import Event
from megaphone_operator.plan.names import MANAGER, Names
from megaphone_operator.plan.objects import Manifest, checksum, manifest
from megaphone_operator.plan.planning import Plan
from megaphone_operator.plan.resource import API_VERSION, KIND, Megaphone
from megaphone_operator.plan.seen import Ref, Seen

SECRET_BYTES = 32


class Doing:
    """Carries out the plans of one cluster."""

    def __init__(self, kube: Kube, reporter: str) -> None:
        """`reporter` is the name of this process in the events that it makes."""
        self._kube = kube
        self._reporter = reporter
        self._applied: dict[Ref, tuple[str, str]] = {}
        """What was applied last of each object: the checksum of the manifest, and the version of
        the object afterwards. Somebody who changes the object changes its version."""

    async def do(self, resource: Megaphone, seen: Seen, plan: Plan) -> None:
        """Raises `Unreachable` at the first call that fails; the next pass does the rest."""
        namespace = resource.namespace
        if plan.finalizers is not None:
            await self._kube.set_finalizers(namespace, resource.name, list(plan.finalizers))
        for pod, cost in plan.costs.items():
            await self._kube.set_cost(namespace, pod, cost)
        if plan.secret is not None:
            await self._kube.create(_secret(resource, plan.secret))
        for one in plan.apply:
            await self._apply(one, seen)
        for pod in plan.gates:
            await self._kube.open_gate(namespace, pod, _now())
        for ref in plan.delete:
            await self._kube.delete(ref, namespace)
        if plan.status is not None and not plan.status.items() <= resource.status.items():
            await self._kube.set_status(namespace, resource.name, plan.status)
        for event in plan.events:
            await self._kube.create(self._event(resource, event))

    async def _apply(self, one: Manifest, seen: Seen) -> None:
        ref = Ref(one["kind"], one["metadata"]["name"])
        found, wanted = seen.find(ref), checksum(one)
        if found is not None and self._applied.get(ref) == (wanted, found.resource_version):
            return
        body = await self._kube.apply(one)
        self._applied[ref] = (wanted, body["metadata"]["resourceVersion"])

    def _event(self, resource: Megaphone, event: Event) -> Manifest:
        now = _now()
        involved = {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": resource.name,
            "namespace": resource.namespace,
            "uid": resource.uid,
        }
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {
                "name": f"{resource.name}.{uuid.uuid4().hex[:16]}",
                "namespace": resource.namespace,
            },
            "involvedObject": involved,
            "type": event.type,
            "reason": event.reason,
            "message": event.message,
            "source": {"component": MANAGER},
            "reportingComponent": MANAGER,
            "reportingInstance": self._reporter,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }


def _secret(resource: Megaphone, name: str) -> Manifest:
    """Return a new secret for the nodes. Nobody reads it but they."""
    labels = Names(resource.name, resource.uid).labels("node")
    value = {"secret": secrets.token_urlsafe(SECRET_BYTES)}
    return manifest(resource, "Secret", name, labels, stringData=value)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
