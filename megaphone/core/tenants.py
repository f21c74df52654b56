"""The tenants of a node: who has a share of it, and how large that share is."""

import re
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final, final
from weakref import WeakValueDictionary

from megaphone.core.budget import CHANNEL_BYTES, Budget, Share
from megaphone.core.creation import AllowedOptions
from megaphone.core.quotas import Rate
from megaphone.errors import BadRequest, LimitExceeded, RateLimited
from megaphone.model import MAX_TENANT_LENGTH, ChannelOptions
from megaphone.settings import Settings, TenantLimits

_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_TENANT_LENGTH}}}")
NO_LIMITS: Final = TenantLimits()
OTHER: Final = "other"
"""What metrics call all tenants that are not among the first of the settings."""
MOST_LABELS: Final = 100
"""How many tenants of the settings have their own names in metrics."""
MOST_HELD: Final = 10_000
"""How many tenants that are not in the settings are remembered for what they have not paid off."""
READ_AGAIN_S: Final = 1.0
"""When a client should ask again for a read, or for a channel, that its tenant may not have now."""
CREATE_AGAIN_S: Final = 10.0
SHORTEST_SHOWN_S: Final = 0.001


@final
class Tenant:
    """The limits of one tenant, and what counts against them. Callers and channels of the same
    tenant refer to the same object. Each method takes effect at once; `now` is the time of the
    event loop."""

    __slots__ = (
        "__weakref__",
        "_bytes",
        "_creates",
        "_writes",
        "channels",
        "has_table",
        "label",
        "limits",
        "name",
        "reads",
        "share",
    )

    def __init__(
        self,
        name: str,
        limits: TenantLimits = NO_LIMITS,
        label: str = OTHER,
        has_table: bool = False,
    ) -> None:
        self.name: Final = name
        self.channels = 0
        """How many channels of this tenant the store of this node has in memory."""
        self.reads = 0
        """How many channels this tenant reads on this node."""
        self._creates: Rate | None = None
        self._writes: Rate | None = None
        self._bytes: Rate | None = None
        self.share: Share | None = None
        """What the tenant uses of the budget of this node; None if it has no share."""
        self.change(limits, label, has_table)

    def change(self, limits: TenantLimits, label: str, has_table: bool = False) -> None:
        """Set the limits. The counts so far stay."""
        self.has_table = has_table
        """Whether it has a table in the settings."""
        self.limits = limits
        self.label = label
        """The name of the tenant in metrics."""
        self._creates = changed(self._creates, limits.creates_per_s)
        self._writes = changed(self._writes, limits.writes_per_s)
        self._bytes = changed(self._bytes, limits.bytes_per_s)
        if self.share is not None:
            self.share.change(label, limits.buffered_bytes)

    @property
    def is_limited(self) -> bool:
        """Whether any limit is set."""
        return self.limits != NO_LIMITS

    @property
    def has_rates(self) -> bool:
        """Whether there is anything that the tenant pays off in time."""
        return any((self._creates, self._writes, self._bytes))

    # -- Channels

    def options_of(self, asked: ChannelOptions, allowed: AllowedOptions) -> ChannelOptions:
        """Return the options of a new channel of this tenant. `allowed` is what the node allows.

        Raises: BadRequest, naming the maximum.
        """
        limits = self.limits
        if limits is NO_LIMITS:
            return allowed.checked(asked)
        default = ChannelOptions(limits.buffer_capacity, limits.channel_ttl_secs)
        return allowed.of_tenant(
            default, ChannelOptions(limits.max_buffer_capacity, limits.max_channel_ttl_secs)
        ).checked(asked)

    def budget_in(self, whole: Budget) -> Budget:
        """Return the budget against which the channels of this tenant count on a node.

        A tenant with a table, and `default`, have a share even if it is not limited: a limit that a
        reload sets then covers the channels that exist. The others, of which there may be very
        many, have one only while a limit is set.
        """
        if self.share is None:
            if self.limits.buffered_bytes is None and not self.has_table:
                return whole
            self.share = Share(whole, self.name, self.label, self.limits.buffered_bytes)
        return self.share

    def take_create(self, now: float) -> None:
        """Count a channel that the tenant creates in the memory of this node. A shared store counts
        creations itself, for all nodes together.

        Raises: RateLimited, LimitExceeded. Nothing is counted then.
        """
        most, rate = self.limits.channels, self._creates
        if most is not None and self.channels >= most:
            raise self.too_many_channels(most)
        if self.share is not None:
            self.share.ensure(CHANNEL_BYTES, now)
        if rate is not None:
            if wait_s := rate.wait_s(1.0, now):
                raise self.too_many_creates(rate.per_s, wait_s)
            rate.take(1.0, now)

    def give_back_create(self) -> None:
        """Take back the count of a channel that was not created."""
        if self._creates is not None:
            self._creates.give_back(1.0)

    def too_many_channels(self, most: int) -> LimitExceeded:
        return LimitExceeded(
            f"tenant {self.name} has as many channels as it may: {most} (channels)",
            retry_after_s=CREATE_AGAIN_S,
            limit="channels",
            most=most,
            tenant=self.label,
        )

    def too_many_creates(self, per_s: float, wait_s: float) -> RateLimited:
        return self._rate_limited(f"create {per_s:g} channels", "creates_per_s", per_s, wait_s)

    # -- Writes

    def take_writes(self, events: int, size: int, now: float) -> None:
        """Count events that the tenant writes, of `size` bytes together.

        Raises: RateLimited. Nothing is counted then.
        """
        writes, in_bytes = self._writes, self._bytes
        if writes is not None and (wait_s := writes.pass_or_wait_s(events, now)):
            raise self._rate_limited(
                f"write {writes.per_s:g} events", "writes_per_s", writes.per_s, wait_s
            )
        if in_bytes is not None and (wait_s := in_bytes.pass_or_wait_s(size, now)):
            if writes is not None:
                writes.give_back(events)
            raise self._rate_limited(
                f"write {in_bytes.per_s:.0f} bytes", "bytes_per_s", in_bytes.per_s, wait_s
            )

    def give_back_writes(self, events: int, size: int) -> None:
        """Take back the count of events that were not written."""
        if self._writes is not None:
            self._writes.give_back(events)
        if self._bytes is not None:
            self._bytes.give_back(size)

    # -- Reads

    def begin_read(self) -> None:
        """Count a channel that the tenant reads.

        Raises: LimitExceeded, if it reads as many as it may. Nothing is counted then.
        """
        most = self.limits.reads
        if most is not None and self.reads >= most:
            raise LimitExceeded(
                f"tenant {self.name} reads as many channels as it may: {most} (reads)",
                retry_after_s=READ_AGAIN_S,
                limit="reads",
                most=most,
                tenant=self.label,
            )
        self.reads += 1

    def end_read(self) -> None:
        """Take back the count of a channel whose read has ended."""
        self.reads -= 1

    def _rate_limited(self, may: str, limit: str, per_s: float, wait_s: float) -> RateLimited:
        """Return the error for something that may happen again in `wait_s`."""
        return RateLimited(
            f"tenant {self.name} may {may} a second ({limit});"
            f" call again in {max(SHORTEST_SHOWN_S, wait_s):.3g} s",
            retry_after_s=wait_s,
            limit=limit,
            per_s=per_s,
            tenant=self.label,
        )


