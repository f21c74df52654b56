"""One cluster of nodes that the operator runs: a resource `Megaphone`, as its user sees it."""

import json
from dataclasses import dataclass
from typing import Any

from tests.operator_e2e.addresses import DOMAIN
from tests.operator_e2e.api import Api, Object, name_of, path_of
from tests.operator_e2e.cluster import until
from tests.operator_e2e.kubectl import Kubectl

WITHIN_S = 120.0
OLD_IMAGE, NEW_IMAGE = "megaphone:1", "megaphone:2"


def manifest(name: str, **spec: object) -> Object:
    usual = {"image": OLD_IMAGE, "replicas": 2}
    return {
        "apiVersion": "d71.dev/v1",
        "kind": "Megaphone",
        "metadata": {"name": name},
        "spec": usual | spec,
    }


@dataclass(frozen=True, slots=True)
class Demo:
    """A resource of a name in a namespace."""

    api: Api
    kubectl: Kubectl
    namespace: str
    name: str = "demo"

    @property
    def host(self) -> str:
        return self.host_of(f"svc-{self.name}")

    @property
    def url(self) -> str:
        return f"http://{self.host}:3000"

    @property
    def https_url(self) -> str:
        return f"https://{self.host}:3000"

    @property
    def grpc_target(self) -> str:
        return f"{self.host}:3001"

    def host_of(self, service: str) -> str:
        return f"{service}.{self.namespace}.svc.{DOMAIN}"

    # -- What its user does

    def apply(self, **spec: object) -> None:
        text = json.dumps(manifest(self.name, **spec))
        self.call("apply", "--filename=-", text=text)

    def change(self, **spec: object) -> None:
        patch = json.dumps({"spec": spec})
        self.call("patch", "megaphone", self.name, "--type=merge", f"--patch={patch}")

    def scale(self, replicas: int) -> None:
        self.call("scale", "megaphone", self.name, f"--replicas={replicas}")

    def call(self, *arguments: str, text: str = "") -> str:
        """Call kubectl in the namespace."""
        return self.kubectl(f"--namespace={self.namespace}", *arguments, text=text)

    # -- What its user sees

    async def resource(self) -> Object:
        return await self.api.get(path_of("megaphones", self.namespace, self.name))

    async def nodes(self) -> list[Object]:
        """Return the pods of the nodes that do not stop."""
        wanted = f"app.kubernetes.io/component=node,megaphone-cluster={self.name}"
        pods = await self.api.items(path_of("pods", self.namespace), labelSelector=wanted)
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    async def settled(self, within_s: float = WITHIN_S) -> None:
        """Wait until the cluster is as its spec says, and until no former pod is left.

        Raises: TimeoutError.
        """

        async def is_settled() -> bool:
            resource = await self.resource()
            pods = await self.api.items(path_of("pods", self.namespace))
            stopping = [name_of(pod) for pod in pods if "deletionTimestamp" in pod["metadata"]]
            return is_idle(resource) and not stopping

        await until(is_settled, within_s)

    async def condition(self, kind: str) -> Object:
        return condition_of(await self.resource(), kind)


def is_idle(resource: Object) -> bool:
    """Return whether the operator has seen the spec, and every node is as it says."""
    status: dict[str, Any] = resource.get("status", {})
    wanted = resource["spec"]["replicas"]
    return (
        status.get("observedGeneration") == resource["metadata"]["generation"]
        and status["readyReplicas"] == status["updatedReplicas"] == status["replicas"] == wanted
        and condition_of(resource, "Available").get("status") == "True"
        and condition_of(resource, "Progressing").get("status") == "False"
    )


def condition_of(resource: Object, kind: str) -> Object:
    conditions = resource.get("status", {}).get("conditions", ())
    return next((one for one in conditions if one["type"] == kind), {})
