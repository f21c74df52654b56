"""The network of a pod: a namespace with one address, and one link to the rest of the cluster.

Every packet between pods is routed, so that kube-proxy sees it.
"""

import asyncio
from pathlib import Path

from tests.operator_e2e.addresses import GATEWAY
from tests.operator_e2e.programs import program

NAMESPACES = Path("/run/netns")


async def run(*command: str, text: str = "") -> None:
    """Run a command to its end. Raises: OSError, if it fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, error = await process.communicate(text.encode())
    if process.returncode:
        raise OSError(f"{' '.join(command)}: {error.decode().strip()}")


async def ip(*arguments: str, text: str = "") -> None:
    await run(str(program("ip")), *arguments, text=text)


async def make(name: str, address: str) -> None:
    """Make a namespace with an address. `name` has at most 15 characters, as a link has."""
    await ip("netns", "add", name)
    outside = [
        f"link add {name} type veth peer name eth0 netns {name}",
        f"addr add {GATEWAY}/32 dev {name}",
        f"link set {name} up",
        f"route add {address}/32 dev {name}",
    ]
    inside = [
        "link set lo up",
        f"addr add {address}/32 dev eth0",
        "link set eth0 up",
        f"route add {GATEWAY} dev eth0",
        f"route add default via {GATEWAY} src {address}",
    ]
    await ip("-batch", "-", text="\n".join(outside))
    await ip("-netns", name, "-batch", "-", text="\n".join(inside))


async def remove(name: str) -> None:
    """Remove a namespace, and with it the link to it."""
    await ip("link", "delete", name)
    await ip("netns", "delete", name)