def changed(rate: Rate | None, per_s: float | None) -> Rate | None:
    """Return a rate for another limit. The debt so far stays."""
    if per_s is None:
        return None
    if rate is None:
        return Rate(per_s)
    rate.change(per_s)
    return rate


DEFAULT: Final = Tenant("default", label="default")
"""The tenant of all callers on a node that limits no tenant."""


def checked_tenant(name: str) -> str:
    """Check and return the name of a tenant from another node; an empty one means `default`.

    Raises: BadRequest.
    """
    if name and not _NAME.fullmatch(name):
        raise BadRequest(
            f"the tenant must be 1 to {MAX_TENANT_LENGTH} letters, digits, underscores and hyphens"
        )
    return name


class Tenants:
    """The tenants of one node, by their names."""

    def __init__(self, limits: Mapping[str, TenantLimits] | None = None) -> None:
        """`limits` are the shares, by the names of the tenants."""
        self._limits = dict(limits or {})
        of_default = self._limits.get(DEFAULT.name, NO_LIMITS)
        self.default = Tenant(DEFAULT.name, of_default, DEFAULT.name, has_table=True)
        """The tenant of callers for whom no other one is configured."""
        self._configured = {name: self._new(name) for name in self._limits}
        self._others: WeakValueDictionary[str, Tenant] = WeakValueDictionary()
        """Tenants that are not in the settings. They live as long as their channels and callers,
        and while they are held."""
        self._held: dict[str, Tenant] = {}
        """Tenants of `_others` that have rates, so that none of them begins anew when its last
        channel and caller have gone. The one that was asked for longest ago comes first. If there
        are too many, that one is forgotten, and so is what it has not paid off."""

    def named(self, name: str) -> Tenant:
        """Return the tenant with a name. An empty name means `default`.

        A tenant that is not in the settings has the limits of `default`, and counts for itself.
        """
        if not name or name == self.default.name:
            return self.default
        tenant = self._configured.get(name) or self._others.get(name)
        if tenant is None:
            tenant = self._others[name] = self._new(name)
        if name not in self._configured:
            self._hold(tenant)
        return tenant

    def _hold(self, tenant: Tenant) -> None:
        if not tenant.has_rates:
            return
        self._held.pop(tenant.name, None)
        if len(self._held) >= MOST_HELD:
            del self._held[next(iter(self._held))]
        self._held[tenant.name] = tenant

    def own(self, tenant: Tenant) -> Tenant:
        """Return the tenant of this node in place of `DEFAULT`, which all nodes have."""
        return self.default if tenant is DEFAULT else tenant

    def _new(self, name: str) -> Tenant:
        return Tenant(name, *self._share_of(name))

    def _share_of(self, name: str) -> tuple[TenantLimits, str, bool]:
        """Return the limits of a tenant, its name in metrics, and whether it has a table."""
        if name == DEFAULT.name:
            return self._limits.get(name, NO_LIMITS), name, True
        if name in self._limits:
            label = name if name in islice(self._limits, MOST_LABELS) else OTHER
            return self._limits[name], label, True
        return self._limits.get(DEFAULT.name, NO_LIMITS), OTHER, False

    def prepare(self, settings: Settings) -> Callable[[], None]:
        """Fulfils `megaphone.reload.Reloadable`. Each tenant keeps its object and its counts."""
        return lambda: self._take(settings.tenants)

    def _take(self, limits: Mapping[str, TenantLimits]) -> None:
        known = {**self._others, **self._configured}
        self._limits = dict(limits)
        known[DEFAULT.name] = self.default
        for name, tenant in known.items():
            tenant.change(*self._share_of(name))
        self._configured = {name: known.get(name) or self._new(name) for name in limits}
        others = {name: one for name, one in known.items() if name not in self._configured}
        self._others = WeakValueDictionary(others)
        before, self._held = self._held, {}
        for tenant in (*others.values(), *before.values()):  # these were asked for last
            if tenant.name in others:
                self._hold(tenant)
