"""Lets many channels of a shared store come and go, and looks for what stays behind.

    python -m tests.churn [--channels 100000] [--seconds 600]

Clients create channels, write to each of them and read some; nobody removes one. A channel lives
for a second after its last use. The script prints the memory of the node and of the store while
this goes on, and afterwards every key that is left. The exit code is 0 if the memory of the node is
flat, that is, if the mean of the last quarter is at most 5 % above that of the second; if the store
has as much memory as before the first channel; and if no key of a channel is left. How much the
store has meanwhile says only how many channels live at a time.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

import aiohttp

from tests.support.process import MEGAPHONE, BrokerProcess, broker_process
from tests.support.redis_server import RedisServer, redis_server

CLIENTS = 40
TTL_S = 1
SAMPLE_S = 2.0
REPORT_EVERY = 5
READ_ONE_IN = 4
GROWTH_ALLOWED = 0.05
REST_ALLOWED = 500_000
"""How many bytes more than before the store may have afterwards, for connections and tables."""
SWEEP_AT_MOST_S = 60.0
GONE = 404
"""The answer if a busy machine has taken longer than the TTL."""
AWAY = 503
"""The answer if a busy machine has taken longer than the store may take."""
KEPT = ("{all}:nodes", "{all}:meta", "agents", "agents:used", "confirmed")
"""What a store keeps without channels, behind the prefix."""


class Client:
    """One connection with requests one after the other, which costs less than a library."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def connect(self) -> None:
        self._in, self._out = await asyncio.open_connection("127.0.0.1", self._port)

    async def post(self, path: str, body: bytes = b"") -> bytes:
        return await self._ask("POST", path, body)

    async def get(self, path: str) -> bytes:
        return await self._ask("GET", path, b"")

    async def _ask(self, method: str, path: str, body: bytes) -> bytes:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: n\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._out.write(head.encode() + body)
        answer = (await self._in.readuntil(b"\r\n\r\n")).lower()
        status = int(answer.split(b" ", 2)[1])
        if b"transfer-encoding: chunked" in answer:
            data = b""
            while size := int(await self._in.readline(), 16):
                data += (await self._in.readexactly(size + 2))[:-2]
            await self._in.readline()
        elif b"content-length:" not in answer:
            data = await self._in.read()
        else:
            length = int(answer.split(b"content-length:")[1].split(b"\r\n")[0])
            data = await self._in.readexactly(length)
        if b"connection: close" in answer:
            self.close()
            await self.connect()
        if status not in (200, 201, GONE, AWAY):
            raise RuntimeError(f"{method}: {status} {data.decode()}")
        return data

    def close(self) -> None:
        self._out.close()


@dataclass
class Churn:
    broker: BrokerProcess
    server: RedisServer
    channels: int
    ends_at: float
    made: int = 0
    refused: int = 0
    """How many of them the store was too slow to make."""
    node_bytes: list[float] = field(default_factory=list)
    store_bytes: list[float] = field(default_factory=list)

    async def run(self) -> None:
        watching = asyncio.create_task(self._watch())
        await asyncio.gather(*(self._work() for _ in range(CLIENTS)))
        watching.cancel()

    async def _work(self) -> None:
        client = Client(self.broker.http_port)
        await client.connect()
        while self.made < self.channels and time.monotonic() < self.ends_at:
            self.made += 1
            number = self.made
            addresses = json.loads(await client.post("/create"))
            if "producerAddress" not in addresses:
                self.refused += 1
                continue
            await client.post(f"/write/{addresses['producerAddress']}/s", b'{"n":%d}' % number)
            if number % READ_ONE_IN == 0:
                await client.get(f"/read/{addresses['consumerAddress']}?wait_ms=0")
        client.close()

    async def _watch(self) -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(SAMPLE_S)
            self.node_bytes.append(resident_bytes(self.broker.process.pid))
            memory = await asyncio.to_thread(self.server.info, "memory")
            self.store_bytes.append(float(memory["used_memory"]))
            if len(self.node_bytes) % REPORT_EVERY == 0:
                print(
                    f"{time.monotonic() - began:5.0f} s  channels {self.made:8}"
                    f"  node {self.node_bytes[-1] / 1e6:6.1f} MB"
                    f"  store {self.store_bytes[-1] / 1e6:6.1f} MB",
                    flush=True,
                )

    async def left(self) -> list[str]:
        """Wait until the channels are gone. Returns: the keys that are left and should not be."""
        until = time.monotonic() + SWEEP_AT_MOST_S
        while True:
            keys = await asyncio.to_thread(self.server.call, "KEYS", "churn:*")
            names = [key.decode().removeprefix("churn:") for key in keys]
            odd = sorted(name for name in names if name not in KEPT)
            if not odd or time.monotonic() > until:
                return odd
            await asyncio.sleep(0.5)


def resident_bytes(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096.0


def growth(samples: list[float]) -> float:
    """Return by how much the mean of the last quarter is above that of the second."""
    quarter = len(samples) // 4
    if not quarter:
        return 0.0
    return mean(samples[-quarter:]) / mean(samples[quarter : 2 * quarter]) - 1


async def metric(broker: BrokerProcess, name: str) -> float:
    async with aiohttp.ClientSession() as session, session.get(f"{broker.url}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


async def churn(channels: int, seconds: float) -> int:
    """Returns: the exit code."""
    with (
        tempfile.TemporaryDirectory() as folder,
        redis_server() as server,
        broker_process(
            Path(folder),
            MEGAPHONE,
            store=server.text_url,
            store_prefix="churn",
            channel_ttl_secs=TTL_S,
            max_channels=channels,
        ) as broker,
    ):
        before = float(server.info("memory")["used_memory"])
        run = Churn(broker, server, channels, time.monotonic() + seconds)
        await run.run()
        left = await run.left()
        after = float(server.info("memory")["used_memory"])
    node = growth(run.node_bytes)
    count = run.made - run.refused
    print(f"{count} channels; growth of the node from the second quarter to the last: {node:+.1%}")
    print(f"the store without channels: {before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after")
    print(f"keys that are left: {', '.join(left[:10]) or 'none'}")
    return int(bool(left) or node > GROWTH_ALLOWED or after - before > REST_ALLOWED)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.churn")
    parser.add_argument("--channels", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=600)
    arguments = parser.parse_args()
    sys.exit(asyncio.run(churn(arguments.channels, arguments.seconds)))


if __name__ == "__main__":
    main()
