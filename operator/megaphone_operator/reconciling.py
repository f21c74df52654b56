"""The passes of all clusters: each cluster has one task, and events only wake it.

A pass looks, plans and does. It keeps no copy of what it saw: the next pass looks again.
"""

import asyncio
import logging
import random
from datetime import UTC, datetime

from megaphone_operator.doing import Doing
from megaphone_operator.kube import Kube, Unreachable, reason_of
from megaphone_operator.looking import Looking
from megaphone_operator.metrics import Metrics
from megaphone_operator.plan.objects import Surroundings
from megaphone_operator.plan.planning import Memory, Plan, count_again, plan
from megaphone_operator.plan.resource import KIND, BadResource, Megaphone, parse_resource
from megaphone_operator.plan.seen import Body, Seen
from megaphone_operator.plan.status import failed_status

log = logging.getLogger(__name__)

AT_A_TIME = 8
"""How many passes run at a time, so that a start does not flood the API server."""
TOGETHER_S = 0.05
"""How long a woken cluster waits for more events, because one change brings several."""
COUNT_EVERY_S = 10.0
"""How often the channels of nodes are counted while no pass is due."""
FIRST_BACKOFF_S, LAST_BACKOFF_S = 1.0, 60.0
PASS_TIMEOUT_S = 60.0
OVERDUE_S = 120.0
"""How late a pass may be before the process counts as stuck."""

ClusterKey = tuple[str, str]
"""The namespace and the name of a resource."""


