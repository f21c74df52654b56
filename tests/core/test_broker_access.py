"""Every use case asks the caller first, and a refused call changes nothing."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from megaphone.core.access import ANYONE, Action, Caller, Grant
from megaphone.core.broker import Broker
from megaphone.core.tenants import DEFAULT, Tenant
from megaphone.core.writing import Write
from megaphone.errors import (
    ChannelNotFound,
    MegaphoneError,
    PermissionDenied,
    TokenExpired,
    Unauthenticated,
)
from megaphone.model import BatchWritten, NewChannel, NewEvent, ReadOptions, WriteFailure
from tests.core.node import WARM, Node
from tests.support.build import pure_only

ALL = frozenset(Action)
NOBODY = Caller("anyone", DEFAULT, required=ALL, has_proof=False)
OLD = Caller("token old", DEFAULT, [Grant(ALL)], required=ALL, expires_at=0.0)
ONE = NewEvent("news", b"1")


async def at_once(call: Callable[[], object]) -> None:
    call()


async def first_result(broker: Broker, caller: Caller, channel: NewChannel) -> None:
    """Make a write of those that are made together."""
    [result] = broker.write_all_nowait([Write(caller, channel.producer_address, ONE)])
    if isinstance(result, Exception):
        raise result


async def begun(broker: Broker, caller: Caller, channel: NewChannel) -> None:
    done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    broker.begin_write(caller, channel.producer_address, ONE, done.set_result)
    if isinstance(result := await done, Exception):
        raise result


async def batch_begun(broker: Broker, caller: Caller, channel: NewChannel) -> BatchWritten:
    written = broker.begin_batch(caller, [channel.producer_address], [ONE])
    return written if isinstance(written, BatchWritten) else await written


Call = Callable[[Broker, Caller, NewChannel], Awaitable[object]]
READY = ReadOptions(wait_s=0)
CALLS: dict[str, tuple[Action, Call]] = {
    "create": (Action.CREATE, lambda b, who, c: b.create(who)),
    "create_nowait": (Action.CREATE, lambda b, who, c: at_once(lambda: b.create_nowait(who))),
    "exists": (Action.EXISTS, lambda b, who, c: b.exists(who, [c.consumer_address])),
    "exists_nowait": (
        Action.EXISTS,
        lambda b, who, c: at_once(lambda: b.exists_nowait(who, [c.consumer_address])),
    ),
    "write": (Action.WRITE, lambda b, who, c: b.write(who, c.producer_address, ONE)),
    "write_nowait": (
        Action.WRITE,
        lambda b, who, c: at_once(lambda: b.write_nowait(who, c.producer_address, ONE)),
    ),
    "write_all_nowait": (Action.WRITE, first_result),
    "begin_write": (Action.WRITE, begun),
    "write_each": (Action.WRITE, lambda b, who, c: b.write_each(who, [(c.producer_address, ONE)])),
    "write_batch": (
        Action.WRITE,
        lambda b, who, c: b.write_batch(who, [c.producer_address], [ONE]),
    ),
    "begin_batch": (Action.WRITE, batch_begun),
    "open_read": (Action.READ, lambda b, who, c: b.open_read(who, c.consumer_address, READY)),
    "open_read_nowait": (
        Action.READ,
        lambda b, who, c: at_once(lambda: b.open_read_nowait(who, c.consumer_address, READY)),
    ),
    "open_many": (
        Action.READ,
        lambda b, who, c: b.open_many(who, [(c.consumer_address, None)], READY),
    ),
    "dispose": (Action.DISPOSE, lambda b, who, c: b.dispose(who, c.producer_address)),
    "acknowledge": (Action.ACK, lambda b, who, c: b.acknowledge(who, c.consumer_address, "x")),
    "acknowledge_nowait": (
        Action.ACK,
        lambda b, who, c: at_once(lambda: b.acknowledge_nowait(who, c.consumer_address, "x")),
    ),
}


@pytest.fixture
def node() -> Node:
    return Node(WARM)


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_needs_its_action_and_no_other(node: Node, name: str) -> None:
    action, call = CALLS[name]
    channel = await node.broker.create(ANYONE)
    others = Caller("token shop", DEFAULT, [Grant(ALL - {action})], required=ALL)
    refused: list[tuple[Caller, type[MegaphoneError]]] = [
        (NOBODY, Unauthenticated),
        (OLD, TokenExpired),
        (others, PermissionDenied),
    ]
    for caller, error in refused:
        before = dict(node.metrics.counts())
        with pytest.raises(error):
            await call(node.broker, caller, channel)
        assert await node.store.list(None, 0, 10) == [channel.consumer_address]
        assert node.metrics.counts() == before  # nothing was counted, so nothing has happened
    await call(node.broker, Caller("token", DEFAULT, [Grant(frozenset({action}))]), channel)


OTHER = Caller("token other", Tenant("other"), [Grant(ALL)], required=ALL)
FINDS_NOTHING = ("create", "create_nowait", "exists", "exists_nowait", "open_many")
"""The calls that do not fail for a channel that does not exist."""


@pytest.mark.parametrize("name", CALLS.keys() - FINDS_NOTHING)
async def test_a_channel_of_another_tenant_does_not_exist(node: Node, name: str) -> None:
    channel = await node.broker.create(ANYONE)
    _, call = CALLS[name]
    try:
        result = await call(node.broker, OTHER, channel)
    except ChannelNotFound:
        return
    match result:
        case [WriteFailure(reason="NOT_FOUND")] | BatchWritten(accepted=0):
            pass
        case _:
            pytest.fail(f"{name} has found it: {result}")


@pure_only("compiled methods do not tell their arguments")
async def test_every_public_call_is_in_the_table() -> None:
    of_nobody = {"read", "read_many"}  # they call `open_read` and `open_many`
    taking = {name for name, call in vars(Broker).items() if takes_caller(call)}
    taking |= {name for name, call in vars(Broker.__mro__[1]).items() if takes_caller(call)}
    assert taking - of_nobody | {"write_all_nowait"} == CALLS.keys()


def takes_caller(call: object) -> bool:
    code = getattr(call, "__code__", None)
    return (
        code is not None
        and "caller" in code.co_varnames[: code.co_argcount]
        and not code.co_name.startswith("_")
    )


async def test_streams_are_checked_event_by_event(node: Node) -> None:
    channel = await node.broker.create(ANYONE)
    shop = Caller("token shop", DEFAULT, [Grant(ALL, ("news", "orders.*"))], required=ALL)
    other = NewEvent("secrets", b"2")
    with pytest.raises(PermissionDenied):
        await node.broker.write(shop, channel.producer_address, other)
    with pytest.raises(PermissionDenied):
        await node.broker.write_batch(shop, [channel.producer_address], [ONE, other])
    results = await node.broker.write_each(
        shop, [(channel.producer_address, event) for event in (ONE, other, ONE)]
    )
    assert [isinstance(one, WriteFailure) for one in results] == [False, True, False]
    assert results[1] == WriteFailure(
        "PERMISSION_DENIED", "this token may not write to this stream"
    )
    with pytest.raises(PermissionDenied):
        await node.broker.open_read(shop, channel.consumer_address, READY)
    named = ReadOptions(wait_s=0, streams=frozenset({"news"}))
    async with node.broker.read(shop, channel.consumer_address, named) as reader:
        assert [event.body async for batch in reader for event in batch] == [b"1", b"1"]
