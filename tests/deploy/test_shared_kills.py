"""Nodes that share a store are killed one after the other behind nginx, while clients go on."""

import asyncio
import os
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.nginx import SHARED, needs_nginx, nginx, shared_nodes
from tests.support.ports import free_port
from tests.support.process import BrokerProcess, broker_process
from tests.support.raw_http import Node
from tests.support.redis_server import redis_server
from tests.support.shared_runs import Fleet, run_under

pytestmark = [needs_nginx, pytest.mark.xdist_group("nodes behind nginx")]

IS_LONG = bool(os.environ.get("MEGAPHONE_TESTED_LONG"))
KILLS, PAUSE_S, SEEDS = (6, 5.0, 10) if IS_LONG else (3, 2.0, 4)
NODES = 3


class Proxied(Fleet):
    """Nodes behind nginx: all calls go to nginx, and a node that is killed is started again."""

    is_proxied = True

    def __init__(self, directory: Path, store: str, stack: ExitStack) -> None:
        super().__init__(directory, store, random.Random(1))
        self._home = directory
        self._store = store
        self._own = stack
        self._ports = [(free_port(), free_port()) for _ in range(NODES)]
        self._running: dict[int, BrokerProcess] = {}
        for number in range(NODES):
            self._start(number)
        proxy = stack.enter_context(nginx(directory / "nginx", shared_nodes(self._ports), SHARED))
        self._proxy = Node(proxy.http_port, proxy.grpc_port)

    def _start(self, number: int) -> None:
        home = self._home / str(number)
        home.mkdir(exist_ok=True)
        http_port, grpc_port = self._ports[number]
        self._running[number] = self._own.enter_context(
            broker_process(
                home,
                store=self._store,
                poll_duration_millis=400,
                address=f"127.0.0.1:{http_port}",
                grpc_address=f"127.0.0.1:{grpc_port}",
            )
        )

    def any(self) -> Node:
        return self._proxy

    def kill_and_start(self, number: int) -> None:
        killed = self._running[number].process
        killed.kill()
        killed.wait()
        self._start(number)


@contextmanager
def proxied(directory: Path) -> Iterator[Proxied]:
    with ExitStack() as stack:
        store = stack.enter_context(redis_server())
        yield Proxied(directory, store.text_url, stack)


async def test_nodes_that_are_killed_behind_nginx_lose_nothing(tmp_path: Path) -> None:
    with proxied(tmp_path) as fleet:

        async def kill() -> None:
            for number in range(KILLS):
                await asyncio.sleep(PAUSE_S)
                await asyncio.to_thread(fleet.kill_and_start, number % NODES)

        results = await run_under(kill, fleet, range(SEEDS))
    wrong = [one.explanation() for one in results if not one.is_as_promised]
    assert not wrong, "\n".join(wrong[:3])
    assert not any(one.ended for one in results)
    accepted = sum(one.verdict.taken for one in results)
    pause_s = max(one.longest_pause_s for one in results)
    print(f"{len(results)} channels, {KILLS} kills, {accepted} events, longest {pause_s:.1f} s")
