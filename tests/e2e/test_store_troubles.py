"""What clients and probes see of a node when its shared store is full, or away."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.process import BrokerProcess, broker_process
from tests.support.redis_server import RedisServer, redis_server

WITHIN_S = 30.0
BODY = "x" * 100_000
CHANNELS = 200
SWEPT_WITHIN_S = 20.0


async def call(http: aiohttp.ClientSession, method: str, path: str, **options: Any) -> Any:
    async with http.request(method, path, **options) as response:
        return response.status, await response.json(content_type=None), response.headers


async def create(http: aiohttp.ClientSession) -> tuple[str, str]:
    status, channel, _ = await call(http, "POST", "/create")
    assert status == 200, channel
    return f"/write/{channel['producerAddress']}/s", f"/read/{channel['consumerAddress']}"


async def test_a_full_store_refuses_events_and_can_be_read_empty(tmp_path: Path) -> None:
    with (
        redis_server() as server,
        broker_process(tmp_path, store=server.text_url, channel_ttl_secs=2) as node,
    ):
        async with aiohttp.ClientSession(node.url) as http:
            write, read = await create(http)
            used = int(server.info("memory")["used_memory"])
            server.call("CONFIG", "SET", "maxmemory", used + 3_000_000)
            stored = 0
            while (answer := await call(http, "POST", write, json=BODY))[0] == 201:
                stored += 1
            assert (answer[0], answer[1]["code"]) == (429, "LIMIT_EXCEEDED")
            assert "no memory left" in answer[1]["message"]
            assert "Retry-After" in answer[2]
            async with http.get(f"{read}?wait_ms=0") as response:
                lines = [line async for line in _lines(response)]
            assert len(lines) == stored > 10
            async with asyncio.timeout(WITHIN_S):  # when the channel has ended, there is room
                while (await call(http, "POST", "/create"))[0] != 200:
                    pass


async def test_a_full_store_is_swept_as_fast_as_another(tmp_path: Path) -> None:
    """It refuses the claims of sweepers. There are 64 shards, and a sweep each second."""
    with (
        redis_server() as server,
        broker_process(tmp_path, store=server.text_url, channel_ttl_secs=2) as node,
    ):
        async with aiohttp.ClientSession(node.url) as http:
            for _ in range(CHANNELS):
                await create(http)
            server.call("CONFIG", "SET", "maxmemory", 1)
            begun = asyncio.get_running_loop().time()
            keys = CHANNELS
            while keys and asyncio.get_running_loop().time() < begun + SWEPT_WITHIN_S:
                await asyncio.sleep(0.2)
                keys = len(server.call("KEYS", "megaphone:{*"))
                keys -= len(server.call("KEYS", "megaphone:{all}*"))
        assert keys == 0


async def _lines(response: aiohttp.ClientResponse) -> Any:
    rest = b""
    async for chunk in response.content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line


async def test_a_store_that_is_away_is_told_to_clients_and_probes(tmp_path: Path) -> None:
    with (
        redis_server(appendonly="yes", appendfsync="always") as server,
        broker_process(tmp_path, store=server.text_url) as node,
    ):
        await _goes_away_and_comes_back(server, node)


async def _goes_away_and_comes_back(server: RedisServer, node: BrokerProcess) -> None:
    async with aiohttp.ClientSession(node.url) as http:
        write, read = await create(http)
        await call(http, "POST", write, json=1)
        server.kill()
        status, answer, headers = await call(http, "POST", write, json=2)
        assert (status, answer["code"]) == (503, "STORE_UNAVAILABLE")
        assert "Retry-After" in headers
        async with asyncio.timeout(WITHIN_S):
            while (await call(http, "GET", "/readyz"))[0] == 200:
                pass
        assert (await call(http, "GET", "/livez"))[0] == 200
        await asyncio.to_thread(server.start)
        async with asyncio.timeout(WITHIN_S):
            while (await call(http, "GET", "/readyz"))[0] != 200:
                pass
        assert (await call(http, "POST", write, json=3))[0] == 201
        async with http.get(f"{read}?wait_ms=0") as response:
            bodies = [line async for line in _lines(response)]
        assert len(bodies) == 2
