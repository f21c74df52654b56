"""Seeded runs against nodes that share a store, which have troubles of their own."""

import asyncio
import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.checker import Kind
from tests.support.fault_runs import Scenario, run_all
from tests.support.process import BrokerProcess, broker_process
from tests.support.raw_http import Node
from tests.support.redis_cluster import eventually, role_of
from tests.support.redis_server import RedisServer, redis_server, sentinel
from tests.support.settings import IS_LONG
from tests.support.shared_runs import Fleet, Result, Run, run_under

WINDOW_S = 0.4
MORE = int(os.environ.get("MEGAPHONE_STORE_RUNS", "1"))
"""How many times as much trouble as in CI there is."""
SEEDS_OF_EACH_KIND = 10 * MORE
NEW_MASTER_WITHIN_S = 90.0
"""The Sentinel needs some seconds for it, and many more on a busy machine."""


@dataclass(frozen=True)
class AnyNode:
    """The ports of any of several nodes: each time of another one. Fits where a `Node` does."""

    nodes: list[Node]
    host: str = "127.0.0.1"

    @property
    def http_port(self) -> int:
        return random.choice(self.nodes).http_port

    @property
    def grpc_port(self) -> int:
        return random.choice(self.nodes).grpc_port

    @property
    def grpc_target(self) -> str:
        return random.choice(self.nodes).grpc_target


@contextmanager
def nodes_with_a_store(directory: Path, count: int) -> Iterator[tuple[RedisServer, AnyNode]]:
    with redis_server() as server, ExitStack() as stack:
        nodes = []
        for number in range(count):
            home = directory / str(number)
            home.mkdir()
            broker: BrokerProcess = stack.enter_context(
                broker_process(
                    home, store=server.text_url, poll_duration_millis=round(WINDOW_S * 1000)
                )
            )
            nodes.append(Node(broker.http_port, broker.grpc_port))
        yield server, AnyNode(nodes)


@pytest.mark.parametrize("kind", Kind)
async def test_seeded_runs_over_three_nodes_are_as_promised(kind: Kind, tmp_path: Path) -> None:
    scenarios = [
        Scenario.draw(kind, 20_000 + seed, window_s=WINDOW_S) for seed in range(SEEDS_OF_EACH_KIND)
    ]
    with nodes_with_a_store(tmp_path, 3) as (_, node):
        finished = await run_all(node, scenarios, at_once=4)  # type: ignore[arg-type]
    assert len(finished) == SEEDS_OF_EACH_KIND
    wrong = [run.explanation() for run in finished if not run.is_as_promised]
    assert not wrong, "\n".join(wrong[:3])


def blame(results: list[Result]) -> str:
    """Describe the first runs that were not as promised; empty if there are none."""
    return "\n".join([one.explanation() for one in results if not one.is_as_promised][:3])


@contextmanager
def fleet_of(directory: Path, store: str, count: int, **settings: object) -> Iterator[Fleet]:
    with Fleet(directory, store, random.Random(1), **settings) as fleet:
        for _ in range(count):
            fleet.start()
        yield fleet


async def test_nodes_that_are_killed_lose_nothing(tmp_path: Path) -> None:
    with redis_server() as server, fleet_of(tmp_path, server.text_url, 3) as fleet:

        async def kill_nodes() -> None:
            for _ in range(3 * MORE):
                await asyncio.sleep(0.7)
                fleet.kill()
                await asyncio.to_thread(fleet.start)

        results = await run_under(kill_nodes, fleet, range(4))
    assert not blame(results), blame(results)
    assert not any(one.ended for one in results)


async def test_connections_to_the_store_that_break_lose_nothing(tmp_path: Path) -> None:
    with redis_server() as server, fleet_of(tmp_path, server.text_url, 2) as fleet:

        async def break_connections() -> None:
            for _ in range(MORE):
                for kind in ("pubsub", "normal", "pubsub", "pubsub", "normal") * 3:
                    await asyncio.sleep(0.3)
                    server.call("CLIENT", "KILL", "TYPE", kind)
                    if kind == "normal":
                        server.call("FUNCTION", "FLUSH")
                # A node that cannot reach the store for longer than `SILENT_S` counts as dead.
                await asyncio.sleep(2)

        results = await run_under(break_connections, fleet, range(4))
    assert not blame(results), blame(results)
    assert not any(one.ended for one in results)


