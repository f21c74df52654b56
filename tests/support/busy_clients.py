"""Clients that create, write and read all the time, and count each call that is refused."""

import asyncio
import json
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import grpc

from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub

PAUSE_S = 0.3
WRITES_A_CHANNEL = 10


@dataclass
class Record:
    """What happened to all clients together."""

    calls: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """What a reader got instead of the events that were written."""
    all_read: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when clients of each kind have ended as many reads as there are clients."""
    clients: Counter[str] = field(default_factory=Counter)
    ends: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the clients shall end."""

    def count(self, kind: str, call: str) -> None:
        self.calls[f"{kind} {call}"] += 1
        if all(self.calls[f"{name} read"] >= count for name, count in self.clients.items()):
            self.all_read.set()


class HttpClient:
    """Makes its calls on connections that it keeps."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url

    async def create(self) -> tuple[str, str]:
        async with self._session.post(f"{self._url}/create") as answer:
            answer.raise_for_status()
            addresses = await answer.json()
        return addresses["producerAddress"], addresses["consumerAddress"]

    async def write(self, address: str, number: int) -> None:
        async with self._session.post(f"{self._url}/write/{address}/s", json=number) as answer:
            answer.raise_for_status()

    async def read(self, address: str, got: list[int]) -> None:
        async with self._session.get(f"{self._url}/read/{address}") as answer:
            answer.raise_for_status()
            got += [json.loads(line)["body"] async for line in answer.content]

    async def close(self) -> None:
        """Do nothing: the session is for all."""


class GrpcClient:
    """Makes its calls on a connection of its own."""

    def __init__(self, target: str) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        self._connection = grpc.aio.insecure_channel(target, options)
        self._stub = ChannelServiceStub(self._connection)

    async def create(self) -> tuple[str, str]:
        made = await self._stub.CreateChannel(pb.CreateChannelRequest())
        return made.producer_address, made.consumer_address

    async def write(self, address: str, number: int) -> None:
        request = pb.WriteRequest(
            producer_address=address, stream_id="s", body=str(number).encode()
        )
        await self._stub.Write(request)

    async def read(self, address: str, got: list[int]) -> None:
        async for answer in self._stub.Read(pb.ReadRequest(consumer_address=address)):
            got += [int(event.body) for event in answer.events]

    async def close(self) -> None:
        await self._connection.close()


async def be_busy(client: HttpClient | GrpcClient, record: Record) -> None:
    """Use one channel after the other until `record.ends`."""
    kind = type(client).__name__
    record.clients[kind] += 1
    while not record.ends.is_set():
        try:
            await use_a_channel(client, record)
        except (aiohttp.ClientError, OSError, grpc.aio.AioRpcError) as error:
            text = error.details() if isinstance(error, grpc.aio.AioRpcError) else repr(error)
            record.refused[f"{kind}: {text}"] += 1
            await asyncio.sleep(PAUSE_S)
    await client.close()


async def use_a_channel(client: HttpClient | GrpcClient, record: Record) -> None:
    kind = type(client).__name__
    producer, consumer = await client.create()
    record.count(kind, "create")
    got: list[int] = []

    async def read() -> None:
        while len(got) < WRITES_A_CHANNEL:
            await client.read(consumer, got)
            record.count(kind, "read")

    reading = asyncio.create_task(read())
    try:
        for number in range(WRITES_A_CHANNEL):
            await client.write(producer, number)
            record.count(kind, "write")
            await asyncio.sleep(PAUSE_S)
        await reading
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    if got != list(range(WRITES_A_CHANNEL)):
        record.wrong.append(f"{kind}: {got}")
