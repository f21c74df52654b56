"""Writers and readers of many channels behind a proxy. Each records the answers that it gets.

They do only what a good client does. Over gRPC, the library retries a call that failed with
UNAVAILABLE, with the same request id. After a read has ended, cleanly or not, the reader reads
again at once. `tests.support.checker` judges the recorded histories.
"""

import asyncio
import json
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import grpc

from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from tests.support.checker import (
    Acknowledgement,
    Ending,
    History,
    Kind,
    Outcome,
    Read,
    Seen,
    Verdict,
    Write,
    judge,
)

if TYPE_CHECKING:
    from megaphone_api.v1.channels_pb2_grpc import ChannelServiceAsyncStub

PAUSE_S = 0.05
"""How long a client waits after an error before it calls again."""
LAST_WAIT_MS = 300
"""How long the last reads wait, which check that no more events come."""
CALL_S = 20.0

RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": "megaphone.v1.ChannelService"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}
OPTIONS = (("grpc.service_config", json.dumps(RETRIES)),)

REFUSED = {404, 409, 421, 503}
"""The HTTP statuses which mean that the node did nothing."""


@dataclass(slots=True)
class Clients:
    """The things that all clients of a run share."""

    http: aiohttp.ClientSession
    stub: "ChannelServiceAsyncStub"
    tick: Callable[[], int] = field(default_factory=lambda: count().__next__)
    writing_is_over: asyncio.Event = field(default_factory=asyncio.Event)
    trouble: Counter[str] = field(default_factory=Counter)
    """How often clients got each kind of error."""


@asynccontextmanager
async def clients(
    url: str, grpc_target: str, authority: Path | None = None
) -> AsyncIterator[Clients]:
    """`authority` is the file of the one that signed the certificate of the cluster; without it
    nothing is encrypted."""
    context = True if authority is None else ssl.create_default_context(cafile=str(authority))
    connector = aiohttp.TCPConnector(limit=0, ssl=context)
    async with (
        aiohttp.ClientSession(url, connector=connector) as session,
        grpc_channel(grpc_target, authority) as connection,
    ):
        yield Clients(session, ChannelServiceStub(connection))


def grpc_channel(target: str, authority: Path | None) -> grpc.aio.Channel:
    if authority is None:
        return grpc.aio.insecure_channel(target, OPTIONS)
    credentials = grpc.ssl_channel_credentials(authority.read_bytes())
    return grpc.aio.secure_channel(target, credentials, OPTIONS)


