"""A write that is refused does not count against the limits of its tenant."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import pytest

from megaphone.core.access import ANYONE, Action, Caller, Grant
from megaphone.core.broker import Broker
from megaphone.core.content import CHECKED_AT_ONCE
from megaphone.core.ports import Append, AppendResult
from megaphone.core.tenants import Tenant
from megaphone.errors import MegaphoneError, RateLimited, StoreUnavailable
from megaphone.model import BatchWritten, NewEvent
from megaphone.settings import TenantLimits
from tests.core.node import WARM, Node
from tests.support.build import pure_only

pytestmark = pytest.mark.looptime

SMALL = NewEvent("s", b"1")
LARGE = NewEvent("s", b'"%b"' % (b"x" * CHECKED_AT_ONCE))
NOT_JSON = NewEvent("s", b"[" * (CHECKED_AT_ONCE + 1))
FIVE_SLOTS = replace(WARM, buffer_capacity=5, write_timeout_millis=1)


def owner(limits: TenantLimits) -> Caller:
    return Caller("token shop", Tenant("shop", limits), [Grant(frozenset(Action))])


async def batch_begun(broker: Broker, caller: Caller, address: str, new: NewEvent) -> BatchWritten:
    written = broker.begin_batch(caller, [address], [new, new])
    return written if isinstance(written, BatchWritten) else await written


Call = Callable[[Broker, Caller, str, NewEvent], Awaitable[object]]
CALLS: dict[str, Call] = {
    "write": lambda b, who, address, new: b.write(who, address, new),
    "write_each": lambda b, who, address, new: b.write_each(who, [(address, new)] * 3),
    "write_batch": lambda b, who, address, new: b.write_batch(who, [address], [new, new]),
    "begin_batch": batch_begun,
}


async def refused(call: Call, broker: Broker, caller: Caller, address: str, new: NewEvent) -> None:
    try:
        await call(broker, caller, address, new)
    except RateLimited:
        raise
    except MegaphoneError:
        pass


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("limits", [TenantLimits(writes_per_s=1e-3), TenantLimits(bytes_per_s=1.0)])
async def test_what_is_refused_does_not_count(name: str, limits: TenantLimits) -> None:
    node, caller = Node(FIVE_SLOTS), owner(limits)
    full, gone, free = [await node.broker.create(ANYONE) for _ in range(3)]
    await node.broker.dispose(ANYONE, gone.producer_address)
    await node.write(full, *range(5))
    events = (SMALL, LARGE, NOT_JSON) if name != "begin_batch" else (SMALL,)
    for address in (full.producer_address, gone.producer_address):
        for new in events:
            await refused(CALLS[name], node.broker, caller, address, new)
    node.broker.write_nowait(caller, free.producer_address, SMALL)
    with pytest.raises(RateLimited):
        node.broker.write_nowait(caller, free.producer_address, LARGE)


@pytest.mark.parametrize("is_begun", [True, False])
async def test_of_a_batch_only_what_was_accepted_counts(is_begun: bool) -> None:
    node, caller = Node(FIVE_SLOTS), owner(TenantLimits(writes_per_s=1e-3))
    full, free = [await node.broker.create(ANYONE) for _ in range(2)]
    await node.write(full, *range(5))
    addresses = [full.producer_address, free.producer_address]
    if is_begun:
        written = node.broker.begin_batch(caller, addresses, [SMALL] * 5)
        assert not isinstance(written, BatchWritten)
        await written
    else:
        await node.broker.write_batch(caller, addresses, [SMALL] * 5)
    with pytest.raises(RateLimited) as error:
        node.broker.write_nowait(caller, free.producer_address, SMALL)
    assert error.value.retry_after_s == pytest.approx(5_000, abs=1)


async def failing(writes: Sequence[Append], *, wait: bool) -> Sequence[AppendResult]:
    """Fail as a store whose connection ends when the events were sent."""
    return [StoreUnavailable("over", may_have_happened=True) for _ in writes]


@pure_only("replaces a call of the store")
@pytest.mark.parametrize("name", CALLS)
async def test_what_may_have_been_written_counts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node, caller = Node(FIVE_SLOTS), owner(TenantLimits(writes_per_s=1e-3))
    full = await node.broker.create(ANYONE)
    await node.write(full, *range(5))
    monkeypatch.setattr(node.store, "append", failing)
    await refused(CALLS[name], node.broker, caller, full.producer_address, SMALL)
    with pytest.raises(RateLimited):
        node.broker.write_nowait(caller, full.producer_address, SMALL)
