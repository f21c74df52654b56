"""The port on which operators ask, apart from the port for clients."""

import aiohttp
import pytest

from megaphone.app import App
from megaphone.rest.probes import HEALTH_PATHS

FOR_OPERATORS = ["/metrics", "/agents", "/agents/node"]

pytestmark = pytest.mark.settings(ops_address="127.0.0.1:0")


async def status(port: int | None, path: str, method: str = "GET") -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, f"http://127.0.0.1:{port}{path}") as answer,
    ):
        return answer.status


@pytest.mark.parametrize("path", [*HEALTH_PATHS, *FOR_OPERATORS])
async def test_it_answers_the_questions_of_operators(app: App, path: str) -> None:
    assert await status(app.ops_port, path) in (200, 204)


@pytest.mark.parametrize("path", FOR_OPERATORS)
async def test_they_are_not_on_the_port_for_clients(app: App, path: str) -> None:
    assert await status(app.http_port, path) == 404


@pytest.mark.parametrize("path", sorted(HEALTH_PATHS - {"/metrics"}))
async def test_whether_the_node_is_well_is_on_both(app: App, path: str) -> None:
    assert await status(app.http_port, path) == 200


async def test_clients_are_not_served_there(app: App) -> None:
    assert await status(app.ops_port, "/create", "POST") == 404
    assert await status(app.ops_port, "/read/x") == 404
    assert await status(app.ops_port, "/") == 404


async def test_pages_do_not_lead_to_what_is_not_there(app: App) -> None:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{app.http_port}") as session:
        async with session.get("/") as answer:
            assert 'href="metrics"' not in await answer.text()
        async with session.get("/openapi.json") as answer:
            assert "/metrics" not in (await answer.json())["paths"]


@pytest.mark.settings(max_connections=1)
async def test_its_connections_are_not_those_of_clients(app: App) -> None:
    async with aiohttp.ClientSession(f"http://127.0.0.1:{app.http_port}") as session:
        async with session.post("/create") as answer:
            assert answer.status == 200
        for _ in range(20):
            assert await status(app.ops_port, "/metrics") == 200


@pytest.mark.settings(ops_address=None)
async def test_without_it_everything_is_on_one_port(app: App) -> None:
    assert app.ops_port is None
    for path in [*HEALTH_PATHS, *FOR_OPERATORS]:
        assert await status(app.http_port, path) in (200, 204)
