"""A Kubernetes cluster on this machine: a control plane, names, and nodes as processes."""

import asyncio
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.operator_e2e.addresses import NAME_SERVER, NAMES_SERVICE, node_address
from tests.operator_e2e.api import AWAY, Api, ApiError, Object, name_of, path_of
from tests.operator_e2e.inside import prepare
from tests.operator_e2e.plane import ControlPlane

NODES = 2
STARTS_WITHIN_S = 90.0
LOOKS_EVERY_S = 0.1


class Cluster:
    """Runs a cluster, and breaks it as a test wants."""

    def __init__(self, folder: Path) -> None:
        hosts = [node_address(number + 1) for number in range(2 * NODES)]
        prepare(hosts)
        self.folder = folder
        self.plane = ControlPlane(folder / "plane", node_name(1), hosts)
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._names: subprocess.Popen[bytes] | None = None
        self._started = 0
        self.plane.access.save(folder / "access.json")
        for source, name in (
            (self.plane.kubelets.certificate, "kubelet.pem"),
            (self.plane.kubelets.key, "kubelet-key.pem"),
        ):
            shutil.copy(source, folder / name)

    def start(self) -> None:
        """Start everything, and wait until pods can run."""
        self.plane.start()
        asyncio.run(self._prepare())
        self.plane.start_controllers()
        self._names = self._python("names", str(self.folder / "access.json"))
        for _ in range(NODES):
            self.start_node()
        asyncio.run(self.wait_for_nodes())

    def start_node(self) -> str:
        """Start one more node. Returns: its name."""
        self._started += 1
        name = node_name(self._started)
        # A process namespace of its own: what a node runs ends with the node.
        apart = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
        arguments = (name, str(self._started), str(self.folder))
        self._nodes[name] = self._python("kubelet", *arguments, apart=apart)
        return name

    def kill_node(self, name: str) -> None:
        """End a node, and everything on it, at once."""
        self._end_node(name)
        self.plane.move_proxy(self.nodes[0])

    def _end_node(self, name: str) -> None:
        process = self._nodes.pop(name)
        process.kill()
        process.wait()

    @property
    def nodes(self) -> list[str]:
        return list(self._nodes)

    @asynccontextmanager
    async def api(self) -> AsyncIterator[Api]:
        async with Api(self.plane.access) as api:
            yield api

    def stop(self) -> None:
        for name in self.nodes:
            self._end_node(name)
        if self._names is not None:
            self._names.kill()
            self._names.wait()
        self.plane.stop()

    def logs(self) -> list[Path]:
        """Return the logs of the cluster, and of each container that has run."""
        return sorted(self.folder.glob("**/*.log"))

    # -- The start

    async def _prepare(self) -> None:
        """Wait for the API server, and give the name server its service."""
        async with self.api() as api:
            await until(lambda: answers(api), STARTS_WITHIN_S)
            for name, body in name_service().items():
                await api.create(path_of(name, "kube-system"), body)

    async def wait_for_nodes(self) -> None:
        """Wait until the scheduler may use all nodes."""
        async with self.api() as api:

            async def are_ready() -> bool:
                nodes = await api.items(path_of("nodes"))
                return len(nodes) == NODES and all(is_usable(one) for one in nodes)

            await until(are_ready, STARTS_WITHIN_S)

    def _python(
        self, module: str, *arguments: str, apart: tuple[str, ...] = ()
    ) -> "subprocess.Popen[bytes]":
        command = [*apart, sys.executable, "-m", f"tests.operator_e2e.{module}", *arguments]
        with (self.folder / f"{module}-{self._started}.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def node_name(number: int) -> str:
    return f"node-{number}"


def is_usable(node: Object) -> bool:
    """Return whether the scheduler may use a node."""
    conditions = node["status"].get("conditions", ())
    is_ready = any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
    return is_ready and not node["spec"].get("taints")


def name_service() -> dict[str, Object]:
    """Return the service of the name server and its endpoints, by resource."""
    labels = {"kubernetes.io/service-name": "kube-dns"}
    return {
        "services": {
            "metadata": {"name": "kube-dns"},
            "spec": {
                "clusterIP": NAMES_SERVICE,
                "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}],
            },
        },
        "endpointslices": {
            "metadata": {"name": "kube-dns", "labels": labels},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [NAME_SERVER], "conditions": {"ready": True}}],
            "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}],
        },
    }


async def answers(api: Api) -> bool:
    """Return whether the API server is ready, and has made the default namespace."""
    if await api.text("/readyz") != "ok":
        return False
    names = [name_of(one) for one in await api.items(path_of("namespaces"))]
    return {"default", "kube-system"} <= set(names)


async def until(condition: Callable[[], Awaitable[bool]], within_s: float) -> None:
    """Wait for a condition; an API server that is away counts as no. Raises: TimeoutError."""
    async with asyncio.timeout(within_s):
        while True:
            with suppress(ApiError, *AWAY):
                if await condition():
                    return
            await asyncio.sleep(LOOKS_EVERY_S)
