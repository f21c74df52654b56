"""Who can reach a node, and the warnings that an operator gets about it at the start."""

import logging
from dataclasses import replace
from ipaddress import ip_address

from megaphone import __version__
from megaphone.build import build_kind
from megaphone.model import Endpoint
from megaphone.settings import Nodes, Settings

LOOPBACK_OF_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Hosts that stand for every address of this machine, and the address that it reaches itself by."""


def is_loopback(endpoint: Endpoint) -> bool:
    """Return whether only processes of this machine can reach an endpoint.

    The endpoint decides this, and not the address that a connection comes from: behind a sidecar
    every connection comes from the machine itself. Names are not resolved, so every name except
    `localhost` counts as reachable by others.
    """
    try:
        return ip_address(endpoint.host).is_loopback
    except ValueError:
        return endpoint.host.lower() == "localhost"


def reachable(endpoint: Endpoint) -> Endpoint:
    """Return where a process of this machine reaches an endpoint."""
    return replace(endpoint, host=LOOPBACK_OF_ANY.get(endpoint.host, endpoint.host))


def accepted_sources(settings: Settings, nodes_port: int | None = None) -> str:
    """Return the words in which the process log says who may replicate agents to this node. The
    port is that of `nodes.address`."""
    if settings.nodes_endpoint is not None:
        endpoint = settings.nodes_endpoint
        if nodes_port is not None:
            endpoint = endpoint.with_port(nodes_port)
        return f"nodes with a certificate on {endpoint}"
    if settings.nodes.open:
        return "everybody who can reach it"
    if settings.nodes.secret is not None:
        return "nodes that have the same secret"
    if is_loopback(settings.grpc_endpoint):
        return "processes of this machine"
    return "nobody: `nodes.secret` is not set"


def log_start(
    log: logging.Logger,
    settings: Settings,
    http_port: int,
    grpc_port: int,
    ops_port: int | None,
    more: str = "",
    *,
    nodes_port: int | None = None,
) -> None:
    """Log where a broker serves, and the warnings about it."""
    if settings.ops_endpoint is not None and ops_port is not None:
        more = f"; operators ask on {settings.ops_endpoint.with_port(ops_port)}{more}"
    log.info(
        "megaphone %s (%s) serves HTTP on %s and gRPC on %s; it accepts agents from %s%s",
        __version__,
        build_kind(),
        settings.http_endpoint.with_port(http_port),
        settings.grpc_endpoint.with_port(grpc_port),
        accepted_sources(settings, nodes_port),
        more,
    )
    for warning in warnings(settings):
        log.warning("%s", warning)


def warnings(settings: Settings) -> list[str]:
    """Return one line for each risk of a node that other machines can reach."""
    endpoints = {"HTTP": settings.http_endpoint, "gRPC": settings.grpc_endpoint}
    public = [face for face, endpoint in endpoints.items() if not is_loopback(endpoint)]
    lines = []
    if public and not settings.auth.require and settings.tls.client_ca is None:
        lines.append(
            f"other machines can reach {' and '.join(public)}, where everybody may create channels:"
            " set `auth.require`, or let only your services and a proxy get there"
        )
    if settings.nodes.open and settings.nodes.address is None and "gRPC" in public:
        lines.append(
            "`nodes.open` is set: everybody who can reach gRPC can replicate agents to this node"
            " and so take them over; set `nodes.secret` instead"
        )
    if settings.drain_target is not None and settings.nodes == Nodes() and "gRPC" in public:
        lines.append(
            "`drain_target` is set, but not `nodes.secret`: a target that other machines can reach"
            " will refuse the agents of this node when it stops"
        )
    return lines
