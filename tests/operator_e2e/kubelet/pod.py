"""The life of one pod on a node, from its binding to the end of its grace period."""

import asyncio
import shutil
import traceback
from contextlib import suppress
from pathlib import Path

import aiohttp

from tests.operator_e2e.api import (
    AWAY,
    STRATEGIC,
    Api,
    ApiError,
    Object,
    name_of,
    namespace_of,
    path_of,
)
from tests.operator_e2e.kubelet import network, volumes
from tests.operator_e2e.kubelet.container import Container, Place, now
from tests.operator_e2e.kubelet.environment import NotReady, environment_of
from tests.operator_e2e.kubelet.images import NoSuchImage, image_of
from tests.operator_e2e.kubelet.status import status_of

AGAIN_S = 0.5
USUAL_GRACE_S = 30


class Pod:
    """Runs one pod, and tells the API server how it is."""

    def __init__(
        self,
        api: Api,
        session: aiohttp.ClientSession,
        wanted: Object,
        number: int,
        folder: Path,
        host: str,
        address: str,
    ) -> None:
        """`number` is new on this node, and `folder` does not exist yet."""
        self._api = api
        self._session = session
        self._pod = wanted
        self._folder = folder
        self._host = host
        self._address = address
        self._network = f"pod{host.rpartition('.')[2]}-{number}"
        self._is_set_up = False
        self._changed = asyncio.Event()
        self._deleted = asyncio.Event()
        self._is_gone = False
        self._written: Object | None = None
        self._since = now()
        spec = wanted["spec"]
        self._first = [Container(one, self._changed.set) for one in spec.get("initContainers", ())]
        self._containers = [Container(one, self._changed.set) for one in spec["containers"]]

    @property
    def full_name(self) -> tuple[str, str]:
        return namespace_of(self._pod), name_of(self._pod)

    @property
    def logs(self) -> Path:
        """The folder with a log for each container."""
        return self._folder

    def update(self, pod: Object) -> None:
        """Take note of what the API server says of the pod."""
        self._pod = pod
        self._changed.set()
        if "deletionTimestamp" in pod["metadata"]:
            self._deleted.set()

    def vanish(self) -> None:
        """Take note that the API server knows the pod no more: it ends at once."""
        self._is_gone = True
        self._deleted.set()

    async def run(self) -> None:
        """Run the pod until the API server deletes it, and until nothing of it is left."""
        living = asyncio.create_task(self._live())
        living.add_done_callback(complain)
        reporting = asyncio.create_task(self._report_changes())
        try:
            await self._deleted.wait()
            await self._stop(living)
        finally:
            reporting.cancel()
        await self._clear()
        if not self._is_gone:
            await self._insist_on_deletion()

    # -- Life

    async def _live(self) -> None:
        place = await self._set_up()
        for one in self._first:
            await one.run(place, await self._environment(one), "OnFailure")
        policy = self._pod["spec"].get("restartPolicy", "Always")
        async with asyncio.TaskGroup() as group:
            for one in self._containers:
                group.create_task(one.run(place, await self._environment(one), policy))

    async def _set_up(self) -> Place:
        self._folder.mkdir(parents=True)
        await network.make(self._network, self._address)
        self._is_set_up = True
        self._changed.set()
        while True:
            with suppress(NotReady, ApiError, *AWAY):
                made = await volumes.make(self._api, self._pod, self._folder / "volumes")
                return Place(
                    self._pod, self._folder, self._network, self._address, made, self._session
                )
            await asyncio.sleep(AGAIN_S)

    async def _environment(self, container: Container) -> dict[str, str]:
        usual = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        usual["HOSTNAME"] = name_of(self._pod)
        with suppress(NoSuchImage):
            usual |= image_of(container.wanted["image"]).environment
        pod = {**self._pod, "status": {"podIP": self._address, "hostIP": self._host}}
        while True:
            try:
                return await environment_of(self._api, pod, container.wanted, usual)
            except NotReady as lacking:
                reason = {"reason": "CreateContainerConfigError", "message": str(lacking)}
                container.state.current = {"waiting": reason}
                self._changed.set()
            except (ApiError, *AWAY):
                pass
            await asyncio.sleep(AGAIN_S)

    # -- The end

    async def _stop(self, living: asyncio.Task[None]) -> None:
        grace_s = self._pod["metadata"].get("deletionGracePeriodSeconds", USUAL_GRACE_S)
        await asyncio.gather(
            *(one.end(0 if self._is_gone else grace_s) for one in self._containers)
        )
        living.cancel()
        with suppress(asyncio.CancelledError):
            await living
        for one in (*self._first, *self._containers):
            one.kill()

    async def _clear(self) -> None:
        """Remove the network and the files of the pod, except its logs."""
        if self._is_set_up:
            with suppress(OSError):
                await network.remove(self._network)
        for folder in self._folder.glob("*/"):
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _insist_on_deletion(self) -> None:
        metadata = self._pod["metadata"]
        end = {
            "gracePeriodSeconds": 0,
            "preconditions": {"uid": metadata["uid"]},
        }
        path = path_of("pods", metadata["namespace"], metadata["name"])
        while not self._is_gone:
            try:
                await self._report()
                await self._api.delete(path, end)
                return
            except ApiError as error:
                if error.status == 409:  # another pod has its name
                    return
            except AWAY:
                pass
            await asyncio.sleep(AGAIN_S)

    # -- Reports

    async def _report_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._report()
            except (ApiError, *AWAY):
                self._changed.set()
                await asyncio.sleep(AGAIN_S)

    async def _report(self) -> None:
        """Write the status, if it is another one now, or if somebody has changed what was written:
        when a node seems to be lost, a controller says of its pods that they are not ready.
        """
        known = [] if self._written is None else self._written["conditions"]
        address = self._address if self._is_set_up else None
        status = status_of(self._pod, self._first, self._containers, address, self._host, known) | {
            "startTime": self._since
        }
        if status == self._written and agrees(self._pod, status):
            return
        metadata = self._pod["metadata"]
        path = path_of("pods", metadata["namespace"], metadata["name"], "status")
        change = {"metadata": {"uid": metadata["uid"]}, "status": status}
        await self._api.patch(path, change, STRATEGIC)
        self._written = status


def agrees(pod: Object, status: Object) -> bool:
    """Return whether the API server has the conditions of a status."""
    known = {one["type"]: one["status"] for one in pod.get("status", {}).get("conditions", ())}
    return all(known.get(one["type"]) == one["status"] for one in status["conditions"])


def complain(living: asyncio.Task[None]) -> None:
    """Print the reason why a pod cannot live, if it is a fault of the kubelet."""
    if not living.cancelled() and (error := living.exception()) is not None:
        traceback.print_exception(error)
