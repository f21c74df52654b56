"""Who leads: of several copies of the operator only the one that holds the Lease works.

Clocks of different machines are not compared. A Lease of another copy is free when it has not
changed for `LEASE_S` by our own clock. A leader gives up after `GIVE_UP_S` without a renewal, which
is earlier, so there are never two.
"""

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any, Protocol

from megaphone_operator.kube import Unreachable, reason_of
from megaphone_operator.plan.names import MANAGER

log = logging.getLogger(__name__)

LEASE_S = 15
RENEW_S = 2.0
GIVE_UP_S = 10.0
SHORTLY_S = 2.0 * LEASE_S
"""How long ago a leader may have renewed the Lease that has led until shortly."""
CALL_S = 4.0
"""How long one call for the Lease may take."""


class Lost(Exception):
    """Another copy leads although this one thought that it did."""


class Leases(Protocol):
    """Where the Lease is: the API server, by `Kube`. Each call raises `Unreachable` if it fails."""

    async def get(self, kind: str, namespace: str, name: str) -> Any: ...

    async def create(self, manifest: dict[str, Any]) -> bool: ...

    async def replace(self, manifest: dict[str, Any]) -> bool: ...


class Election:
    """One copy's part in the election."""

    def __init__(self, leases: Leases, namespace: str, identity: str) -> None:
        self._leases = leases
        self._namespace = namespace
        self._identity = identity
        self._seen: Any = None
        """The Lease of another copy as it was seen last, and since when it has not changed."""
        self._unchanged_since = 0.0
        self.follows_leader = False
        """Whether another copy led until shortly before this one won."""
        self.contact: float | None = None
        """When the Lease was read or written last, by the clock of the event loop."""

    async def win(self) -> None:
        """Return when this copy leads."""
        while not await self._try():  # noqa: ASYNC110 - the Lease is on another machine
            await asyncio.sleep(RENEW_S)
        silent_s = _now() - self._unchanged_since
        self.follows_leader = self._seen is not None and silent_s < SHORTLY_S
        log.info("this copy leads")

    async def keep(self) -> None:
        """Renew the Lease. Return when it could not be renewed for too long, because then another
        copy may take it.

        Raises: Lost, if another copy has taken it already.
        """
        renewed = _now()
        try:
            while True:
                async with asyncio.timeout_at(renewed + GIVE_UP_S):
                    await asyncio.sleep(RENEW_S)
                    begun = _now()
                    is_held = await self._try()
                if is_held:
                    renewed = begun
                elif is_held is False:
                    raise Lost("another copy has the lease")
        except TimeoutError:
            log.error("the lease was not renewed for %s seconds", GIVE_UP_S)

    async def release(self) -> None:
        """Let another copy lead at once."""
        try:
            async with asyncio.timeout(CALL_S):
                lease = await self._read()
                if lease is not None and _spec(lease).get("holderIdentity") == self._identity:
                    await self._write(lease, holder="")
        except (Unreachable, TimeoutError) as error:
            log.warning("the lease was not released: %s", reason_of(error))

    async def _try(self) -> bool | None:
        """Take or renew the Lease. Returns: whether this copy has it; None if that is unknown."""
        try:
            async with asyncio.timeout(CALL_S):
                lease = await self._read()
                is_held = await self._take(lease)
        except (Unreachable, TimeoutError) as error:
            log.warning("the lease cannot be reached: %s", reason_of(error))
            return None
        self.contact = _now()
        return is_held

    async def _take(self, lease: Any) -> bool:
        if lease is not None and not self._is_free(lease):
            return False
        return await self._write(lease, holder=self._identity)

    def _is_free(self, lease: Any) -> bool:
        """Whether the Lease is ours, released, or of a copy that has stopped to renew it."""
        spec = _spec(lease)
        if spec.get("holderIdentity") in (None, "", self._identity):
            return True
        if spec != self._seen:
            self._seen, self._unchanged_since = spec, _now()
        return _now() - self._unchanged_since >= LEASE_S

    async def _read(self) -> Any:
        return await self._leases.get("Lease", self._namespace, MANAGER)

    async def _write(self, lease: Any, holder: str) -> bool:
        """Write the Lease. Returns: False if another copy was faster."""
        before = _spec(lease) if lease else {}
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        is_new = before.get("holderIdentity") != holder
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": LEASE_S,
            "renewTime": time,
            "acquireTime": time if is_new else before.get("acquireTime", time),
            "leaseTransitions": before.get("leaseTransitions", 0) + is_new,
        }
        metadata = {"name": MANAGER, "namespace": self._namespace}
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        if lease is None:
            return await self._leases.create({**body, "metadata": metadata, "spec": spec})
        metadata["resourceVersion"] = lease["metadata"]["resourceVersion"]
        return await self._leases.replace({**body, "metadata": metadata, "spec": spec})


def _now() -> float:
    """Return the time of the event loop, which tests can set."""
    return asyncio.get_running_loop().time()


def _spec(lease: Any) -> Any:
    return lease.get("spec") or {}
