"""What one node tells operators of the reads of another one, and what it does if that is silent."""

from collections.abc import AsyncIterator

import pytest

from megaphone.model import HTTP, ReadOptions
from megaphone.store.redis import questions
from megaphone.store.redis.inspection import members_of
from megaphone.store.redis.store import RedisStore
from tests.store.redis.test_store import ADDRESS, append, started, take
from tests.support.leases import release
from tests.support.redis_server import RedisServer

OPTIONS = ReadOptions(acknowledge=True, reader="phone", face=HTTP)


@pytest.fixture
async def nodes(own_server: RedisServer) -> AsyncIterator[tuple[RedisStore, RedisStore]]:
    """Two nodes with one store, in which there is a channel."""
    one, other = await started(own_server), await started(own_server)
    await one.create(b"c", ADDRESS)
    yield one, other
    for node in (one, other):
        await node.aclose()


async def test_a_node_asks_the_one_that_has_the_reader(
    nodes: tuple[RedisStore, RedisStore],
) -> None:
    one, other = nodes
    lease = await other.open(b"c", ADDRESS, OPTIONS)
    before = (await one.info(b"c")).reader
    assert before is not None
    assert (before.name, before.acknowledges, before.face) == ("phone", True, HTTP)
    assert before.taken_s is None
    await append(one, "a", "b")
    assert await take(lease) == "ab"
    shown = await one.info(b"c")
    assert shown.reader is not None
    assert shown.reader.taken_s is not None
    assert shown.in_flight == 2
    own = (await other.info(b"c")).reader
    assert own is not None
    assert (own.node, own.name, own.face) == (None, "phone", HTTP)
    assert shown.reader.node is not None
    release(lease, clean=True)


async def test_a_node_that_is_silent_leaves_gaps(
    nodes: tuple[RedisStore, RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has forgotten the read, or does not hear the question."""
    monkeypatch.setattr(questions, "ANSWERED_WITHIN_S", 0.1)
    one, other = nodes
    lease = await other.open(b"c", ADDRESS, OPTIONS)
    leases = other._leases
    kept = leases.pop(lease.handle)
    for hears in (True, False):
        if not hears:
            monkeypatch.setattr(other._inspection, "asked", lambda *_: None)
        shown = (await one.info(b"c")).reader
        assert shown is not None
        assert (shown.name, shown.face, shown.age_s, shown.taken_s) == ("phone", None, None, None)
    leases[lease.handle] = kept
    release(lease, clean=True)


async def test_a_server_of_another_protocol_lists_members_in_pairs() -> None:
    assert members_of([[b"a", 1.0], [b"b", 2.0]]) == [b"a", b"b"]
    assert members_of([b"a", b"1", b"b", b"2"]) == [b"a", b"b"]
    assert members_of([]) == []


async def test_a_channel_that_goes_while_it_is_looked_at_is_left_out(
    nodes: tuple[RedisStore, RedisStore],
) -> None:
    one, other = nodes
    surveyed = [seen async for some in one.survey(None, with_size=True) for seen in some]
    assert [seen.channel_id for seen in surveyed] == [b"c"]
    assert [seen.channel_id for seen in await one.look_again(surveyed)] == [b"c"]
    await other.remove(b"c")
    assert await one.look_again(surveyed) == []
