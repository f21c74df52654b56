"""The command `megaphone-operator`."""

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from megaphone_operator import __version__
from megaphone_operator.app import CannotStart, Options, run
from megaphone_operator.election import Lost
from megaphone_operator.logs import set_up_logs

log = logging.getLogger(__name__)

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
RESOLV_CONF = Path("/etc/resolv.conf")
DOMAIN = "cluster.local"
SERVICES = ".svc."
"""What stands before the domain in the search path of a pod: NAMESPACE.svc.DOMAIN."""
LOST_CODE = 3


def main() -> None:
    """Run the operator.

    Exits with 0 after SIGTERM, with 3 when another copy leads, and with 1 after a failure.
    """
    arguments = parser().parse_args()
    set_up_logs(arguments.log_level)
    if arguments.kubeconfig:
        os.environ["KUBECONFIG"] = arguments.kubeconfig
    host, _, port = arguments.address.rpartition(":")
    options = Options(
        namespace=arguments.namespace,
        lease_namespace=arguments.lease_namespace,
        host=host.strip("[]"),
        port=int(port),
        domain=arguments.cluster_domain,
        resolver=arguments.resolver,
    )
    try:
        asyncio.run(run(options))
    except Lost:
        sys.exit(LOST_CODE)
    except (CannotStart, OSError) as error:
        log.error("%s", error)
        sys.exit(1)
    except Exception:
        log.exception("the operator has failed")
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    servers, domain = read_resolv_conf(RESOLV_CONF)
    made = argparse.ArgumentParser(
        prog="megaphone-operator",
        description="Runs clusters of the Megaphone broker in Kubernetes: one for each resource "
        "megaphones.d71.dev. It signs in by its service account, or by a kubeconfig.",
    )
    made.add_argument("--version", action="version", version=__version__)
    made.add_argument(
        "--kubeconfig", metavar="FILE", type=existing, help="the file to sign in with"
    )
    made.add_argument(
        "--namespace", metavar="NAME", help="work in this namespace only (default: in all)"
    )
    made.add_argument(
        "--lease-namespace",
        metavar="NAME",
        default=own_namespace(),
        help="where the Lease is by which copies elect a leader (default: %(default)s)",
    )
    made.add_argument(
        "--address",
        metavar="HOST:PORT",
        type=address,
        default="0.0.0.0:8080",
        help="where probes and metrics are (default: %(default)s)",
    )
    made.add_argument(
        "--cluster-domain",
        metavar="DOMAIN",
        default=domain or DOMAIN,
        help="the DNS domain of services (default: that of this pod, here %(default)s)",
    )
    made.add_argument(
        "--resolver",
        metavar="IP",
        default=servers[0] if servers else None,
        required=not servers,
        help="the name server that proxies ask (default: that of this pod, here %(default)s)",
    )
    made.add_argument("--log-level", choices=["debug", "info", "warning", "error"], default="info")
    return made


def address(text: str) -> str:
    """Check host:port."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, such as 0.0.0.0:8080")
    return text


def existing(text: str) -> str:
    """Check that there is such a file."""
    if not Path(text).expanduser().is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return str(Path(text).expanduser())


def own_namespace() -> str:
    """Return the namespace of this pod, or `default` outside of a pod."""
    try:
        return NAMESPACE_FILE.read_text(encoding="utf-8").strip() or "default"
    except OSError:
        return "default"


def read_resolv_conf(path: Path) -> tuple[list[str], str | None]:
    """Return the name servers, and the DNS domain of the cluster if this is a pod in one."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return [], None
    servers = [words[1] for words in lines if words[:1] == ["nameserver"] and len(words) > 1]
    searched = [word for words in lines if words[:1] == ["search"] for word in words[1:]]
    domains = [word.partition(SERVICES)[2] for word in searched if SERVICES in word]
    return servers, domains[0] if domains else None
