"""How many connections there may be, and which requests are served beyond that."""

import json
from collections.abc import Awaitable, Callable

import pytest

from megaphone.app import App
from megaphone.rest.connection import protocol
from megaphone.rest.connection.limits import SPARE, Admission, Connections
from tests.support.connections import answer_of, connected, metric
from tests.support.raw_http import Broken, request_of
from tests.support.scenes import eventually

MOST = 4
HEALTH = ("/livez", "/readyz", "/readyz/create", "/metrics")

pytestmark = pytest.mark.timeout(20)


def connections_are(app: App, count: int) -> Callable[[], Awaitable[bool]]:
    async def are() -> bool:
        return await metric(app, "megaphone_connections") == count

    return are


@pytest.mark.settings(max_connections=MOST)
async def test_connections_beyond_the_limit_are_refused_and_counted(app: App) -> None:
    async with connected(app, MOST) as served, connected(app, SPARE) as spare:
        await eventually(connections_are(app, MOST + SPARE))
        for connection in (*spare, *served):
            head, body = await answer_of(connection, request_of("POST", "/create"))
            if connection in served:
                assert (head.status, "producerAddress" in json.loads(body)) == (200, True)
            else:
                assert (head.status, json.loads(body)["code"]) == (429, "LIMIT_EXCEEDED")
                assert "max_connections" in json.loads(body)["message"]
                assert head.headers["retry-after"] == "1"
                with pytest.raises(Broken):
                    await connection.receive()
        assert await metric(app, "megaphone_connections_refused") == SPARE
    await eventually(connections_are(app, 0))
    async with connected(app) as [connection]:
        head, _ = await answer_of(connection, request_of("POST", "/create"))
        assert head.status == 200


@pytest.mark.settings(max_connections=MOST)
@pytest.mark.parametrize("path", HEALTH)
async def test_a_node_with_all_its_connections_answers_probes(app: App, path: str) -> None:
    async with connected(app, MOST), connected(app) as [probe]:
        head, _ = await answer_of(probe, request_of("GET", path))
        assert (head.status, head.headers["connection"]) == (200, "close")
        with pytest.raises(Broken):
            await probe.receive()


@pytest.mark.settings(max_connections=MOST)
async def test_beyond_those_for_probes_the_answer_does_not_wait_for_a_request(app: App) -> None:
    async with connected(app, MOST + SPARE):
        await eventually(connections_are(app, MOST + SPARE))
        async with connected(app) as [refused]:
            head, body = await answer_of(refused)
            assert (head.status, json.loads(body)["code"]) == (429, "LIMIT_EXCEEDED")
            assert head.headers["connection"] == "close"
            with pytest.raises(Broken):
                await refused.receive()
        assert await metric(app, "megaphone_connections") == MOST + SPARE


@pytest.mark.settings(max_connections=MOST)
async def test_nobody_keeps_the_place_of_a_probe(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "SPARE_TIMEOUT_S", 0.1)
    async with connected(app, MOST), connected(app, SPARE) as spare:
        await eventually(connections_are(app, MOST))
        for connection in spare:
            with pytest.raises(Broken):
                await connection.receive()


def test_a_connection_counts_less_where_it_was_counted() -> None:
    proxies = {"192.0.2.1"}
    connections = Connections(per_ip=1, is_proxy=proxies.__contains__)
    _, of_proxy = connections.admit("192.0.2.1")
    proxies.clear()
    admission, network = connections.admit("192.0.2.1")
    connections.leave(of_proxy)  # which does not make room for another one
    assert admission is Admission.SERVED
    admission, spare = connections.admit("192.0.2.1")
    assert admission is Admission.SPARE_OF_ADDRESS
    proxies.add("192.0.2.1")
    connections.leave(network)
    connections.leave(spare)
    proxies.clear()
    assert connections.admit("192.0.2.1")[0] is Admission.SERVED
    assert (connections.open, connections.refused) == (1, 1)
