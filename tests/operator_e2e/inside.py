"""The surroundings of the cluster: namespaces that `__main__` has made, and files in memory."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.operator_e2e.addresses import (
    API_SERVER,
    NAME_SERVER,
    NAMES_SERVICE,
    SERVICES,
)
from tests.operator_e2e.programs import program

INSIDE = "MEGAPHONE_OPERATOR_E2E"
"""A variable: it is set within the namespaces, to the name of the cluster."""
IS_INSIDE = INSIDE in os.environ
CLUSTER = os.environ.get(INSIDE, "")
FOLDER = Path("/run/cluster")


def prepare(hosts: Sequence[str]) -> None:
    """Give this network namespace its addresses, and this mount namespace its files.

    `hosts` are the addresses of nodes.
    """
    run("mount", "-t", "tmpfs", "tmpfs", "/run")
    FOLDER.mkdir()
    ip = str(program("ip"))
    run(ip, "link", "set", "lo", "up")
    for address in (API_SERVER, NAME_SERVER, *hosts):
        run(ip, "address", "add", f"{address}/32", "dev", "lo")
    # Without a route a packet to a service would not get as far as kube-proxy.
    run(ip, "route", "add", SERVICES, "dev", "lo", "src", API_SERVER)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    resolver = FOLDER / "resolv.conf"
    resolver.write_text(f"nameserver {NAMES_SERVICE}\noptions timeout:2\n")
    run("mount", "--bind", str(resolver), str(Path("/etc/resolv.conf").resolve()))


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
