"""What all objects of a cluster share: metadata, services, budgets."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from megaphone_operator.plan.names import CLUSTER, GRPC_PORT, HTTP_PORT, SERVICE_OF, Names
from megaphone_operator.plan.resource import API_VERSION, KIND, Megaphone

Manifest = dict[str, Any]
"""An object as it is applied."""

API_VERSIONS = {
    "ConfigMap": "v1",
    "Deployment": "apps/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
    "Secret": "v1",
    "Service": "v1",
}

NO_PRIVILEGES: Manifest = {
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}
HTTP: Manifest = {"name": "http", "port": HTTP_PORT}
GRPC: Manifest = {"name": "grpc", "port": GRPC_PORT, "appProtocol": "kubernetes.io/h2c"}
PORTS: list[Manifest] = [HTTP, GRPC]
"""What clients call."""
TMP = "/tmp"  # noqa: S108 - the container has it for itself
CERTIFICATE_FOLDER = "/etc/megaphone-tls"
CERTIFICATE_FILE = f"{CERTIFICATE_FOLDER}/tls.crt"
KEY_FILE = f"{CERTIFICATE_FOLDER}/tls.key"


class Surroundings(NamedTuple):
    """What the operator knows of the Kubernetes cluster that it runs in."""

    domain: str
    """The DNS domain of services, such as cluster.local."""
    resolver: str
    """The address of the name server, for nginx."""
    namespace: str
    """The namespace of the operator."""
    nginx: Mapping[str, str]
    """The text of each file of `deploy/nginx`, by its name."""


def manifest(
    resource: Megaphone, kind: str, name: str, labels: Mapping[str, str], **rest: Any
) -> Manifest:
    """Return an object that Kubernetes removes together with the resource."""
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": resource.name,
        "uid": resource.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }
    metadata = {
        "name": name,
        "namespace": resource.namespace,
        "labels": dict(labels),
        "ownerReferences": [owner],
    }
    return {"apiVersion": API_VERSIONS[kind], "kind": kind, "metadata": metadata} | rest


def service(
    resource: Megaphone,
    name: str,
    selector: Mapping[str, str],
    ports: Sequence[Manifest] = PORTS,
    **spec: Any,
) -> Manifest:
    names = Names(resource.name, resource.uid)
    labels = names.labels("service") | {SERVICE_OF: resource.name}
    spec = {"type": "ClusterIP", "selector": dict(selector), "ports": list(ports)} | spec
    return manifest(resource, "Service", name, labels, spec=spec)


def deployment(
    resource: Megaphone, name: str, component: str, replicas: int, selector: Mapping[str, str],
    template: Manifest, **spec: Any,
) -> Manifest:  # fmt: skip
    """Return a Deployment that starts a new pod before it stops an old one."""
    labels = Names(resource.name, resource.uid).labels(component) | {CLUSTER: resource.name}
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    spec = {
        "replicas": replicas,
        "selector": {"matchLabels": dict(selector)},
        "strategy": strategy,
        "template": template,
    } | spec
    return manifest(resource, "Deployment", name, labels, spec=spec)


def budget(resource: Megaphone, name: str, component: str, selector: Mapping[str, str]) -> Manifest:
    labels = Names(resource.name, resource.uid).labels(component)
    spec = {
        "maxUnavailable": resource.spec.disruption_budget.max_unavailable,
        "selector": {"matchLabels": dict(selector)},
    }
    return manifest(resource, "PodDisruptionBudget", name, labels, spec=spec)


def pod_template(
    resource: Megaphone, labels: Mapping[str, str], annotations: Mapping[str, str], spec: Manifest
) -> Manifest:
    """Return the template of a pod, with what the user adds to each pod.

    What the user says takes the place of ours, except labels, because Deployments and services
    find their pods by them.
    """
    user = resource.spec.pod_template
    added: Manifest = {
        "nodeSelector": user.node_selector,
        "tolerations": user.tolerations,
        "affinity": user.affinity,
        "imagePullSecrets": user.image_pull_secrets,
        "priorityClassName": user.priority_class_name,
    }
    ours: Manifest = {"automountServiceAccountToken": False, "enableServiceLinks": False}
    return {
        "metadata": {
            "labels": user.labels | dict(labels),
            "annotations": dict(annotations) | user.annotations,
        },
        "spec": ours | spec | {name: value for name, value in added.items() if value is not None},
    }


def pod_security(user_id: int) -> Manifest:
    return {
        "runAsNonRoot": True,
        "runAsUser": user_id,
        "runAsGroup": user_id,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def spread(selector: Mapping[str, str]) -> list[Manifest]:
    """Return the rule that puts pods on different machines as far as there are some."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": dict(selector)},
        }
    ]


def checksum(value: Any) -> str:
    """Return a short text that is different for different values of JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def by_name(*lists: Sequence[Manifest]) -> list[Manifest]:
    """Join lists of things with names. Of two with one name the earlier one stays."""
    joined: dict[str, Manifest] = {}
    for one in (one for some in lists for one in some):
        joined.setdefault(one["name"], one)
    return list(joined.values())


def get_probe(path: str, port: str, period_s: int, **rest: Any) -> Manifest:
    return {"httpGet": {"path": path, "port": port}, "periodSeconds": period_s} | rest


def certificate_volume(secret_name: str) -> Manifest:
    return {"name": "certificate", "secret": {"secretName": secret_name}}


CERTIFICATE_MOUNT: Manifest = {
    "name": "certificate",
    "mountPath": CERTIFICATE_FOLDER,
    "readOnly": True,
}
