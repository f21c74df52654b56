"""The names and labels of what the operator makes. Those of `svc-` are the contract with users."""

import re

MANAGER = "megaphone-operator"
"""The field manager of all that the operator applies."""
GATE = "d71.dev/agents-routed"
"""The readiness gate of a node: its agents have services."""
TEMPLATE = "d71.dev/template"
"""The annotation of a node with the checksum of its template."""
HTTP_PORT = 3000
GRPC_PORT = 3001
OPS_PORT = 3002
"""Where nodes answer probes, the operator and proxies: by plain HTTP, and without tokens."""

CLUSTER = "megaphone-cluster"
"""The label of nodes and Deployments, with the name of the cluster. The former operator's, too."""
TAKES_CHANNELS = "accepts-new-channels"
"""A label of the former operator. It is always ON here, for services that users have made."""
SERVICE_OF = "svc-megaphone-cluster"
"""The label of services. The former operator's, too."""
PROXY_OF = "megaphone-proxy"
"""The label of proxies, with the name of the cluster."""

LABEL_LENGTH = 63
"""How long a name of a service may be."""
AGENT = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
"""Agents that can have services. `svc-NAME` serves the others."""


class Names:
    """The names of one cluster's objects."""

    def __init__(self, cluster: str, uid: str) -> None:
        self.cluster = cluster
        self.nodes = f"mgp-{cluster}"
        """The Deployment of the nodes, their budget and their network policy."""
        self.all_nodes = f"mgp-{cluster}-nodes"
        """The service with the addresses of all nodes, ready or not."""
        self.takers = f"mgp-{cluster}-takers"
        """The service with the addresses of the nodes that take new channels."""
        self.proxy = f"mgp-{cluster}-proxy"
        """The Deployment of the proxies, their configuration and their budget."""
        self.clients = f"svc-{cluster}"
        """The service that clients call."""
        self.secret = f"mgp-{cluster}-{uid[:8]}"
        """The Secret that the operator makes. A part of the uid is in the name, because a cluster
        that is made anew must not use a Secret that goes away with its former owner."""

    def agent_services(self, agent: str) -> tuple[str, str] | None:
        """Return the names of an agent's services, for reads and for writes.

        Returns: None if such names cannot be.
        """
        read, write = f"svc-{self.cluster}-{agent}-read", f"svc-{self.cluster}-{agent}-write"
        fits = len(write) <= LABEL_LENGTH and AGENT.fullmatch(agent)
        return (read, write) if fits else None

    def agent_of(self, service: str) -> str | None:
        """Return the agent whose service has this name."""
        prefix = f"svc-{self.cluster}-"
        name, _, kind = service.rpartition("-")
        if kind in ("read", "write") and name.startswith(prefix) and len(name) > len(prefix):
            return name[len(prefix) :]
        return None

    def labels(self, component: str) -> dict[str, str]:
        """Return the labels that Kubernetes recommends, for objects of a component."""
        return {
            "app.kubernetes.io/name": "megaphone",
            "app.kubernetes.io/instance": self.cluster,
            "app.kubernetes.io/component": component,
            "app.kubernetes.io/managed-by": MANAGER,
        }

    @property
    def node_selector(self) -> dict[str, str]:
        """The labels by which the nodes are found. They cannot change in a Deployment.

        Pods of the former operator lack the second, so no Deployment or budget counts them.
        """
        return {CLUSTER: self.cluster, "app.kubernetes.io/managed-by": MANAGER}

    @property
    def proxy_selector(self) -> dict[str, str]:
        return {PROXY_OF: self.cluster}
