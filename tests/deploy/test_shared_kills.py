"""Nodes that share a store are killed one after the other behind nginx, while clients go on.

Three nodes, and for a minute each five seconds one of them is killed and started again, under 201
channels; in a short run fewer and faster. It prints what it has counted (`pytest -s`).
"""

import asyncio
import random
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.nginx import SHARED, needs_nginx, nginx, shared_nodes
from tests.support.placed_nodes import PlacedNodes
from tests.support.raw_http import Node
from tests.support.redis_server import redis_server
from tests.support.settings import IS_LONG
from tests.support.shared_runs import Fleet, run_under

pytestmark = [
    needs_nginx,
    pytest.mark.timeout(300),
    pytest.mark.group("nodes behind nginx"),
]

KILLS, EVERY_S = (12, 5.0) if IS_LONG else (6, 1.5)
CHANNELS_OF_EACH_KIND, WRITES_EVERY_S = (67, 2.0) if IS_LONG else (10, 0.1)
NODES = 3
READ_MILLIS = 2_000 if IS_LONG else 400


class Proxied(Fleet):
    """All calls go to nginx."""

    is_proxied = True

    def __init__(self, directory: Path, store: str, proxy: Node) -> None:
        super().__init__(directory, store, random.Random(1))
        self._proxy = proxy

    def any(self) -> Node:
        return self._proxy


async def test_nodes_that_are_killed_behind_nginx_lose_nothing(tmp_path: Path) -> None:
    with ExitStack() as stack:
        store = stack.enter_context(redis_server())
        nodes = PlacedNodes(stack, tmp_path, store.text_url, poll_duration_millis=READ_MILLIS)
        proxy = stack.enter_context(nginx(tmp_path / "nginx", shared_nodes(nodes.ports), SHARED))
        fleet = Proxied(tmp_path, store.text_url, Node(proxy.http_port, proxy.grpc_port))

        async def kill() -> None:
            loop = asyncio.get_running_loop()
            for number in range(KILLS):
                next_at = loop.time() + EVERY_S
                await asyncio.to_thread(nodes.kill_and_start, number % NODES)
                await asyncio.sleep(max(0.0, next_at - loop.time()))

        results = await run_under(
            kill, fleet, range(CHANNELS_OF_EACH_KIND), writes_every_s=WRITES_EVERY_S
        )
    wrong = [one.explanation() for one in results if not one.is_as_promised]
    assert not wrong, "\n".join(wrong[:3])
    assert not any(one.ended for one in results)
    print(
        f"{len(results)} channels, {KILLS} kills,"
        f" {sum(one.verdict.taken for one in results)} events, longest write"
        f" {max(one.longest_write_s for one in results):.1f} s, longest way to a reader"
        f" {max(one.longest_read_s for one in results):.1f} s"
    )
