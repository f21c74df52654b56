"""The nodes: their Deployment, the services with their addresses, their budget and their policy.

What a node needs depends on where its channels live. `NodeKind` has the two answers.
"""

import hashlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from megaphone_operator.plan.names import (
    GATE,
    GRPC_PORT,
    HTTP_PORT,
    OPS_PORT,
    TAKES_CHANNELS,
    TEMPLATE,
    Names,
)
from megaphone_operator.plan.objects import (
    CERTIFICATE_FILE,
    CERTIFICATE_MOUNT,
    KEY_FILE,
    NO_PRIVILEGES,
    PORTS,
    TMP,
    Manifest,
    Surroundings,
    budget,
    by_name,
    certificate_volume,
    checksum,
    deployment,
    get_probe,
    manifest,
    pod_security,
    pod_template,
    service,
    spread,
)
from megaphone_operator.plan.resource import Megaphone

USER = 10001
"""The user of the broker's image."""
STOP_MARGIN_S = 30
"""How long a node may take to stop after its drain."""
OPS: Manifest = {"name": "ops", "port": OPS_PORT}
TARGET_GONE_S = 5
"""How long the name of all nodes must be gone before a node that stops waits for no other node. It
is gone when the resource is deleted."""
START_S = 300
"""How long a node may take to start. With a twentieth of a core it needs most of a minute."""


def _variable(setting: str, value: str) -> Manifest:
    return {"name": f"megaphone_{setting}", "value": value}


# A node is let in only after clients can find its agents, so its agents need not wait as well.
DEFAULTS = [_variable("agent_warmup_secs", "0")]
"""Settings that differ from those of the broker, unless the user sets them."""


class NodeKind(NamedTuple):
    """What sets nodes with memory apart from nodes that share a store."""

    env: list[Manifest]
    gates: list[Manifest]
    lifecycle: Manifest


def node_kind(resource: Megaphone) -> NodeKind:
    store = resource.spec.store
    if store is None:
        gates = [{"conditionType": GATE}] if resource.spec.has_gate else []
        return NodeKind(_memory_env(resource), gates, {})
    secret = {"name": store.redis.url_secret.name, "key": store.redis.url_secret.key}
    env = [{"name": "megaphone_store", "valueFrom": {"secretKeyRef": secret}}]
    agents = [_variable(f"agent.virtual.{name}", "MASTER") for name in shared_agents(resource)]
    # Until the services send no more calls to a pod that stops.
    wait: Manifest = {"preStop": {"exec": {"command": ["sleep", "3"]}}}
    return NodeKind(env + agents, [], {"lifecycle": wait})


def _memory_env(resource: Megaphone) -> list[Manifest]:
    names = Names(resource.name, resource.uid)
    secret = resource.spec.node_secret_name or names.secret
    previous = {"name": secret, "key": "previous_secret", "optional": True}
    return [
        _variable("agent_count", str(resource.spec.virtual_agents_per_node)),
        # All nodes; the first that accepts the agents gets them.
        _variable("drain_target", f"http://{names.all_nodes}:{GRPC_PORT}"),
        _variable("drain_target_gone_secs", str(TARGET_GONE_S)),
        {
            "name": "megaphone_nodes.secret",
            "valueFrom": {"secretKeyRef": {"name": secret, "key": "secret"}},
        },
        {"name": "megaphone_nodes.previous_secret", "valueFrom": {"secretKeyRef": previous}},
    ]


def shared_agents(resource: Megaphone) -> list[str]:
    """Return the agents that all nodes with a shared store have.

    Any node serves them, so new nodes need no new ones, and their services never change.
    """
    return [
        hashlib.sha256(f"{resource.uid}/{number}".encode()).hexdigest()[:16]
        for number in range(resource.spec.virtual_agents_per_node)
    ]


def node_objects(resource: Megaphone, surroundings: Surroundings) -> Iterator[Manifest]:
    """Yield the objects of the nodes, except the services that lead clients to them."""
    names = Names(resource.name, resource.uid)
    selector = names.node_selector
    if resource.spec.store is None:
        # A node that stops still gets calls for its channels until it has moved them.
        yield service(
            resource, names.all_nodes, selector, clusterIP="None", publishNotReadyAddresses=True
        )
        yield service(resource, names.takers, selector, clusterIP="None")
    yield budget(resource, names.nodes, "node", selector)
    if resource.spec.network_policy.enabled:
        yield _policy(resource, surroundings)
    yield node_deployment(resource)


def node_deployment(resource: Megaphone) -> Manifest:
    names, spec = Names(resource.name, resource.uid), resource.spec
    return deployment(
        resource,
        names.nodes,
        "node",
        spec.replicas,
        names.node_selector,
        _template(resource),
        minReadySeconds=spec.min_ready_seconds,
    )


