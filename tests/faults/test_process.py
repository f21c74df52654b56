"""Seeded runs against a broker process: readers are killed, a link goes down, a node stops."""

import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.support import line_reader
from tests.support.checker import Kind
from tests.support.fault_runs import Scenario, run_all
from tests.support.process import BrokerProcess, broker_process
from tests.support.raw_http import Node

WINDOW_S = 0.4
SEEDS_OF_EACH_KIND = 15
KILLED_RUNS = 5
NUMBERS = 500
AHEAD_AT_MOST = 80
LINE_READER = str(Path(line_reader.__file__))


@pytest.mark.parametrize("kind", Kind)
async def test_seeded_runs_against_a_process_are_as_promised(kind: Kind, tmp_path: Path) -> None:
    scenarios = [
        Scenario.draw(kind, 10_000 + seed, window_s=WINDOW_S) for seed in range(SEEDS_OF_EACH_KIND)
    ]
    with broker_process(tmp_path, poll_duration_millis=round(WINDOW_S * 1000)) as broker:
        node = Node(broker.http_port, broker.grpc_port)
        finished = await run_all(node, scenarios, at_once=4)
    assert len(finished) == SEEDS_OF_EACH_KIND
    wrong = [run.explanation() for run in finished if not run.is_as_promised]
    assert not wrong, "\n".join(wrong[:3])


# -- Readers that are killed


class Client:
    """Creates, writes and acknowledges over HTTP."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def create(self) -> tuple[str, str]:
        async with self._session.post("/create") as response:
            addresses = await response.json()
        return addresses["producerAddress"], addresses["consumerAddress"]

    async def write(self, producer: str, body: object) -> int:
        async with self._session.post(f"/write/{producer}/s", json=body) as response:
            return response.status

    async def acknowledge(self, consumer: str, event_id: str) -> None:
        async with self._session.post(f"/ack/{consumer}", json={"eid": event_id}) as response:
            assert response.status == 200


@asynccontextmanager
async def client_of(broker: BrokerProcess) -> AsyncIterator[Client]:
    async with aiohttp.ClientSession(broker.url) as session:
        yield Client(session)


async def read_until_killed(
    broker: BrokerProcess, path: str, lines_at_most: int
) -> list[dict[str, object]]:
    """Read in a process, and kill it after a number of lines. Returns: all that it has printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-S", "-E", LINE_READER, str(broker.http_port), path),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    printed = b""
    while printed.count(b"\n") < lines_at_most and (line := await process.stdout.readline()):
        printed += line
    if process.returncode is None:
        process.kill()
    rest, _ = await process.communicate()
    *lines, _cut_off = (printed + rest).split(b"\n")
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """Return a broker for tests that only use channels of their own."""
    folder = tmp_path_factory.mktemp("broker")
    with broker_process(folder, poll_duration_millis=2_000) as process:
        yield process


@pytest.mark.parametrize("seed", range(KILLED_RUNS))
@pytest.mark.parametrize("acknowledges", [False, True], ids=["resuming", "acknowledging"])
async def test_500_events_survive_the_killing_of_their_readers(
    broker: BrokerProcess, seed: int, acknowledges: bool
) -> None:
    rng = random.Random(seed)
    seen: list[int] = []
    # The run stays within the buffer. Beyond it, a resuming reader would learn of a gap.
    room = asyncio.Semaphore(NUMBERS if acknowledges else AHEAD_AT_MOST)
    repeated = 0
    last: str | None = None
    async with client_of(broker) as client, asyncio.timeout(60):
        producer, consumer = await client.create()

        async def write_all() -> None:
            for number in range(NUMBERS):
                await room.acquire()
                assert await client.write(producer, number) == 201

        writing = asyncio.create_task(write_all())
        while not writing.done() or len(seen) < NUMBERS:
            query = "ack=explicit" if acknowledges else f"after={last}" if last else "limit=1"
            path = f"/read/{consumer}?{query}&takeover=true"
            for event in await read_until_killed(broker, path, rng.randint(1, 60)):
                number = event["body"]
                assert isinstance(number, int)
                if number in seen:
                    repeated += 1
                    assert acknowledges, f"{number} came again to a reader that resumes"
                else:
                    seen.append(number)
                    room.release()
                last = str(event["eid"])
            if acknowledges and last is not None:
                await client.acknowledge(consumer, last)
        await writing
    assert seen == list(range(NUMBERS))


# -- Leases of dead readers

TRIES = 20
FREE_WITHIN_S = 0.05
VANISHED_WITHIN_S = 5.5


async def time_until_free(
    broker: BrokerProcess, consumer: str, *, look_again_s: float = 0.001
) -> float:
    started = time.monotonic()
    async with aiohttp.ClientSession(broker.url) as session:
        while True:
            async with session.get(f"/read/{consumer}?wait_ms=0") as response:
                if response.status == 200:
                    return time.monotonic() - started
            await asyncio.sleep(look_again_s)


