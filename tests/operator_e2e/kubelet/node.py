"""A node: it registers itself, shows every second that it lives, and runs the pods bound to it."""

import asyncio
import itertools
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from tests.operator_e2e.addresses import node_address, pod_address
from tests.operator_e2e.api import (
    AWAY,
    STRATEGIC,
    Api,
    ApiError,
    Object,
    name_of,
    namespace_of,
    path_of,
    uid_of,
)
from tests.operator_e2e.kubelet.container import now
from tests.operator_e2e.kubelet.pod import Pod

BEATS_EVERY_S = 1.0
AGAIN_S = 0.5
PORT = 10250
ROOM = {"cpu": "64", "memory": "64Gi", "pods": "200", "ephemeral-storage": "64Gi"}
"""What the scheduler may give away. Nobody measures what pods use."""


class Node:
    """Runs pods."""

    def __init__(
        self, api: Api, session: aiohttp.ClientSession, name: str, number: int, folder: Path
    ) -> None:
        self._api = api
        self._session = session
        self._name = name
        self._number = number
        self._folder = folder
        self._address = node_address(number)
        self._count = itertools.count()
        self._pods: dict[str, Pod] = {}
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Run pods for ever."""
        await self._insist_on_registration()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat())
            group.create_task(self._follow_pods())

    def logs_of(self, namespace: str, name: str) -> Path | None:
        """Return the folder with the logs of the newest pod of a name."""
        found = [pod for pod in self._pods.values() if pod.full_name == (namespace, name)]
        return found[-1].logs if found else None

    # -- The node

    async def _insist_on_registration(self) -> None:
        node = {
            "metadata": {
                "name": self._name,
                "labels": {
                    "kubernetes.io/hostname": self._name,
                    "kubernetes.io/os": "linux",
                    "kubernetes.io/arch": "amd64",
                },
            }
        }
        while True:
            try:
                await self._api.create(path_of("nodes"), node)
            except ApiError as error:
                if error.reason == "AlreadyExists":
                    return
            except AWAY:
                pass
            else:
                return
            await asyncio.sleep(AGAIN_S)

    async def _beat(self) -> None:
        while True:
            with suppress(ApiError, *AWAY):
                await self._renew_lease()
                await self._report()
            await asyncio.sleep(BEATS_EVERY_S)

    async def _report(self) -> None:
        conditions = {"Ready": True, "MemoryPressure": False, "DiskPressure": False}
        status = {
            "capacity": ROOM,
            "allocatable": ROOM,
            "addresses": [
                {"type": "InternalIP", "address": self._address},
                {"type": "Hostname", "address": self._name},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": PORT}},
            "conditions": [
                {
                    "type": kind,
                    "status": str(verdict),
                    "reason": "KubeletReady",
                    "lastHeartbeatTime": now(),
                    "lastTransitionTime": now(),
                }
                for kind, verdict in conditions.items()
            ],
        }
        path = path_of("nodes", None, self._name, "status")
        await self._api.patch(path, {"status": status}, STRATEGIC)

    async def _renew_lease(self) -> None:
        renewed = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": self._name, "leaseDurationSeconds": 40, "renewTime": renewed}
        path = path_of("leases", "kube-node-lease")
        try:
            await self._api.patch(f"{path}/{self._name}", {"spec": spec})
        except ApiError as error:
            if error.status != 404:
                raise
            await self._api.create(path, {"metadata": {"name": self._name}, "spec": spec})

    # -- Its pods

    async def _follow_pods(self) -> None:
        own = f"spec.nodeName={self._name}"
        async for pods in self._api.follow(path_of("pods"), fieldSelector=own):
            for uid, pod in pods.items():
                if uid in self._pods:
                    self._pods[uid].update(pod)
                elif not is_over(pod):
                    self._start(pod)
            for uid in self._pods.keys() - pods.keys():
                self._pods.pop(uid).vanish()

    def _start(self, wanted: Object) -> None:
        number = next(self._count)
        uid = uid_of(wanted)
        address = pod_address(self._number, number)
        folder = self._folder / f"{namespace_of(wanted)}_{name_of(wanted)}_{uid[:8]}"
        pod = Pod(self._api, self._session, wanted, number, folder, self._address, address)
        pod.update(wanted)
        self._pods[uid] = pod
        task = asyncio.create_task(pod.run())
        self._running.add(task)
        task.add_done_callback(self._running.discard)


def is_over(pod: Object) -> bool:
    return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
