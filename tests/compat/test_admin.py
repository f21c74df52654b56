"""The management API answers as the original's does, byte for byte, or differs as is said here.

Only values that no two brokers share are made equal before they are compared: times and addresses.
"""

import re
from dataclasses import dataclass

import pytest

from tests.compat.brokers import Broker, Pair
from tests.compat.http import JSON, Answer, call_unix

TIME = re.compile(rb'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"')
ADDRESS = re.compile(rb"node\.[0-9A-Za-z]{50}\.1")
UNKNOWN = f"node.{'A' * 50}.1"
UNKNOWN_AGENT = f"other.{'A' * 50}.1"
UNSEALED = f"node.{'A' * 59}"


def comparable(answer: Answer) -> Answer:
    body = ADDRESS.sub(b"ADDRESS", TIME.sub(b'"TIME"', answer.body))
    return Answer(answer.status, answer.content_type, body)


def assert_same(theirs: Answer, ours: Answer) -> None:
    assert comparable(ours) == comparable(theirs)


def code_of(answer: Answer) -> str | None:
    """Return the code of an error; None when the answer has none."""
    code = answer.json().get("code") if answer.content_type == JSON else None
    return code if isinstance(code, str) else None


def test_a_node_without_channels_lists_the_same(brokers: Pair) -> None:
    for route in ["/vagent/list", "/channel/list"]:
        assert_same(brokers.theirs.get(route), brokers.ours.get(route))


def test_a_node_with_channels_lists_the_same(brokers: Pair) -> None:
    for broker in brokers.both():
        broker.create()
        broker.create()
    theirs, ours = [broker.get("/vagent/list") for broker in brokers.both()]
    assert_same(theirs, ours)
    assert b'"channelsCount":2' in ours.body
    for query in ["", "?skip=0&limit=50", "?skip=1", "?limit=1", "?limit=0", "?skip=2"]:
        route = f"/channel/list{query}"
        assert_same(brokers.theirs.get(route), brokers.ours.get(route))


@pytest.mark.parametrize("query", ["?skip=-1", "?skip=x", "?limit=", "?limit=1.0"])
def test_both_refuse_a_page_that_is_none(brokers: Pair, query: str) -> None:
    theirs, ours = [broker.get(f"/channel/list{query}") for broker in brokers.both()]
    assert (theirs.status, ours.status) == (400, 400)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"name":"second"}', JSON),
        (b'{"name":"2_nd-Agent"}', "application/json; charset=utf-8"),
        (b'{"name":"second","unknown":1}', JSON),
    ],
)
def test_an_agent_is_added_in_the_same_way(brokers: Pair, body: bytes, content_type: str) -> None:
    theirs, ours = [broker.post("/vagent/add", body, content_type) for broker in brokers.both()]
    assert_same(theirs, ours)
    assert ours.status == 201
    theirs_listed, ours_listed = [broker.agents() for broker in brokers.both()]
    assert ours_listed.keys() == theirs_listed.keys()
    assert len(ours_listed) == 2


@pytest.mark.parametrize("name", ["a b", "", "a.b", "é", "a/b", "a\\n"])
def test_both_refuse_a_bad_name_with_the_same_code(brokers: Pair, name: str) -> None:
    body = f'{{"name":"{name}"}}'.encode()
    theirs, ours = [broker.post("/vagent/add", body) for broker in brokers.both()]
    assert (theirs.status, code_of(theirs)) == (ours.status, code_of(ours)) == (400, "BAD_REQUEST")


def test_a_channel_is_disposed_of_in_the_same_way(brokers: Pair) -> None:
    theirs, ours = [broker.delete(broker.create().consumer) for broker in brokers.both()]
    assert_same(theirs, ours)
    assert ours.status == 200
    assert_same(brokers.theirs.get("/channel/list"), brokers.ours.get("/channel/list"))


