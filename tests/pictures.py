"""Makes the pictures of README.md: the chat and the page for operators, in headless Chromium.

`make pictures` runs it, for about two minutes. It writes to docs/pictures/.
"""

import asyncio
import base64
import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from megaphone.cli.ui_relay import Relay
from megaphone.cli.ui_server import UiServer
from megaphone_client import Channel, Megaphone, MegaphoneError
from tests.support.chromium import DevTools, Page, chromium, devtools, tab
from tests.support.documented import ROOT
from tests.support.ports import free_ports

FOLDER = ROOT / "docs" / "pictures"
MOST_BYTES = 150_000
CHAT_SIZE = (880, 660)
OPERATORS_SIZE = (1280, 900)
WATCHED_S = 75.0
"""How long the page for operators watches before its picture: its lines are a minute long then."""
LABELS = ("orders", "chat", "reports", "devices")
RANDOM = random.Random(7)


@contextmanager
def demo(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """Run the examples. Yields: the URLs of the broker and the chat, and the admin socket."""
    socket = folder / "megaphone.sock"
    broker, chat, jobs = free_ports(3)
    settings = {
        "megaphone_mng_socket_path": str(socket),
        "megaphone_agent.virtual.berlin-1": "MASTER",
        "megaphone_agent.virtual.berlin-2": "MASTER",
        "megaphone_agent_warmup_secs": "0",
    }
    process = subprocess.Popen(
        [sys.executable, ROOT / "examples/demo.py", str(broker), str(chat), str(jobs)],
        cwd=folder,
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield f"http://127.0.0.1:{broker}", f"http://127.0.0.1:{chat}", socket
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait()


async def take(page: Page, name: str, size: tuple[int, int]) -> None:
    width, height = size
    await page.devtools(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=height,
        deviceScaleFactor=1,
        mobile=False,
    )
    await page.devtools("Emulation.setScrollbarsHidden", hidden=True)
    await asyncio.sleep(1)  # the page shows itself in the new size
    taken = await page.devtools("Page.captureScreenshot", format="png")
    picture = base64.b64decode(taken["data"])
    assert len(picture) < MOST_BYTES, f"{name} has {len(picture)} bytes"
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / name).write_bytes(picture)
    print(f"{name}: {len(picture):,} bytes")


async def in_colours(page: Page, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    await page.devtools("Emulation.setEmulatedMedia", features=features)


# -- The chat


async def picture_of_the_chat(tools: DevTools, url: str) -> None:
    async with tab(tools, f"{url}/?name=Ada") as ada, tab(tools, f"{url}/?name=Grace") as grace:
        await in_colours(ada, "light")
        for page in (ada, grace):
            await page.becomes("document.querySelectorAll('#people li').length === 2")
        said = (
            (grace, "Does a message survive a restart of the broker?"),
            (ada, "Yes. Messages have numbers, and the page asks for what it missed."),
            (grace, "/job the report for May"),
            (ada, "/ask How do these words get here?"),
        )
        for page, text in said:
            await page.value(f"text.value = {json.dumps(text)}; form.requestSubmit()")
            await ada.becomes(f"messages.textContent.includes({json.dumps(text)})")
        await ada.becomes("document.querySelector('progress')?.value >= 40")
        await grace.value("document.querySelector('#text').oninput()")
        await take(ada, "chat.png", CHAT_SIZE)


# -- The page for operators


@asynccontextmanager
async def traffic(broker: str) -> AsyncIterator[None]:
    """Write and read channels, some of which nobody reads."""
    async with Megaphone.from_url(broker) as client, AsyncExitStack() as stack:
        made = [
            await client.create(label=LABELS[number % len(LABELS)], ttl_s=600)
            for number in range(16)
        ]
        work = [read(client, channel) for channel in made[4:]]
        work += [write(client, channel, 4.0 + number) for number, channel in enumerate(made)]
        tasks = [asyncio.create_task(one) for one in work]
        stack.callback(lambda: [task.cancel() for task in tasks])
        yield


async def read(client: Megaphone, channel: Channel) -> None:
    async with client.read(channel.consumer) as events:
        async for _ in events:
            await asyncio.sleep(RANDOM.random() * 0.05)


async def write(client: Megaphone, channel: Channel, rate: float) -> None:
    """Write so many events a second, in waves."""
    while True:
        wave = 1 + 0.7 * math.sin(time.monotonic() / 6)
        await asyncio.sleep(RANDOM.expovariate(rate * wave))
        try:
            await client.write(channel.producer, "s", {"number": 1}, timeout_s=15)
        except MegaphoneError:
            await asyncio.sleep(20)  # the channel is full


async def picture_of_the_operators_page(tools: DevTools, broker: str, socket: Path) -> None:
    with UiServer(0, Relay(str(socket), allow_actions=False)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        async with tab(tools, server.link) as page, traffic(broker):
            await in_colours(page, "dark")
            await asyncio.sleep(WATCHED_S)
            await take(page, "operators.png", OPERATORS_SIZE)
        server.shutdown()


async def make(console: str, broker: str, chat: str, socket: Path) -> None:
    async with devtools(console) as tools:
        await picture_of_the_chat(tools, chat)
        await picture_of_the_operators_page(tools, broker, socket)


def main() -> None:
    with (
        TemporaryDirectory() as folder,
        demo(Path(folder)) as (broker, chat, socket),
        chromium() as console,
    ):
        asyncio.run(make(console, broker, chat, socket))


if __name__ == "__main__":
    main()
