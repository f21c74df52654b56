"""The API server: the few calls that the operator makes. README.md, "Rights", lists them all."""

from collections.abc import Mapping
from typing import Any

import httpx2
from lightkube.core.async_client import AsyncClient
from lightkube.core.exceptions import ApiError
from lightkube.generic_resource import GenericNamespacedResource, create_namespaced_resource
from lightkube.types import PatchType

from megaphone_operator.plan.names import GATE, MANAGER
from megaphone_operator.plan.objects import Manifest
from megaphone_operator.plan.resource import GROUP, KIND, VERSION
from megaphone_operator.plan.seen import DELETION_COST, Body, Ref

NOT_FOUND, CONFLICT = 404, 409

Kind = type[GenericNamespacedResource]

KINDS: dict[str, Kind] = {
    kind: create_namespaced_resource(group, version, kind, plural)
    for group, version, kind, plural in (
        (GROUP, VERSION, KIND, "megaphones"),
        ("apps", "v1", "Deployment", "deployments"),
        ("coordination.k8s.io", "v1", "Lease", "leases"),
        ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies"),
        ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
        ("", "v1", "ConfigMap", "configmaps"),
        ("", "v1", "Event", "events"),
        ("", "v1", "Pod", "pods"),
        ("", "v1", "Secret", "secrets"),
        ("", "v1", "Service", "services"),
    )
}
Unreachable = httpx2.HTTPError
"""What any call raises if the API server does not answer, or refuses the call."""


class Kube:
    """Calls the API server. Each call raises `Unreachable` if it fails."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def get(self, kind: str, namespace: str, name: str) -> Body | None:
        """Return an object; None if there is none."""
        try:
            return await self._client.get(KINDS[kind], name, namespace=namespace)
        except ApiError as error:
            if error.status.code == NOT_FOUND:
                return None
            raise

    async def find(self, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Body]:
        found = self._client.list(KINDS[kind], namespace=namespace, labels=dict(labels))
        return [body async for body in found]

    async def apply(self, manifest: Manifest) -> Body:
        """Let an object be as the manifest says, whoever has changed it. Returns: the object."""
        metadata = manifest["metadata"]
        return await self._client.patch(
            KINDS[manifest["kind"]],
            metadata["name"],
            manifest,
            namespace=metadata["namespace"],
            patch_type=PatchType.APPLY,
            field_manager=MANAGER,
            force=True,
        )

    async def create(self, manifest: Manifest) -> bool:
        """Make an object. Returns: whether it was not there yet."""
        try:
            await self._client.create(_object(manifest))
        except ApiError as error:
            if error.status.code == CONFLICT:
                return False
            raise
        return True

    async def replace(self, manifest: Manifest) -> bool:
        """Write an object. Returns: False if somebody has changed it since it was read."""
        try:
            await self._client.replace(_object(manifest))
        except ApiError as error:
            if error.status.code in (CONFLICT, NOT_FOUND):
                return False
            raise
        return True

    async def delete(self, ref: Ref, namespace: str) -> None:
        """Delete an object, if it is there."""
        try:
            await self._client.delete(KINDS[ref.kind], ref.name, namespace=namespace)
        except ApiError as error:
            if error.status.code != NOT_FOUND:
                raise

    async def set_status(self, namespace: str, name: str, status: Mapping[str, Any]) -> None:
        await self._patch(KINDS[KIND].Status, namespace, name, {"status": status}, PatchType.MERGE)

    async def set_finalizers(self, namespace: str, name: str, finalizers: list[str]) -> None:
        patch = {"metadata": {"finalizers": finalizers}}
        await self._patch(KINDS[KIND], namespace, name, patch, PatchType.MERGE)

    async def open_gate(self, namespace: str, pod: str, time: str) -> None:
        condition = {
            "type": GATE,
            "status": "True",
            "lastTransitionTime": time,
            "reason": "ServicesExist",
            "message": "the agents of the node have services",
        }
        await self._patch_pod(namespace, pod, {"status": {"conditions": [condition]}})

    async def set_cost(self, namespace: str, pod: str, cost: int) -> None:
        await self._patch_pod(
            namespace, pod, {"metadata": {"annotations": {DELETION_COST: str(cost)}}}
        )

    async def _patch_pod(self, namespace: str, pod: str, patch: dict[str, Any]) -> None:
        """Change the status or the metadata of a pod, if it is there. Both need one right only."""
        try:
            await self._patch(KINDS["Pod"].Status, namespace, pod, patch, PatchType.STRATEGIC)
        except ApiError as error:
            if error.status.code != NOT_FOUND:
                raise

    async def _patch(
        self, kind: Any, namespace: str, name: str, patch: dict[str, Any], patch_type: PatchType
    ) -> None:
        await self._client.patch(
            kind, name, patch, namespace=namespace, patch_type=patch_type, field_manager=MANAGER
        )


def _object(manifest: Manifest) -> GenericNamespacedResource:
    """Return the manifest as an object that lightkube knows the kind of."""
    made: GenericNamespacedResource = KINDS[manifest["kind"]].from_dict(manifest)
    return made


def reason_of(error: Exception) -> str:
    """Return in one line why a call has failed. The API server's texts have no secrets."""
    if isinstance(error, ApiError):
        return str(error.status.message or error.status.reason or error.status.code)
    if isinstance(error, httpx2.HTTPStatusError):
        return f"the API server answers with status {error.response.status_code}"
    if isinstance(error, Unreachable):
        return f"the API server does not answer ({type(error).__name__})"
    return str(error) or type(error).__name__
