"""How much CPU the Python client takes to read events: `python -m bench.client_reads`.

A broker in a process of its own gets a full channel; then one client reads it in batches of 100.
Counted is the CPU time of the client's process alone, so that the broker and other programs on the
machine do not matter.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from megaphone_client import Channel, Event, Megaphone
from megaphone_client.reading import Ack
from tests.support.process import BrokerProcess, broker_process

EVENTS = 100_000
BATCH = 100
BODY = {"text": "x" * 60, "number": 7}
ROUNDS = 5


async def fill(megaphone: Megaphone) -> Channel:
    channel = await megaphone.create()
    messages = [("stream", BODY)] * 1_000
    for _ in range(EVENTS // len(messages)):
        assert not await megaphone.write_batch([channel.producer], messages)
    return channel


async def per_second(url: str, ack: Ack, use: Callable[[list[Event[object]]], object]) -> float:
    """Return how many events a second of CPU reads."""
    async with Megaphone.from_url(url) as megaphone:
        channel = await fill(megaphone)
        async with megaphone.read(channel.consumer, ack=ack) as reader:
            use(await reader.batch(BATCH))
            begun, count = time.process_time(), 0
            while count < EVENTS - BATCH:
                events = await reader.batch(BATCH)
                use(events)
                count += len(events)
            return count / (time.process_time() - begun)


def bodies(events: list[Event[object]]) -> list[object]:
    return [event.body for event in events]


def raws(events: list[Event[object]]) -> list[bytes]:
    return [event.raw for event in events]


async def measure(broker: BrokerProcess) -> None:
    acks: tuple[Ack, ...] = ("none", "auto")
    for url in (broker.url, f"grpc://{broker.grpc_target}"):
        for ack in acks:
            for name, use in (("raw", raws), ("decoded", bodies)):
                best = max([await per_second(url, ack, use) for _ in range(ROUNDS)])
                protocol = url.partition(":")[0]
                print(f"{protocol:5} ack={ack:5} {name:8} {best:10,.0f} events/s of CPU")


def main() -> None:
    with (
        TemporaryDirectory() as folder,
        broker_process(Path(folder), buffer_capacity=EVENTS) as broker,
    ):
        asyncio.run(measure(broker))


if __name__ == "__main__":
    main()
