"""The drivers that the suite knows: how each is started, and which protocol its client speaks."""

import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kind:
    """A driver together with a protocol."""

    name: str
    command: tuple[str, ...]
    scheme: str
    """`http` or `grpc`: how the URLs begin that its clients open."""

    def __str__(self) -> str:
        return self.name


def python_driver(name: str) -> tuple[str, ...]:
    return sys.executable, "-W", "always", "-m", f"tests.clients.drivers.{name}"


HTTP = Kind("http", python_driver("asynchronous"), "http")
GRPC = Kind("grpc", python_driver("asynchronous"), "grpc")
SYNC = Kind("sync", python_driver("synchronous"), "http")
SYNC_GRPC = Kind("sync-grpc", python_driver("synchronous"), "grpc")

KINDS = (HTTP, GRPC, SYNC)
"""Those that pass every test. `SYNC_GRPC` joins the seeded runs only."""
