"""Nodes that share a store are stopped one after the other behind nginx, while clients go on.

They have 96 channels, each with one event a second and a reader, in a long run 200. A client over
HTTP does not repeat what is refused, and one over gRPC only as docs/deploy.md says.
"""

import asyncio
from contextlib import ExitStack
from itertools import cycle, islice, product
from pathlib import Path

import pytest

from tests.support.checker import Kind, summary
from tests.support.cluster_load import Channel, clients
from tests.support.nginx import SHARED, needs_nginx, nginx, shared_nodes
from tests.support.placed_nodes import PlacedNodes
from tests.support.redis_server import redis_server
from tests.support.settings import IS_LONG

pytestmark = [
    needs_nginx,
    pytest.mark.timeout(180),
    pytest.mark.group("nodes behind nginx"),
]

NODES = 3
CHANNELS = 200 if IS_LONG else 96
ROUNDS = 3 if IS_LONG else 1
"""How often each node is replaced."""
EVERY_S = 1.0
SETTLE_S = 2.0
KINDS = [
    (kind, protocol)
    for kind, protocol in product(Kind, ("ndjson", "grpc", "sse"))
    if (kind, protocol) != (Kind.ACKNOWLEDGING, "sse")  # nothing a browser can do
]


async def test_nodes_that_stop_behind_nginx_refuse_no_call(tmp_path: Path) -> None:
    with ExitStack() as stack:
        store = stack.enter_context(redis_server())
        nodes = PlacedNodes(
            stack,
            tmp_path,
            store.text_url,
            poll_duration_millis=5_000,
            grpc_connection_age_secs=2,
        )
        proxy = stack.enter_context(nginx(tmp_path / "nginx", shared_nodes(nodes.ports), SHARED))
        async with clients(proxy.url, proxy.grpc_target) as shared:
            channels = [
                Channel(shared, kind, protocol) for kind, protocol in islice(cycle(KINDS), CHANNELS)
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
                for number in range(ROUNDS * NODES):
                    await asyncio.sleep(SETTLE_S)
                    await asyncio.to_thread(nodes.replace, number % NODES)
                await asyncio.sleep(SETTLE_S)
                all_replaced.set()
                await asyncio.wait(writes)
                shared.writing_is_over.set()
    verdicts = [channel.verdict() for channel in channels]
    print(f"{ROUNDS * NODES} nodes replaced, {CHANNELS} channels: {summary(verdicts)}")
    assert not shared.trouble
    assert [str(anomaly) for verdict in verdicts for anomaly in verdict.anomalies] == []
    assert not any(verdict.lost_told for verdict in verdicts)
    for channel in channels:
        assert channel.verdict().taken == len(channel.history.writes) > 0
