"""Where a node listens, and what it says of that when it starts."""

from ipaddress import ip_address

from megaphone.settings import Nodes, Settings


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Return the host, without brackets, and the port."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def is_loopback(endpoint: str) -> bool:
    """Tell whether only processes of this machine can reach an endpoint.

    Judged by where a node listens, not by whom a connection comes from: behind a sidecar all come
    from the machine itself. A name is not looked up: but for `localhost` it may be any address.
    """
    host, _ = split_endpoint(endpoint)
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def with_port(endpoint: str, port: int) -> str:
    """Return where a node really listens, which for port 0 is any free one."""
    return f"{endpoint.rpartition(':')[0]}:{port}"


def reachable(endpoint: str) -> str:
    """Return where a process of this machine reaches an endpoint."""
    host, port = split_endpoint(endpoint)
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
    return f"{everywhere[host]}:{port}" if host in everywhere else endpoint


def who_may_feed(settings: Settings) -> str:
    """Say which other nodes may feed this one, for its log."""
    if settings.nodes.open:
        return "everybody who reaches it"
    if settings.nodes.secret is not None:
        return "nodes that have its secret"
    if is_loopback(settings.grpc_address):
        return "processes of this machine"
    return "nobody: `nodes.secret` is not set"


def warnings(settings: Settings) -> list[str]:
    """Return what an operator should know of a node that others can reach, one line each."""
    endpoints = {"HTTP": settings.address, "gRPC": settings.grpc_address}
    public = [face for face, endpoint in endpoints.items() if not is_loopback(endpoint)]
    lines = []
    if public:
        lines.append(
            f"other machines can reach {' and '.join(public)}, where everybody may create channels:"
            " let only your services and a proxy get there"
        )
    if settings.nodes.open and "gRPC" in public:
        lines.append(
            "`nodes.open` is set: everybody who reaches gRPC can feed this node, and so take over"
            " agents; set `nodes.secret` instead"
        )
    if settings.drain_target is not None and settings.nodes == Nodes() and "gRPC" in public:
        lines.append(
            "`drain_target` is set, but not `nodes.secret`: a target that other machines can reach"
            " will refuse the agents of this node when it stops"
        )
    return lines
