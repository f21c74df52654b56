"""The resource `Megaphone` as its user wrote it, in types."""

from collections.abc import Mapping
from typing import Any

import msgspec

GROUP = "d71.dev"
VERSION = "v1"
KIND = "Megaphone"
API_VERSION = f"{GROUP}/{VERSION}"
FORMER_FINALIZER = "megaphone.d71.dev"
"""The finalizer of the former operator. Without that operator it keeps resources for ever."""

Quantities = dict[str, str | int | None]


class Resources(msgspec.Struct, frozen=True):
    """What a container asks for and may use. The former resource allows null everywhere."""

    limits: Quantities | None = None
    requests: Quantities | None = None

    def manifest(self) -> dict[str, Any]:
        """Return the `resources` of a container, without what is null."""
        parts = {"limits": self.limits, "requests": self.requests}
        return {
            name: kept
            for name, quantities in parts.items()
            if (kept := {one: q for one, q in (quantities or {}).items() if q is not None})
        }


class Proxy(msgspec.Struct, frozen=True):
    enabled: bool | None = None
    replicas: int = 2
    image: str = "nginx:stable"
    resources: Resources | None = None


class SecretKey(msgspec.Struct, frozen=True):
    name: str
    key: str = "url"


class Redis(msgspec.Struct, frozen=True, rename="camel"):
    url_secret: SecretKey


class Store(msgspec.Struct, frozen=True):
    redis: Redis


class Tls(msgspec.Struct, frozen=True, rename="camel"):
    secret_name: str


class PodTemplate(msgspec.Struct, frozen=True, rename="camel"):
    """What the user adds to pods, as Kubernetes has it."""

    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    node_selector: dict[str, str] | None = None
    tolerations: list[dict[str, Any]] | None = None
    affinity: dict[str, Any] | None = None
    topology_spread_constraints: list[dict[str, Any]] | None = None
    image_pull_secrets: list[dict[str, Any]] | None = None
    priority_class_name: str | None = None
    env: list[dict[str, Any]] = []
    volumes: list[dict[str, Any]] = []
    volume_mounts: list[dict[str, Any]] = []


class DisruptionBudget(msgspec.Struct, frozen=True, rename="camel"):
    max_unavailable: int = 1


class NetworkPolicy(msgspec.Struct, frozen=True):
    enabled: bool = False
    allow: list[dict[str, Any]] = []
    """Further peers, as in a NetworkPolicy: monitoring, or without proxies the clients."""


class Legacy(msgspec.Struct, frozen=True, rename="camel"):
    deadline_seconds: int | None = None


class Spec(msgspec.Struct, frozen=True, rename="camel"):
    image: str
    replicas: int
    virtual_agents_per_node: int = 1
    resources: Resources | None = None
    settings: dict[str, str] = {}
    drain_timeout_seconds: int = 30
    min_ready_seconds: int = 10
    agent_services: bool = True
    node_secret_name: str | None = None
    tls: Tls | None = None
    proxy: Proxy = Proxy()
    store: Store | None = None
    pod_template: PodTemplate = PodTemplate()
    disruption_budget: DisruptionBudget = DisruptionBudget()
    network_policy: NetworkPolicy = NetworkPolicy()
    legacy: Legacy = Legacy()
    paused: bool = False

    @property
    def has_proxies(self) -> bool:
        """Whether calls reach the nodes through proxies that the operator makes."""
        if self.proxy.enabled is None:
            return self.store is None
        return self.proxy.enabled

    @property
    def has_gate(self) -> bool:
        """Whether a node is ready only after the operator has made the services of its agents.

        Nodes that share a store have the same agents, so a new node brings none.
        """
        return self.agent_services and self.store is None


class Megaphone(msgspec.Struct, frozen=True):
    """A resource: what its user wants, and what the operator said of it last."""

    name: str
    namespace: str
    uid: str
    generation: int
    spec: Spec
    status: Mapping[str, Any] = {}
    finalizers: tuple[str, ...] = ()
    is_deleted: bool = False
    """Whether somebody has deleted it. Kubernetes then removes all that it owns."""


class BadResource(ValueError):
    """The resource is not what its schema says. The text names the field."""


def parse_resource(body: Mapping[str, Any]) -> Megaphone:
    """Read a resource as the API server has it. Raises BadResource."""
    metadata = body["metadata"]
    try:
        spec = msgspec.convert(_without_null(body.get("spec") or {}), Spec)
    except msgspec.ValidationError as error:
        raise BadResource(f"spec is invalid: {error}") from error
    return Megaphone(
        name=metadata["name"],
        namespace=metadata["namespace"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        spec=spec,
        status=body.get("status") or {},
        finalizers=tuple(metadata.get("finalizers") or ()),
        is_deleted=metadata.get("deletionTimestamp") is not None,
    )


def _without_null(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if value is not None}
