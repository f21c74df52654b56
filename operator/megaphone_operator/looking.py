"""Looks at a cluster: lists its objects and asks its nodes."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from megaphone_operator.asking import Asking
from megaphone_operator.kube import Kube
from megaphone_operator.plan.names import CLUSTER, MANAGER, SERVICE_OF, Names
from megaphone_operator.plan.resource import Megaphone
from megaphone_operator.plan.seen import (
    Body,
    Deployment,
    Object,
    Pod,
    Ref,
    Seen,
    Service,
    parse_deployment,
    parse_object,
    parse_pod,
    parse_service,
)


class Looking:
    def __init__(self, kube: Kube, asking: Asking) -> None:
        self._kube = kube
        self._asking = asking

    async def look(self, resource: Megaphone) -> Seen:
        """Return what is there now. Raises `Unreachable`."""
        deployments, services, pods, others = await asyncio.gather(
            self._deployments(resource),
            self._services(resource),
            self._pods(resource),
            self._others(resource),
        )
        answers = await self._asking.ask(pods)
        return Seen(
            now=datetime.now(UTC),
            deployments={one.object.ref.name: one for one in deployments},
            services={one.object.ref.name: one for one in services},
            others={one.ref: one for one in others},
            pods=tuple(pods),
            answers=answers,
        )

    async def ask_again(self, seen: Seen) -> Seen:
        """Return the same with what its nodes say now."""
        return msgspec.structs.replace(seen, answers=await self._asking.ask(seen.nodes))

    async def _deployments(self, resource: Megaphone) -> list[Deployment]:
        names = Names(resource.name, resource.uid)
        found = await self._kube.find("Deployment", resource.namespace, {CLUSTER: resource.name})
        found += await self._without_label(
            resource, "Deployment", (names.nodes, names.proxy), found
        )
        return [parse_deployment(body) for body in found]

    async def _services(self, resource: Megaphone) -> list[Service]:
        names = Names(resource.name, resource.uid)
        fixed = (names.all_nodes, names.takers, names.clients)
        found = await self._kube.find("Service", resource.namespace, {SERVICE_OF: resource.name})
        found += await self._without_label(resource, "Service", fixed, found)
        return [parse_service(body) for body in found]

    async def _without_label(
        self, resource: Megaphone, kind: str, names: Iterable[str], found: list[Body]
    ) -> list[Body]:
        """Return the objects with these names that the list lacks. They are not the operator's."""
        listed = {body["metadata"]["name"] for body in found}
        missing = [name for name in names if name not in listed]
        bodies = await asyncio.gather(
            *(self._kube.get(kind, resource.namespace, name) for name in missing)
        )
        return [body for body in bodies if body is not None]

    async def _pods(self, resource: Megaphone) -> list[Pod]:
        """Return the nodes. Other pods with the label of the cluster are somebody else's."""
        bodies = await self._kube.find("Pod", resource.namespace, {CLUSTER: resource.name})
        pods = [parse_pod(body) for body in bodies]
        return [
            pod
            for pod in pods
            if pod.object.labels.get("app.kubernetes.io/managed-by") == MANAGER
            or (pod.is_legacy and pod.object.owner == resource.uid)
        ]

    async def _others(self, resource: Megaphone) -> list[Object]:
        names = Names(resource.name, resource.uid)
        refs = (
            Ref("ConfigMap", names.proxy),
            Ref("NetworkPolicy", names.nodes),
            Ref("PodDisruptionBudget", names.nodes),
            Ref("PodDisruptionBudget", names.proxy),
        )
        bodies = await asyncio.gather(
            *(self._kube.get(ref.kind, resource.namespace, ref.name) for ref in refs)
        )
        return [
            parse_object(ref.kind, body)
            for ref, body in zip(refs, bodies, strict=True)
            if body is not None
        ]