class Cluster:
    """The passes of one cluster."""

    def __init__(self, key: ClusterKey, reconciler: "Reconciler") -> None:
        self.key = key
        self.due = asyncio.get_running_loop().time()
        """When the next pass begins, at the latest."""
        self._reconciler = reconciler
        self._doing = Doing(reconciler.kube, reconciler.reporter)
        self._memory = Memory()
        self._seen: Seen | None = None
        """What the last pass has seen, if its nodes are worth counting."""
        self._uid = ""
        self._failures = 0
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Let the next pass begin soon."""
        self._woken.set()

    async def run(self) -> None:
        """Run passes until there is no such resource."""
        while (wait_s := await self._pass()) is not None or self._woken.is_set():
            wait_s = wait_s or 0.0
            self.due = asyncio.get_running_loop().time() + wait_s
            if self._failures:
                await asyncio.sleep(min(wait_s, FIRST_BACKOFF_S))
                wait_s -= min(wait_s, FIRST_BACKOFF_S)
            await self._sleep(wait_s)

    async def _sleep(self, seconds: float) -> None:
        """Sleep until somebody wakes the cluster, but at most for so long. Count meanwhile."""
        while seconds > COUNT_EVERY_S and not await self._is_woken(COUNT_EVERY_S):
            seconds -= COUNT_EVERY_S
            await self._count()
        if self._woken.is_set() or await self._is_woken(seconds):
            await asyncio.sleep(TOGETHER_S)

    async def _is_woken(self, within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                return await self._woken.wait()
        except TimeoutError:
            return False

    async def _count(self) -> None:
        """Ask the nodes again how many channels they have, because one that dies cannot be asked.
        That needs no call to the API server."""
        if self._seen is None:
            return
        async with self._reconciler.passes:
            seen = await self._reconciler.looking.ask_again(self._seen)
        self._memory = count_again(seen, self._memory)

    async def _pass(self) -> float | None:
        """Run one pass. Returns: in how many seconds the next one begins; None if there is none."""
        self._woken.clear()
        metrics = self._reconciler.metrics
        try:
            async with self._reconciler.passes, asyncio.timeout(PASS_TIMEOUT_S):
                with metrics.passing():
                    wait_s = await self._reconcile()
        except Exception as error:
            metrics.failed(type(error).__name__)
            return await self._fail(error)
        self._failures = 0
        metrics.succeeded()
        return wait_s

    async def _reconcile(self) -> float | None:
        body = await self._reconciler.kube.get(KIND, *self.key)
        if body is None:
            self._reconciler.metrics.forget(self.key)
            return None
        try:
            resource = parse_resource(body)
        except BadResource as error:
            await self._report(body, str(error))
            raise
        if resource.uid != self._uid:
            self._uid = resource.uid
            self._memory = Memory(trusts_status=self._reconciler.follows_leader)
        try:
            seen = await self._reconciler.looking.look(resource)
            planned = plan(resource, seen, self._memory, self._reconciler.surroundings)
            await self._doing.do(resource, seen, planned)
        except Exception as error:
            await self._report(body, reason_of(error))
            raise
        self._memory = planned.memory
        self._seen = seen if resource.spec.store is None and seen.nodes else None
        self._note(resource, planned)
        return planned.next_pass_s

    def _note(self, resource: Megaphone, planned: Plan) -> None:
        if planned.status is not None:
            self._reconciler.metrics.note_status(self.key, planned.status)
        for event in planned.events:
            details = {"cluster": "/".join(self.key), "event": event.reason}
            log.info(event.message, extra=details)

    async def _report(self, body: Body, reason: str) -> None:
        """Say in the status why the pass has failed, if the API server takes that."""
        before, generation = body.get("status") or {}, body["metadata"].get("generation", 0)
        status = failed_status(before, generation, reason, datetime.now(UTC))
        if status == before:
            return
        try:
            await self._reconciler.kube.set_status(*self.key, status)
        except Unreachable as error:
            log.debug("the status was not written: %s", reason_of(error))

    async def _fail(self, error: Exception) -> float:
        self._failures += 1
        wait_s = min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(self._failures - 1, 10))
        wait_s *= random.uniform(0.75, 1.25)  # not all clusters at the same moment
        unknown = not isinstance(error, Unreachable | BadResource | TimeoutError)
        details = {"cluster": "/".join(self.key), "retry_in_seconds": round(wait_s, 1)}
        log.warning("a pass failed: %s", reason_of(error), extra=details, exc_info=unknown)
        return wait_s


class Reconciler:
    """All clusters. After `open`, what wakes a cluster begins a pass. `close` ends all passes."""

    def __init__(
        self, kube: Kube, looking: Looking, surroundings: Surroundings, metrics: Metrics,
        reporter: str,
    ) -> None:  # fmt: skip
        self.kube = kube
        self.looking = looking
        self.surroundings = surroundings
        self.metrics = metrics
        self.reporter = reporter
        self.passes = asyncio.Semaphore(AT_A_TIME)
        self.follows_leader = False
        """Whether another copy led until shortly before this one."""
        self._is_open = False
        self._known: set[ClusterKey] = set()
        self._clusters: dict[ClusterKey, Cluster] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def wake(self, namespace: str, name: str) -> None:
        """Let a pass of a cluster begin soon, or when this copy leads. A cluster that is not known
        yet becomes known."""
        key = (namespace, name)
        self._known.add(key)
        if not self._is_open:
            return
        cluster = self._clusters.get(key)
        if cluster is None:
            cluster = self._clusters[key] = Cluster(key, self)
            task = asyncio.create_task(self._run(cluster), name=f"cluster {namespace}/{name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        cluster.wake()

    def open(self, *, follows_leader: bool) -> None:
        """Let passes of all clusters begin, because this copy leads."""
        self._is_open, self.follows_leader = True, follows_leader
        for key in list(self._known):
            self.wake(*key)

    async def _run(self, cluster: Cluster) -> None:
        try:
            await cluster.run()
        finally:
            if self._clusters.get(cluster.key) is cluster:
                del self._clusters[cluster.key]
        self._known.discard(cluster.key)  # it is gone

    @property
    def is_overdue(self) -> bool:
        """Whether a pass should have begun long ago, so that this process must be stuck."""
        limit = asyncio.get_running_loop().time() - OVERDUE_S
        return any(cluster.due < limit for cluster in self._clusters.values())

    async def close(self) -> None:
        """End all passes at once. What they have not done yet, the next leader does."""
        self._is_open = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