def _template(resource: Megaphone) -> Manifest:
    names, spec, kind = Names(resource.name, resource.uid), resource.spec, node_kind(resource)
    user = spec.pod_template
    volumes: list[Manifest] = [{"name": "tmp", "emptyDir": {}}]
    if shows_certificate(resource) and spec.tls:
        volumes.append(certificate_volume(spec.tls.secret_name))
    pod: Manifest = {
        "terminationGracePeriodSeconds": spec.drain_timeout_seconds + STOP_MARGIN_S,
        "securityContext": pod_security(USER),
        "topologySpreadConstraints": user.topology_spread_constraints
        or spread(names.node_selector),
        "containers": [_container(resource, kind)],
        "volumes": by_name(volumes, user.volumes),
    }
    if kind.gates:
        pod["readinessGates"] = kind.gates
    labels = names.labels("node") | names.node_selector | {TAKES_CHANNELS: "ON"}
    template = pod_template(resource, labels, {}, pod)
    template["metadata"]["annotations"][TEMPLATE] = checksum(template)
    return template


def node_template_checksum(resource: Megaphone) -> str:
    """Return the checksum that nodes have which are as the resource says."""
    metadata = _template(resource)["metadata"]
    return str(metadata["annotations"][TEMPLATE])


def _container(resource: Megaphone, kind: NodeKind) -> Manifest:
    spec = resource.spec
    mounts: list[Manifest] = [{"name": "tmp", "mountPath": TMP}]
    certificate: list[Manifest] = []
    if shows_certificate(resource):
        mounts.append(CERTIFICATE_MOUNT)
        certificate = [
            _variable("tls.certificate", CERTIFICATE_FILE),
            _variable("tls.key", KEY_FILE),
        ]
    ours = [
        _variable("address", f"0.0.0.0:{HTTP_PORT}"),
        _variable("grpc_address", f"0.0.0.0:{GRPC_PORT}"),
        _variable("ops_address", f"0.0.0.0:{OPS_PORT}"),
        _variable("drain_timeout_secs", str(spec.drain_timeout_seconds)),
    ]
    settings = [_variable(name, value) for name, value in sorted(spec.settings.items())]
    container: Manifest = {
        "name": "megaphone",
        "image": spec.image,
        "ports": [{"name": one["name"], "containerPort": one["port"]} for one in (*PORTS, OPS)],
        "env": by_name(ours, kind.env, certificate, settings, spec.pod_template.env, DEFAULTS),
        "startupProbe": get_probe("/livez", "ops", 2, failureThreshold=START_S // 2),
        "readinessProbe": get_probe(_ready_path(resource), "ops", 2),
        "livenessProbe": get_probe("/livez", "ops", 10, timeoutSeconds=5),
        # So the status of the pod says why a node cannot start, such as a setting that is wrong.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": NO_PRIVILEGES,
        "volumeMounts": mounts + spec.pod_template.volume_mounts,
    }
    if spec.resources:
        container["resources"] = spec.resources.manifest()
    return container | kind.lifecycle


def _ready_path(resource: Megaphone) -> str:
    """With memory a node is ready when it takes new channels; with a store each node serves all."""
    return "/readyz/create" if resource.spec.store is None else "/readyz"


def shows_certificate(resource: Megaphone) -> bool:
    """Whether the nodes show the certificate themselves, because there are no proxies."""
    return resource.spec.tls is not None and not resource.spec.has_proxies


def _policy(resource: Megaphone, surroundings: Surroundings) -> Manifest:
    """Return the policy: only nodes, proxies, the operator and those whom the user names get in."""
    names = Names(resource.name, resource.uid)
    nodes: Manifest = {"podSelector": {"matchLabels": dict(names.node_selector)}}
    proxies: Manifest = {"podSelector": {"matchLabels": dict(names.proxy_selector)}}
    namespace = {"kubernetes.io/metadata.name": surroundings.namespace}
    operator: Manifest = {"namespaceSelector": {"matchLabels": namespace}}
    others = resource.spec.network_policy.allow
    clients = [proxies] if resource.spec.has_proxies else others
    policy = {
        "podSelector": {"matchLabels": dict(names.node_selector)},
        "policyTypes": ["Ingress"],
        "ingress": [
            _rule(HTTP_PORT, clients),
            _rule(GRPC_PORT, [nodes, *clients]),
            _rule(OPS_PORT, [proxies, operator, *others]),
        ],
    }
    return manifest(resource, "NetworkPolicy", names.nodes, names.labels("node"), spec=policy)


def _rule(port: int, peers: list[Any]) -> Manifest:
    return {"ports": [{"port": port, "protocol": "TCP"}], "from": peers}
