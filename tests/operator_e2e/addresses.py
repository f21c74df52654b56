"""The addresses of the test cluster. They exist only in a network namespace of its own."""

API_SERVER = "10.99.0.1"
API_PORT = 6443
NAME_SERVER = "10.99.0.53"
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
"""The first address of SERVICES, which the API server gives to itself."""
NAMES_SERVICE = "10.96.0.10"
PODS = "10.244.0.0/16"
GATEWAY = "169.254.1.1"
"""The next hop of every pod; each pod has a link of its own to it."""
DOMAIN = "cluster.local"


def node_address(number: int) -> str:
    return f"10.99.1.{number}"


def pod_address(node: int, number: int) -> str:
    """Return the address of the pod with a number, which may be at least 0, on a node."""
    return f"10.244.{node}.{number % 253 + 2}"
