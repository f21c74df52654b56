"""The description of the HTTP API names each route that is served, and what each answers.

schemathesis sends requests of its own making, and checks that no answer is outside of the
description: no other status, content type or member.
"""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

import msgspec
import pytest
import schemathesis
from aiohttp import web
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from megaphone import __version__
from megaphone.rest.openapi import document, path_of
from megaphone.rest.operations import OPERATIONS
from megaphone.rest.public import public_routes
from megaphone.rest.reads import PARAMETERS
from megaphone.wire import bodies
from tests.support.faces import HttpFace
from tests.support.process import BrokerProcess, broker_process

CHECKS = [
    content_type_conformance,
    not_a_server_error,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
]
EXAMPLES = 20
"""How many requests are made for each route."""


# -- Which routes


def routes() -> list[web.RouteDef]:
    no_broker: Any = None  # since nobody calls the routes
    return public_routes(no_broker, no_broker, no_broker, no_broker, with_pages=True)


def test_each_route_is_described_and_each_description_has_a_route() -> None:
    assert {(route.method, path_of(route)) for route in routes()} == OPERATIONS.keys()


def test_each_variable_of_a_path_is_described() -> None:
    for (_, path), row in OPERATIONS.items():
        named = [one.name for one in row.parameters if one.place == "path"]
        assert re.findall(r"\{(\w+)\}", path) == named


def test_the_parameters_of_a_read_are_those_that_it_knows() -> None:
    row = OPERATIONS["GET", "/read/{consumer_address}"]
    assert {one.name for one in row.parameters if one.place == "query"} == set(PARAMETERS)


def test_each_body_has_an_example_that_fits() -> None:
    for row in OPERATIONS.values():
        assert (row.body is None) == (row.example is None)
        if row.body is not None:
            msgspec.json.decode(msgspec.json.encode(row.example), type=row.body)


def test_no_two_routes_have_the_same_name() -> None:
    names = [row.name for row in OPERATIONS.values()]
    assert len(names) == len(set(names))


async def test_a_broker_serves_its_description(http: HttpFace) -> None:
    async with http.session.get(http.url("/openapi.json")) as response:
        assert (response.status, response.content_type) == (200, "application/json")
        served = await response.json()
    assert served == json.loads(document(routes()))
    assert served["openapi"] == "3.1.0"
    assert served["info"]["version"] == __version__
    schemathesis.openapi.from_dict(served).validate()  # by the schema of OpenAPI itself


def test_a_description_of_an_unknown_route_is_refused() -> None:
    no_handler: Any = None
    unknown = web.get("/nobody/{has:[^/]+}/described", no_handler)
    with pytest.raises(KeyError, match=re.escape("/nobody/{has}/described")):
        document([unknown])


# -- What is answered


def strict(description: dict[str, Any]) -> dict[str, Any]:
    """Return a description by which no member is allowed that it does not name."""
    for name, schema in description["components"]["schemas"].items():
        if schema["type"] == "object" and not name.endswith("Request"):
            schema.setdefault("additionalProperties", False)
    return description


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    folder = tmp_path_factory.mktemp("broker")
    limits: dict[str, Any] = {
        "poll_duration_millis": 50,
        "max_read_secs": 0.05,
        "buffer_capacity": 10_000,
    }
    with broker_process(folder, **limits) as broker:
        yield broker


@pytest.fixture(scope="module")
def described(broker: BrokerProcess) -> BaseSchema:
    with urlopen(f"{broker.url}/openapi.json") as answer:
        description = json.load(answer)
    schema = schemathesis.openapi.from_dict(strict(description))
    schema.config.update(base_url=broker.url)
    return schema


@pytest.fixture(scope="module")
def channel(broker: BrokerProcess) -> dict[str, str]:
    """The path variables of a channel that exists."""
    with urlopen(Request(f"{broker.url}/create", method="POST")) as answer:
        created = json.load(answer)
    return {
        "consumer_address": created["consumerAddress"],
        "producer_address": created["producerAddress"],
    }


@pytest.mark.parametrize(("method", "path"), OPERATIONS.keys())
def test_nothing_is_answered_that_is_not_described(
    described: BaseSchema, channel: dict[str, str], method: str, path: str
) -> None:
    operation = described[path][method]

    @settings(max_examples=EXAMPLES, database=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(), st.booleans())
    def answers_as_described(case: Case[Any], is_known: bool) -> None:
        if is_known:
            case.path_parameters.update(
                {name: channel[name] for name in case.path_parameters if name in channel}
            )
        case.call_and_validate(checks=CHECKS, timeout=5)

    answers_as_described()


async def test_a_line_of_a_read_is_an_event_as_described(http: HttpFace) -> None:
    channel = await http.create()
    context = f"00-{'a' * 32}-{'b' * 16}-01"
    await http.traced(context).write(channel.producer, "s", b'{"a": [1]}')
    url = http.url(f"/read/{channel.consumer}?limit=1&trace=true")
    async with http.session.get(url) as response:
        assert (
            response.content_type in OPERATIONS["GET", "/read/{consumer_address}"].answer.contents
        )
        line = await response.read()
    event = msgspec.json.decode(line, type=bodies.Event)
    assert (event.sid, event.body, event.traceparent) == ("s", {"a": [1]}, context)
    assert list(json.loads(line)) == [field.name for field in msgspec.structs.fields(bodies.Event)]
