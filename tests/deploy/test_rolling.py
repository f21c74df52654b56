"""Three nodes behind nginx are replaced one by one, while clients write and read.

200 channels with one event a second each until all nodes are replaced, and readers of each kind; in
a short run 96. It prints what it has counted (`pytest -s`).
"""

import asyncio
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import cycle, islice, product
from pathlib import Path

import pytest

from tests.support.checker import Kind, summary
from tests.support.cluster_load import Channel, clients
from tests.support.nginx import needs_nginx, nginx, static_nodes
from tests.support.ports import free_port
from tests.support.process import MEGAPHONE, BrokerProcess, broker_process, environment
from tests.support.settings import IS_LONG

pytestmark = [
    needs_nginx,
    pytest.mark.timeout(180),
    pytest.mark.group("nodes behind nginx"),
]

HOSTS = ["127.0.0.11", "127.0.0.12", "127.0.0.13"]
CHANNELS = 200 if IS_LONG else 96
EVERY_S = 1.0
SETTLE_S = 3.0 if IS_LONG else 2.0
"""How long clients go on between two replacements, and after the last."""
STOPS_WITHIN_S = 40
KINDS = list(product(Kind, ("ndjson", "grpc", "sse")))


class Cluster:
    """Nodes that have the same ports, each on an address of its own."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self.ports = free_port(), free_port()
        self._starts = 0
        self.nodes = {host: self.start(host) for host in HOSTS}

    def start(self, host: str) -> BrokerProcess:
        """Start a node; its agent has a new name, and it hands over to the next one."""
        self._starts += 1
        folder = self.folder(host)
        folder.mkdir(exist_ok=True)
        next_host = HOSTS[(HOSTS.index(host) + 1) % len(HOSTS)]
        return self._stack.enter_context(
            broker_process(
                folder,
                address=f"{host}:{self.ports[0]}",
                grpc_address=f"{host}:{self.ports[1]}",
                drain_target=self.target(next_host),
                poll_duration_millis=5_000,
                **{"nodes.secret": "the-secret-of-the-nodes-0123456789"},
            )
        )

    def folder(self, host: str) -> Path:
        return self._folder / host

    def target(self, host: str) -> str:
        return f"http://{host}:{self.ports[1]}"

    def replace(self, host: str) -> None:
        """Stop a node, which hands its agents over, and start one where it was."""
        process = self.nodes[host].process
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOPS_WITHIN_S) == 0
        self.nodes[host] = self.start(host)

    def drain(self, host: str, target: str) -> None:
        """Move the agents of a node by hand."""
        folder = self.folder(host)
        done = subprocess.run(
            [MEGAPHONE, "ctl", "drain", "--target", self.target(target)],
            cwd=folder,
            env=environment(folder, {}),
            capture_output=True,
            text=True,
            timeout=STOPS_WITHIN_S,
        )
        assert done.returncode == 0, done.stderr


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(stack, tmp_path)


async def test_nodes_are_replaced_one_by_one_and_nobody_loses_anything(
    cluster: Cluster, tmp_path: Path
) -> None:
    nodes = static_nodes(HOSTS, *cluster.ports)
    with nginx(tmp_path / "nginx", nodes) as proxy:
        async with clients(proxy.url, proxy.grpc_target) as shared:
            kinds = [
                (kind, protocol)
                for kind, protocol in KINDS
                if (kind, protocol) != (Kind.ACKNOWLEDGING, "sse")  # nothing a browser can do
            ]
            channels = [
                Channel(shared, kind, protocol) for kind, protocol in islice(cycle(kinds), CHANNELS)
            ]
            for channel in channels:
                await channel.create()
            all_replaced = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                writes = [
                    group.create_task(channel.write(EVERY_S, all_replaced)) for channel in channels
                ]
                for channel in channels:
                    group.create_task(channel.read())
                await replace_each(cluster)
                all_replaced.set()
                await asyncio.wait(writes)
                shared.writing_is_over.set()
    for kind in Kind:
        of_kind = [channel.verdict() for channel in channels if channel.kind is kind]
        print(f"{kind.value}: {summary(of_kind)}")
        assert [str(anomaly) for verdict in of_kind for anomaly in verdict.anomalies] == []
        if kind is not Kind.PLAIN:
            assert all(v.lost_told == v.lost_beyond_ring == 0 for v in of_kind)
    print("met:", dict(shared.trouble))
    for channel in channels:
        assert channel.verdict().taken == len(channel.history.writes) > 0


async def replace_each(cluster: Cluster) -> None:
    first, second, third = HOSTS
    await asyncio.sleep(SETTLE_S)
    await asyncio.to_thread(cluster.replace, first)
    await asyncio.sleep(SETTLE_S)
    await asyncio.to_thread(cluster.drain, second, third)
    await asyncio.sleep(SETTLE_S)
    await asyncio.to_thread(cluster.replace, second)
    await asyncio.to_thread(cluster.replace, third)
    await asyncio.sleep(SETTLE_S)
