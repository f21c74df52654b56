"""The slots of keys, and what a server says of the masters that have them."""

import pytest

from megaphone.model import Endpoint
from megaphone.store.redis.keys import Names
from megaphone.store.redis.slots import SLOTS, SlotMap, epochs_in, slot_of
from tests.support.redis_fixtures import shared_cluster

ASKED = Endpoint("asked", 1)
A, B = Endpoint("a", 1), Endpoint("b", 2)


def test_a_key_is_in_the_slot_in_which_servers_have_it() -> None:
    with shared_cluster() as cluster:
        for key in ("", "foo", "{a}b", "a{b}c{d}", "{}a", "a{}{b}", "{a", "}a{b}", "{{a}}", "ö{ü}"):
            assert slot_of(key) == cluster.servers[0].call("CLUSTER", "KEYSLOT", key)


def test_the_keys_of_a_channel_are_in_one_slot() -> None:
    names = Names("mp")
    assert len({slot_of(key) for key in names.channel(b"c")}) == 1
    assert slot_of(names.nodes) == slot_of(names.meta)


def read(*ranges: list[object]) -> SlotMap:
    return SlotMap.read(ranges, ASKED)


def test_a_map_has_the_masters_of_slots() -> None:
    found = read([0, 9, [b"a", 1, b"id"], [b"replica", 3, b"id"]], [10, 10, [b"b", 2, b"id", []]])
    assert [found.owner_of(slot) for slot in (0, 9, 10, 11)] == [A, A, B, None]
    assert found.masters == [A, B]
    assert not found.is_complete
    assert read([0, SLOTS - 1, [b"a", 1]]).is_complete


@pytest.mark.parametrize("host", [None, b""])
def test_a_server_without_a_name_has_the_one_at_which_it_was_asked(host: bytes | None) -> None:
    assert read([0, 9, [host, 2, b"id"]]).masters == [Endpoint("asked", 2)]


def test_a_server_of_an_unknown_host_has_no_slots() -> None:
    assert read([0, 9, [b"?", 2, b"id"]]).masters == []


def test_a_slot_gets_another_master() -> None:
    found = read([0, 9, [b"a", 1]])
    found.note(9, B)
    assert [found.owner_of(slot) for slot in (8, 9)] == [A, B]
    assert found.masters == [A, B]
    assert not found.is_as(read([0, 9, [b"a", 1]]))


def test_the_slots_that_a_master_loses_are_known() -> None:
    before = read([0, 9, [b"a", 1]], [10, 19, [b"b", 2]])
    after = read([10, 17, [b"b", 2]], [0, 7, [b"a", 1]], [8, 9, [b"b", 2]])
    assert before.lost_until(after) == {A: [8, 9]}
    assert after.lost_until(before) == {B: [8, 9]}
    assert before.is_as(read([10, 19, [b"b", 2]], [0, 9, [b"a", 1]]))
    assert not before.is_as(after)


def test_a_tag_is_in_a_slot_of_its_master() -> None:
    found = read([0, SLOTS // 2, [b"a", 1]], [SLOTS // 2 + 1, SLOTS - 1, [b"b", 2]])
    for owner in (A, B):
        assert found.owner_of(slot_of(f"x{{{found.tag_of(owner)}}}")) == owner


NODES = b"""\
a1 127.0.0.1:1@2 myself,master - 0 0 7 connected 0-9 [10->-b1]
b1 127.0.0.1:3@4,host master - 0 1426238316232 2 connected 10-19
"""


def test_the_epochs_of_servers_are_read() -> None:
    assert epochs_in(NODES) == epochs_in(NODES.decode()) == {b"a1": 7, b"b1": 2}


def with_epoch(owner: str, epoch: int) -> SlotMap:
    port = {"a": 1, "b": 2}[owner]
    place: list[object] = [owner.encode(), port, b"id"]
    return SlotMap.read([[0, 9, place]], ASKED, {b"id": epoch})


def test_a_map_is_older_if_a_master_of_it_was_replaced() -> None:
    old, new = with_epoch("a", 1), with_epoch("b", 3)
    assert old.is_older_than(new)
    assert not new.is_older_than(old)
    assert not with_epoch("a", 3).is_older_than(new)
    assert not old.is_older_than(with_epoch("a", 3))
    assert not read([0, 9, [b"a", 1, b"id"]]).is_older_than(read([0, 9, [b"b", 2, b"id"]]))


def test_a_master_is_replaced_by_a_server_that_was_none() -> None:
    a, b, c = [b"a", 1], [b"b", 2], [b"c", 3]
    before = read([0, 9, a], [10, 19, b])
    assert before.replaced_until(read([0, 9, c], [10, 19, b])) == [A]
    assert before.replaced_until(read([0, 19, b])) == []
    assert before.replaced_until(read([0, 4, c], [5, 9, a], [10, 19, b])) == []
    before.note(0, Endpoint("c", 3))
    assert before.replaced_until(read([0, 9, c], [10, 19, b])) == [A]
