"""Ports for servers that cannot choose one themselves."""

import random
import socket
from contextlib import ExitStack, suppress

RANGE = range(15_000, 30_000)
"""Below the ports that the system gives to clients. Otherwise a connection of another test may get
the port before the server does."""


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface on which no process listens now."""
    ports: list[int] = []
    with ExitStack() as taken:
        while len(ports) < count:
            port = random.choice(RANGE)
            with suppress(OSError):
                one = taken.enter_context(socket.socket())
                one.bind(("127.0.0.1", port))
                ports.append(port)
    return ports


def free_port() -> int:
    [port] = free_ports(1)
    return port
