"""What operators may do to agents and channels, and what is refused."""

import asyncio

import pytest

from megaphone.core.access import ANYONE
from megaphone.core.listing import MOST_SHOWN, Asked
from megaphone.errors import (
    AgentNotFound,
    BadRequest,
    ChannelNotFound,
    TargetUnavailable,
    WrongMode,
)
from megaphone.model import AgentMode, NewChannel
from tests.core.node import WARM, Node

pytestmark = pytest.mark.looptime

ADDRESS = "node.{}"


@pytest.fixture
def node() -> Node:
    return Node(WARM)


async def created(node: Node, count: int = 1) -> list[NewChannel]:
    return [await node.broker.create(ANYONE, ()) for _ in range(count)]


# -- Agents


async def test_an_agent_that_makes_no_channels_any_more_leaves_with_them(node: Node) -> None:
    channels = await created(node, 120)
    await node.admin.add_agent("other")
    with pytest.raises(WrongMode, match="120 channels"):
        await node.admin.remove_agent("node")
    assert len(await node.admin.list_agents()) == 2
    await node.admin.remove_agent("node", force=True)
    [left] = await node.admin.list_agents()
    assert (left.name, left.channels, left.mode) == ("other", 0, AgentMode.MASTER)
    assert await node.store.count("node") == 0
    with pytest.raises(AgentNotFound):
        await node.admin.list_channels(agent="node")
    [new] = await created(node)
    assert new.agent == "other"
    assert new.consumer_address not in {one.consumer_address for one in channels}


async def test_the_last_agent_that_takes_channels_stays(node: Node) -> None:
    with pytest.raises(WrongMode, match="the only one"):
        await node.admin.remove_agent("node")
    await node.admin.remove_agent("node", force=True)
    assert await node.admin.list_agents() == []
    with pytest.raises(AgentNotFound):
        await node.admin.remove_agent("node", force=True)


async def test_an_agent_that_another_node_replicates_here_stays(node: Node) -> None:
    node.agents.add("copy", AgentMode.REPLICA, 0.0)
    node.agents.named("copy").sources = 1
    with pytest.raises(WrongMode, match="another node replicates agent copy here"):
        await node.admin.remove_agent("copy", force=True)


async def test_only_a_replica_or_a_cut_off_agent_is_promoted(node: Node) -> None:
    node.agents.add("copy", AgentMode.REPLICA, 0.0)
    node.admin.promote_agent("copy")
    assert {one.mode for one in await node.admin.list_agents()} == {AgentMode.MASTER}
    with pytest.raises(WrongMode):
        node.admin.promote_agent("copy")


async def test_an_agent_without_pipes_has_none_to_close(node: Node) -> None:
    with pytest.raises(WrongMode):
        await node.admin.unpipe_agent("node")
    with pytest.raises(AgentNotFound):
        await node.admin.unpipe_agent("missing")


@pytest.mark.looptime(False)
async def test_a_drain_to_nobody_says_so(node: Node) -> None:
    with pytest.raises(TargetUnavailable):
        async for _ in node.admin.drain("http://127.0.0.1:1"):
            pass
    await node.admin.add_agent("other")
    await node.admin.remove_agent("other")  # which a drain would refuse


# -- Channels


async def test_a_channel_is_found_by_its_address_or_the_beginning_of_its_id(node: Node) -> None:
    [channel, other] = await created(node, 2)
    await node.write(channel, 1, 2)
    shown = await node.admin.show_channel(channel.consumer_address)
    assert shown.address == channel.consumer_address
    assert (shown.unsent, shown.waiting_writers, shown.reader) == (2, 0, None)
    for name in (shown.channel_id.hex()[:8], shown.channel_id.hex().upper()):
        assert (await node.admin.show_channel(name)).address == channel.consumer_address
    agent, _, rest = channel.consumer_address.partition(".")
    wrong = f"{agent}.{rest[:-1]}{'A' if rest[-1] != 'A' else 'B'}"
    missing = other.consumer_address
    await node.admin.dispose(missing)
    for name in (wrong, missing, "0" * 32):
        with pytest.raises((ChannelNotFound, BadRequest)):
            await node.admin.show_channel(name)


async def test_ids_that_begin_alike_are_named(node: Node) -> None:
    first, second = (bytes.fromhex("abcdabcd" + "00" * 11 + end) for end in ("01", "02"))
    for number, channel_id in enumerate((first, second)):
        await node.store.create(channel_id, ADDRESS.format(number))
    with pytest.raises(BadRequest, match=f"{first.hex()}, {second.hex()}"):
        await node.admin.show_channel("abcdabcd")
    assert (await node.admin.show_channel(second.hex())).channel_id == second


@pytest.mark.parametrize("sort", ["age", "bytes", "unsent", "waiting", None])
async def test_channels_are_sorted(node: Node, sort: str | None) -> None:
    idle, full, some = await created(node, 3)
    await node.write(some, 1)
    limit = WARM.buffer_capacity
    await node.write(full, *range(limit))
    waiting = asyncio.create_task(node.write(full, limit))
    await asyncio.sleep(0.1)
    shown = await node.admin.show_channels(Asked(sort=sort))
    order = [idle, full, some] if sort in ("age", None) else [full, some, idle]
    addresses = [one.address for one in shown]
    if sort == "waiting":  # only one has writers that wait
        assert addresses[0] == full.consumer_address
    else:
        assert addresses == [one.consumer_address for one in order]
    [blocked] = await node.admin.show_channels(Asked(blocked=True, sort=sort))
    assert (blocked.address, blocked.waiting_writers) == (full.consumer_address, 1)
    waiting.cancel()


async def test_what_cannot_be_shown_is_refused(node: Node) -> None:
    with pytest.raises(BadRequest, match="age, bytes, unsent, waiting"):
        await node.admin.show_channels(Asked(sort="color"))
    with pytest.raises(BadRequest, match="use `skip`"):
        await node.admin.show_channels(Asked(limit=MOST_SHOWN + 1))
    with pytest.raises(AgentNotFound):
        await node.admin.show_channels(Asked(agent="missing"))
    [channel] = await created(node)
    [shown] = await node.admin.show_channels(Asked(agent="node"))
    assert [shown.address] == await node.admin.list_channels() == [channel.consumer_address]