@pytest.mark.parametrize("frozen_s", [1.0, 4.0])
async def test_a_store_that_freezes_loses_nothing(tmp_path: Path, frozen_s: float) -> None:
    with redis_server() as server, fleet_of(tmp_path, server.text_url, 2) as fleet:

        async def freeze() -> None:
            for _ in range(2 * MORE):
                await asyncio.sleep(1)
                server.freeze()
                await asyncio.sleep(frozen_s)
                server.thaw()
            await asyncio.sleep(1)

        results = await run_under(freeze, fleet, range(3))
    assert not blame(results), blame(results)
    assert not any(one.ended for one in results)


async def test_a_store_that_restarts_with_its_file_loses_nothing(tmp_path: Path) -> None:
    options = {"appendonly": "yes", "appendfsync": "always"}
    with redis_server(**options) as server, fleet_of(tmp_path, server.text_url, 2) as fleet:

        async def restart() -> None:
            for _ in range(2 * MORE):
                await asyncio.sleep(1)
                server.kill()
                await asyncio.to_thread(server.start)
            await asyncio.sleep(1)

        results = await run_under(restart, fleet, range(3))
    assert not blame(results), blame(results)
    assert not any(one.ended for one in results)


async def test_a_store_that_loses_everything_ends_its_channels(tmp_path: Path) -> None:
    with redis_server() as server, fleet_of(tmp_path, server.text_url, 2) as fleet:

        async def restart() -> None:
            await asyncio.sleep(1)
            server.kill()
            await asyncio.to_thread(server.start)
            await asyncio.sleep(1)

        results = await run_under(restart, fleet, range(2))
        assert all(one.ended for one in results)
        over = asyncio.Event()
        over.set()
        after = await Run(fleet, Kind.RESUMING, 9).run(over)
    assert not blame([after]), blame([after])


# -- A new master


@contextmanager
def replicated() -> Iterator[tuple[list[RedisServer], str]]:
    """Run a master, two replicas and a Sentinel. Yields the servers, and the URL of the store."""
    with ExitStack() as stack:
        master = stack.enter_context(redis_server())
        place = f"127.0.0.1 {master.port}"
        replicas = [stack.enter_context(redis_server(replicaof=place)) for _ in range(2)]
        watcher = stack.enter_context(sentinel(master))
        yield [master, *replicas], f"redis+sentinel://127.0.0.1:{watcher.port}/mp"


def master_of(servers: list[RedisServer]) -> RedisServer:
    """Return the server that says that it is the master, and has two replicas."""
    until = time.monotonic() + NEW_MASTER_WITHIN_S
    while time.monotonic() < until:
        for server in servers:
            with suppress(OSError):
                replication = server.info("replication")
                if replication["role"] == "master" and replication["connected_slaves"] == "2":
                    return server
        time.sleep(0.05)
    raise AssertionError("there is no master with two replicas")


@pytest.mark.timeout((2 * MORE + 1) * NEW_MASTER_WITHIN_S)
@pytest.mark.parametrize("wait_replicas", [0, 1])
async def test_no_loss_at_a_new_master_is_untold(tmp_path: Path, wait_replicas: int) -> None:
    with replicated() as (servers, url):
        master_of(servers)
        settings = {"store_wait_replicas": wait_replicas}
        with fleet_of(tmp_path, url, 2, **settings) as fleet:

            async def kill_masters() -> None:
                for _ in range(2 * MORE):
                    await asyncio.sleep(1)
                    master = await asyncio.to_thread(master_of, servers)
                    master.kill()
                    await asyncio.sleep(3)
                    await asyncio.to_thread(master.start)

            results = await run_under(kill_masters, fleet, range(3), store_may_go_back=True)
    assert not blame(results), blame(results)
    if wait_replicas:
        assert not any(one.verdict.lost_told or one.ended for one in results)


@pytest.mark.skipif(not IS_LONG and MORE == 1, reason="takes long")
@pytest.mark.timeout((2 * MORE + 1) * NEW_MASTER_WITHIN_S)
async def test_no_loss_at_a_master_that_stood_still_is_untold(tmp_path: Path) -> None:
    """It goes on when another one has taken over, and is a master itself for some seconds more."""
    with replicated() as (servers, url):
        master_of(servers)
        with fleet_of(tmp_path, url, 2) as fleet:

            def freeze_a_master() -> None:
                frozen = master_of(servers)
                others = [one for one in servers if one is not frozen]
                frozen.freeze()
                try:
                    eventually(lambda: "master" in map(role_of, others))
                finally:
                    frozen.thaw()

            async def freeze_masters() -> None:
                for _ in range(2 * MORE):
                    await asyncio.sleep(1)
                    await asyncio.to_thread(freeze_a_master)
                await asyncio.sleep(1)

            results = await run_under(freeze_masters, fleet, range(3), store_may_go_back=True)
    assert not blame(results), blame(results)
