"""Which creations and reads the broker refuses, and that a refused one leaves nothing."""

import pytest

from megaphone.core.access import ANYONE, Action, Caller, Grant
from megaphone.core.broker import Broker
from megaphone.core.peers import PeerLimits
from megaphone.core.ports import WouldBlock
from megaphone.core.tenants import DEFAULT
from megaphone.errors import (
    BadRequest,
    LimitExceeded,
    MegaphoneError,
    PayloadTooLarge,
    PermissionDenied,
    RateLimited,
)
from megaphone.model import ReadOptions
from megaphone.settings import Settings
from tests.core.node import WARM, Node

LIMITED = Settings(agent_warmup_secs=0, max_channels=1, creates_per_s_per_ip=2)
IP, OTHER_IP = "192.0.2.1", "192.0.2.2"

pytestmark = pytest.mark.looptime


@pytest.fixture
def node() -> Node:
    return Node(LIMITED)


@pytest.fixture
def free_node() -> Node:
    """A node without limits."""
    return Node(WARM)


def limited(node: Node) -> Broker:
    return Broker(
        store=node.store,
        agents=node.agents,
        settings=LIMITED,
        observer=node.metrics,
        peers=PeerLimits(LIMITED),
    )


async def test_a_creation_that_fails_does_not_count(node: Node) -> None:
    broker = limited(node)
    await broker.create(ANYONE, ip=IP)
    for _ in range(5):  # more than an address may create in a second
        with pytest.raises(LimitExceeded):
            await broker.create(ANYONE, ip=IP)
    with pytest.raises(LimitExceeded):
        await broker.create(ANYONE, ip=OTHER_IP)
    assert node.metrics.channels_created == 1


async def test_an_address_creates_only_so_many_channels_a_second(node: Node) -> None:
    broker = limited(node)
    for _ in range(2):
        channel = await broker.create(ANYONE, ip=IP)
        await node.admin.dispose(channel.consumer_address)
    with pytest.raises(RateLimited):
        await broker.create(ANYONE, ip=IP)
    await broker.create(ANYONE, ip=OTHER_IP)


async def test_who_has_a_proof_needs_no_address_and_who_has_none_does(node: Node) -> None:
    broker = limited(node)
    with pytest.raises(WouldBlock):
        broker.create_nowait(ANYONE)
    shop = Caller("token shop", DEFAULT, [Grant(frozenset(Action))], required=Action)
    channel = broker.create_nowait(shop)
    with pytest.raises(LimitExceeded):
        broker.create_nowait(shop)
    with pytest.raises(LimitExceeded):
        await broker.create(shop)
    with pytest.raises(PermissionDenied):
        await broker.dispose(shop, channel.consumer_address)
    await broker.dispose(shop, channel.producer_address)
    await broker.create(shop)


async def test_a_log_line_names_a_channel_only_by_an_address_of_it(free_node: Node) -> None:
    channel = await free_node.broker.create(ANYONE)
    ids = {
        free_node.broker.channel_id_of(one)
        for one in (channel.producer_address, channel.consumer_address)
    }
    [channel_id] = ids
    assert channel_id is not None
    assert free_node.broker.short_id_of(channel.consumer_address) == channel_id.hex()[:8]
    for wrong in ("nonsense", "node.short", f"missing.{'x' * 22}"):
        assert free_node.broker.channel_id_of(wrong) is None
        assert free_node.broker.short_id_of(wrong) is None


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (ReadOptions(cursor=""), BadRequest),
        (ReadOptions(reader="two words"), BadRequest),
        (ReadOptions(returning=True), BadRequest),
        (ReadOptions(in_flight=0), BadRequest),
        (ReadOptions(limit=0), BadRequest),
        (ReadOptions(heartbeat_s=0.001), BadRequest),
        (ReadOptions(streams=frozenset({""})), BadRequest),
        (ReadOptions(streams=frozenset(map(str, range(1_001)))), PayloadTooLarge),
    ],
)
async def test_options_of_a_read_that_make_no_sense(
    free_node: Node, options: ReadOptions, error: type[MegaphoneError]
) -> None:
    channel = await free_node.broker.create(ANYONE)
    with pytest.raises(error):
        await free_node.broker.open_read(ANYONE, channel.consumer_address, options)
    with pytest.raises(error):
        free_node.broker.open_read_nowait(ANYONE, channel.consumer_address, options)
    assert free_node.metrics.reads_open == 0


async def test_a_read_of_many_names_each_channel_once(free_node: Node) -> None:
    channel = await free_node.broker.create(ANYONE)
    one = (channel.consumer_address, None)
    for channels, error in (([], BadRequest), ([one, one], BadRequest)):
        with pytest.raises(error):
            await free_node.broker.open_many(ANYONE, channels, ReadOptions())
    too_many = [(f"node.{number}", None) for number in range(10_001)]
    with pytest.raises(PayloadTooLarge):
        await free_node.broker.open_many(ANYONE, too_many, ReadOptions())


async def test_nobody_reads_over_a_protocol_that_does_not_exist(free_node: Node) -> None:
    with pytest.raises(BadRequest, match="HTTP_STREAM_NDJSON_V1"):
        await free_node.broker.create(ANYONE, ["MORSE"])
    with pytest.raises(PayloadTooLarge):
        await free_node.broker.create(ANYONE, ["MORSE"] * 1_000)