@pytest.mark.parametrize("reset", [False, True], ids=["FIN", "RST"])
async def test_a_lease_is_free_at_once_after_fin_and_rst(
    broker: BrokerProcess, reset: bool
) -> None:
    took = []
    async with client_of(broker) as client, asyncio.timeout(60):
        _, consumer = await client.create()
        for _ in range(TRIES):
            _, writer = reading = await asyncio.open_connection("127.0.0.1", broker.http_port)
            writer.write(f"GET /read/{consumer} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await reading[0].readuntil(b"\r\n\r\n")
            writer.transport.abort() if reset else writer.close()
            took.append(await time_until_free(broker, consumer))
    assert statistics.median(took) < FREE_WITHIN_S
    assert max(took) < 1


# -- A link that goes down

# Names and addresses that no other run of these tests on this machine uses.
NAMESPACE = f"megaphone-{os.getpid()}"
LINK = f"mp-{os.getpid()}"
NETWORK = f"10.{213 + os.getpid() // 256 % 32}.{os.getpid() % 256}"
HERE, THERE = f"{NETWORK}.1", f"{NETWORK}.2"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@contextmanager
def namespace() -> Iterator[None]:
    """Make a network namespace and a link to it with the addresses `HERE` and `THERE`."""
    if shutil.which("ip") is None:
        pytest.skip("needs ip: apt-get install iproute2")
    try:
        ip("netns", "add", NAMESPACE)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"needs network namespaces: {error.stderr.decode().strip()}")
    try:
        ip("link", "add", LINK, "type", "veth", "peer", "name", "there", "netns", NAMESPACE)
        ip("addr", "add", f"{HERE}/24", "dev", LINK)
        ip("link", "set", LINK, "up")
        for command in (
            ["addr", "add", f"{THERE}/24", "dev", "there"],
            ["link", "set", "there", "up"],
        ):
            ip("-n", NAMESPACE, *command)
        yield
    finally:
        # Remove the link too, because the namespace removes it only after a while.
        subprocess.run(["ip", "link", "del", LINK], check=False, capture_output=True)
        ip("netns", "del", NAMESPACE)


HTTP_READ = """
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[4], int(sys.argv[1]))
connection.request("GET", "/read/" + sys.argv[3])
response = connection.getresponse()
print("open", flush=True)
while response.readline(): pass
"""
GRPC_READ = """
import grpc, sys
from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
with grpc.insecure_channel(sys.argv[4] + ":" + sys.argv[2]) as connection:
    call = ChannelServiceStub(connection).Read(pb.ReadRequest(consumer_address=sys.argv[3]))
    call.initial_metadata()
    print("open", flush=True)
    for response in call: pass
"""


READERS = {
    "http-idle": (HTTP_READ, False),
    "http-traffic": (HTTP_READ, True),
    "grpc-idle": (GRPC_READ, False),
    "grpc-traffic": (GRPC_READ, True),
}
"""The script of each reader, and whether something is written to it after it has vanished."""


@dataclass(slots=True)
class RemoteReader:
    """A reader beyond the link."""

    process: asyncio.subprocess.Process
    producer: str
    consumer: str

    @classmethod
    async def start(cls, client: Client, broker: BrokerProcess, script: str) -> "RemoteReader":
        producer, consumer = await client.create()
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", NAMESPACE, sys.executable, "-c", script),
            *(str(broker.http_port), str(broker.grpc_port), consumer, HERE),
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"open\n"
        return cls(process, producer, consumer)

    async def kill(self) -> None:
        self.process.kill()
        await self.process.communicate()


@pytest.fixture(scope="module")
def free_after(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Let the link to all readers go down at once. Returns: after how many seconds each lease was
    free."""
    folder = tmp_path_factory.mktemp("beyond-a-link")
    with (
        namespace(),
        broker_process(folder, address="0.0.0.0:0", grpc_address="0.0.0.0:0") as broker,
    ):
        return asyncio.run(let_readers_vanish(broker))


async def let_readers_vanish(broker: BrokerProcess) -> dict[str, float]:
    async with client_of(broker) as client, asyncio.timeout(40):
        readers = {
            name: await RemoteReader.start(client, broker, script)
            for name, (script, _) in READERS.items()
        }
        ip("link", "set", LINK, "down")
        for name, (_, with_traffic) in READERS.items():
            if with_traffic:
                assert await client.write(readers[name].producer, "x" * 1000) == 201
        waits = (
            time_until_free(broker, reader.consumer, look_again_s=0.02)
            for reader in readers.values()
        )
        times = await asyncio.gather(*waits)
        for reader in readers.values():
            await reader.kill()
    return dict(zip(READERS, times, strict=True))


@pytest.mark.group("readers beyond a link")  # one fixture lets all of them vanish at once
@pytest.mark.parametrize("name", READERS)
def test_a_lease_is_free_soon_after_its_reader_has_vanished(
    name: str, free_after: dict[str, float]
) -> None:
    assert free_after[name] < VANISHED_WITHIN_S