@pytest.mark.parametrize("address", ["nodots", "node.short", UNSEALED])
def test_both_refuse_to_dispose_of_what_is_no_address(brokers: Pair, address: str) -> None:
    theirs, ours = [broker.delete(address) for broker in brokers.both()]
    assert (theirs.status, code_of(theirs)) == (ours.status, code_of(ours)) == (400, "BAD_REQUEST")


@pytest.mark.parametrize(
    ("method", "route", "status"),
    [
        ("GET", "/nowhere", 404),
        ("DELETE", "/channel/", 404),
        ("POST", "/vagent/list", 405),
        ("GET", "/vagent/add", 405),
        ("PUT", f"/channel/{UNKNOWN}", 405),
    ],
)
def test_other_routes_and_methods_have_the_same_status(
    brokers: Pair, method: str, route: str, status: int
) -> None:
    theirs, ours = [call_unix(broker.socket_path, method, route) for broker in brokers.both()]
    assert (theirs.status, ours.status) == (status, status)


@pytest.mark.parametrize("content_type", ["text/plain", None])
def test_both_take_only_json(brokers: Pair, content_type: str | None) -> None:
    statuses = [
        call_unix(broker.socket_path, "POST", "/vagent/add", b'{"name":"x"}', content_type).status
        for broker in brokers.both()
    ]
    assert statuses == [415, 415]


def test_both_refuse_an_unknown_parameter(brokers: Pair) -> None:
    route = "/channel/list?agents=node"
    answers = [call_unix(broker.socket_path, "GET", route) for broker in brokers.both()]
    assert [answer.status for answer in answers] == [400, 400]


@dataclass(frozen=True, slots=True)
class Difference:
    """One call that the brokers answer differently, and why ours does."""

    call: str
    body: str | None
    theirs: int
    ours: int
    why: str
    content_type: str | None = JSON

    def __str__(self) -> str:
        return self.why

    def made_on(self, broker: Broker) -> Answer:
        method, route = self.call.split(" ")
        body = None if self.body is None else self.body.encode()
        return call_unix(broker.socket_path, method, route, body, self.content_type)


ADD = "POST /vagent/add"
DIFFERENCES = [
    Difference(
        ADD, '{"name":"node"}', 201, 400, "theirs forgets the agent's key and its addresses"
    ),
    Difference(ADD, f'{{"name":"{"n" * 101}"}}', 201, 400, "names are bounded"),
    Difference(ADD, '["second"]', 201, 400, "a body is an object"),
    Difference(ADD, '{"name":1}', 422, 400, "what does not fit is a bad request"),
    Difference(ADD, "{}", 422, 400, "what is missing is a bad request"),
    Difference(ADD, '{"name":"a","name":"b"}', 422, 201, "the last of two values counts"),
    Difference(f"DELETE /channel/{UNKNOWN}", None, 500, 404, "not to know a channel is no bug"),
    Difference(f"DELETE /channel/{UNKNOWN_AGENT}", None, 500, 404, "nor not to know an agent"),
    Difference("GET /channel/list?limit=9999999999", None, 200, 400, "numbers are bounded"),
    Difference("GET /channel/list?x=1", None, 200, 400, "an unknown parameter is refused"),
    Difference("HEAD /vagent/list", None, 200, 405, "HEAD is not answered"),
]


@pytest.mark.parametrize("difference", DIFFERENCES, ids=str)
def test_a_known_difference_is_as_it_is_known(brokers: Pair, difference: Difference) -> None:
    theirs, ours = [difference.made_on(broker) for broker in brokers.both()]
    assert (theirs.status, ours.status) == (difference.theirs, difference.ours)


def test_only_theirs_disposes_by_the_producer_address(brokers: Pair) -> None:
    theirs, ours = [broker.delete(broker.create().producer) for broker in brokers.both()]
    assert (theirs.status, ours.status) == (200, 400)


def test_both_dispose_whatever_the_features_in_the_address(brokers: Pair) -> None:
    altered = [f"{broker.create().consumer[:-1]}3" for broker in brokers.both()]
    assert_same(brokers.theirs.delete(altered[0]), brokers.ours.delete(altered[1]))
    assert brokers.ours.get("/channel/list").json() == []
