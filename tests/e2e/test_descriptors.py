"""A broker whose descriptors idle clients want to take keeps some for its operator."""

import asyncio
import json
import resource
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import grpc

from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from tests.support.process import MEGAPHONE, BrokerProcess, broker_process, environment

MEGACTL = str(Path(MEGAPHONE).with_name("megactl"))
DESCRIPTORS = 200
IDLE = 300
"""Idle clients of each face, more than there are descriptors."""


def with_descriptors(folder: Path, soft: int, hard: int) -> str:
    """Return a command which starts a broker that may have so many descriptors."""
    command = folder / "limited"
    command.write_text(
        f'#!/bin/sh\nulimit -Sn {soft} && ulimit -Hn {hard} && exec {MEGAPHONE} "$@"\n'
    )
    command.chmod(0o755)
    return str(command)


@asynccontextmanager
async def idle_clients(*ports: int) -> AsyncIterator[None]:
    """Hold many connections to each port that say nothing."""
    clients = []
    try:
        for port in ports:
            for _ in range(IDLE):
                client = socket.socket()
                client.setblocking(False)
                clients.append(client)
                await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
        yield
    finally:
        for client in clients:
            client.close()


async def agents(folder: Path) -> list[str]:
    """Ask `megactl` for the names of the agents."""
    done = await asyncio.to_thread(
        subprocess.run,
        [MEGACTL, "-o", "json", "list-agents"],
        cwd=folder,
        env=environment(folder, {}),
        capture_output=True,
        timeout=40,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return [agent["name"] for agent in json.loads(done.stdout)]


async def probe(session: aiohttp.ClientSession, broker: BrokerProcess) -> None:
    """Ask whether the broker lives until one of the idle clients has given up a place."""
    status = 0
    async with asyncio.timeout(30):
        while status != 200:
            async with session.get(f"{broker.url}/livez") as response:
                status = response.status
            assert status in (200, 429)


async def make_channel(broker: BrokerProcess) -> None:
    """Make a channel over each face, however long it takes until there is room."""
    async with asyncio.timeout(30):
        async with aiohttp.ClientSession() as session:
            status = 0
            while status != 200:
                async with session.post(f"{broker.url}/create") as response:
                    status = response.status
                assert status in (200, 429)
        async with grpc.aio.insecure_channel(broker.grpc_target) as connection:
            stub = ChannelServiceStub(connection)
            await stub.CreateChannel(pb.CreateChannelRequest(), wait_for_ready=True)


async def test_idle_clients_do_not_lock_the_operator_out(tmp_path: Path) -> None:
    command = with_descriptors(tmp_path, DESCRIPTORS, DESCRIPTORS)
    with broker_process(tmp_path, command, agent="node", agent_warmup_secs=0) as broker:
        async with idle_clients(broker.http_port, broker.grpc_port):
            assert await agents(tmp_path) == ["node"]
            async with aiohttp.ClientSession() as session:
                await probe(session, broker)
                async with session.post(f"{broker.url}/create") as response:
                    assert (response.status, response.headers["Retry-After"]) == (429, "1")
                    assert (await response.json())["code"] == "LIMIT_EXCEEDED"
        await make_channel(broker)


async def test_more_connections_than_there_are_descriptors_for_are_not_promised(
    tmp_path: Path,
) -> None:
    command = with_descriptors(tmp_path, DESCRIPTORS, DESCRIPTORS)
    with broker_process(tmp_path, command, agent="node", max_connections=10_000) as broker:
        async with idle_clients(broker.http_port, broker.grpc_port):
            assert await agents(tmp_path) == ["node"]


async def test_a_broker_takes_all_descriptors_that_it_may(tmp_path: Path) -> None:
    command = with_descriptors(tmp_path, DESCRIPTORS, 1_000)
    with broker_process(tmp_path, command) as broker:
        assert resource.prlimit(broker.process.pid, resource.RLIMIT_NOFILE) == (1_000, 1_000)