@dataclass(slots=True)
class Channel:
    """One channel with its writer and its reader, and their history."""

    clients: Clients
    kind: Kind
    protocol: str
    """The protocol of the reader: ndjson, sse or grpc. The writer uses gRPC for grpc, otherwise
    HTTP."""
    producer: str = ""
    consumer: str = ""
    history: History = field(init=False)

    def __post_init__(self) -> None:
        self.history = History(self.kind)

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("megaphone-agent", self.consumer.partition(".")[0]),)

    async def create(self) -> None:
        if self.protocol == "grpc":
            made = await self.clients.stub.CreateChannel(pb.CreateChannelRequest())
            self.producer, self.consumer = made.producer_address, made.consumer_address
            return
        async with self.clients.http.post("/create") as response:
            assert response.status == 200, await response.text()
            answer = await response.json()
        self.producer, self.consumer = answer["producerAddress"], answer["consumerAddress"]

    def verdict(self) -> Verdict:
        return judge(self.history)

    # -- Writing

    async def write(self, every_s: float, end: asyncio.Event) -> None:
        """Write events at a fixed interval until the end. A late event does not make the next one
        early."""
        write = self._write_by_grpc if self.protocol == "grpc" else self._write_by_http
        for number in count():
            if end.is_set():
                return
            began = self.clients.tick()
            next_at = asyncio.get_running_loop().time() + every_s
            outcome, event_id = await write(number)
            ended = None if outcome is Outcome.UNKNOWN else self.clients.tick()
            self.history.writes.append(Write(0, number, outcome, event_id, began, ended))
            await asyncio.sleep(max(0.0, next_at - asyncio.get_running_loop().time()))

    async def _write_by_http(self, number: int) -> tuple[Outcome, str | None]:
        try:
            async with self.clients.http.post(
                f"/write/{self.producer}/s", json=[0, number]
            ) as response:
                answer = await response.json(content_type=None)
                if response.status == 201:
                    return Outcome.TAKEN, answer["eid"]
                self._met(f"write {response.status} {answer.get('code')}")
                return Outcome.REFUSED if response.status in REFUSED else Outcome.UNKNOWN, None
        except aiohttp.ClientError as error:
            self._met(f"write {type(error).__name__}")
            return Outcome.UNKNOWN, None

    async def _write_by_grpc(self, number: int) -> tuple[Outcome, str | None]:
        body = json.dumps([0, number]).encode()
        request = pb.WriteRequest(
            producer_address=self.producer, stream_id="s", body=body, request_id=str(number)
        )
        try:
            answer = await self.clients.stub.Write(request, metadata=self._metadata, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            self._met(f"write {error.code().name} {error.details()}")
            return Outcome.UNKNOWN, None
        return Outcome.TAKEN, answer.event_id

    # -- Reading

    async def read(self) -> None:
        """Read until the writer has finished and a read has ended cleanly without events."""
        read = self._read_by_grpc if self.protocol == "grpc" else self._read_by_http
        cursor = "-" if self.kind is Kind.RESUMING else None
        while True:
            is_last = self.clients.writing_is_over.is_set()
            one = Read(self.clients.tick(), cursor)
            if not await read(one, LAST_WAIT_MS if is_last else None):
                await asyncio.sleep(PAUSE_S)
                continue
            self.history.reads.append(one)
            if cursor is not None and one.events:
                cursor = one.events[-1].event_id
            if is_last and one.ending is Ending.CLEAN and not one.events:
                return

    async def _read_by_http(self, read: Read, wait_ms: int | None) -> bool:
        """Record the events of a read. Returns: whether the read began."""
        query: dict[str, str | int] = {}
        headers = {}
        if read.cursor is not None and self.protocol == "ndjson":
            query["after"] = read.cursor
        if self.protocol == "sse":
            headers["Accept"] = "text/event-stream"
            if read.cursor is not None:
                headers["Last-Event-ID"] = read.cursor
        if self.kind is Kind.ACKNOWLEDGING:
            query["ack"] = "explicit"
        if wait_ms is not None:
            query["wait_ms"] = wait_ms
        path = f"/read/{self.consumer}"
        try:
            async with self.clients.http.get(path, params=query, headers=headers) as response:
                if response.status != 200:
                    code = (await response.json(content_type=None)).get("code")
                    self._met(f"read {response.status} {code}")
                    return False
                told = response.headers.get("Megaphone-Recovered")
                read.recovered = None if told is None else told == "true"
                async for line in response.content:
                    await self._note_line(read, line)
            read.ending = Ending.CLEAN
        except aiohttp.ClientPayloadError:
            self._met("read broken")
        except aiohttp.ClientError as error:
            self._met(f"read {type(error).__name__}")
            return False
        return True

    async def _note_line(self, read: Read, line: bytes) -> None:
        line = line.removeprefix(b"data: ")
        if line.startswith(b"{"):
            event = json.loads(line)
            read.events.append(Seen(event["eid"], *event["body"]))
            if self.kind is Kind.ACKNOWLEDGING:
                await self._acknowledge(event["eid"], self._acknowledge_by_http)

    async def _read_by_grpc(self, read: Read, wait_ms: int | None) -> bool:
        request = pb.ReadRequest(
            consumer_address=self.consumer,
            after_event_id=read.cursor or "",
            acknowledge=self.kind is Kind.ACKNOWLEDGING,
        )
        if wait_ms is not None:
            request.wait_ms = wait_ms
        call = self.clients.stub.Read(request, metadata=self._metadata)
        has_begun = False
        try:
            async for response in call:
                has_begun = True
                for event in response.events:
                    read.events.append(Seen(event.event_id, *json.loads(event.body)))
                    if self.kind is Kind.ACKNOWLEDGING:
                        await self._acknowledge(event.event_id, self._acknowledge_by_grpc)
            told = dict(await call.initial_metadata()).get("megaphone-recovered")
            read.recovered = None if told is None else told == "true"
            read.ending = Ending.CLEAN
        except grpc.aio.AioRpcError as error:
            self._met(f"read {error.code().name} {error.details()}")
            return has_begun
        return True

    async def _acknowledge(self, event_id: str, acknowledge: Callable[[str], Any]) -> None:
        began = self.clients.tick()
        answered = self.clients.tick() if await acknowledge(event_id) else None
        self.history.acknowledgements.append(Acknowledgement(event_id, began, answered))

    async def _acknowledge_by_http(self, event_id: str) -> bool:
        try:
            async with self.clients.http.post(
                f"/ack/{self.consumer}", json={"eid": event_id}
            ) as response:
                if response.status != 200:
                    self._met(f"ack {response.status}")
                return response.status == 200
        except aiohttp.ClientError as error:
            self._met(f"ack {type(error).__name__}")
            return False

    async def _acknowledge_by_grpc(self, event_id: str) -> bool:
        request = pb.AcknowledgeRequest(consumer_address=self.consumer, event_id=event_id)
        try:
            await self.clients.stub.Acknowledge(request, metadata=self._metadata, timeout=CALL_S)
        except grpc.aio.AioRpcError as error:
            self._met(f"ack {error.code().name} {error.details()}")
            return False
        return True

    def _met(self, trouble: str) -> None:
        self.clients.trouble[trouble] += 1
