"""Webhooks report channels that have gone, to a receiver that docs/webhooks.md describes."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.support.process import BrokerProcess, broker_process

PAGE = (Path(__file__).parents[2] / "docs" / "webhooks.md").read_text()
[CONFIGURATION, ALLOWED] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
[VERIFICATION] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
[MAKE_SECRET] = re.findall(r"`(echo whsec_.*?)`", PAGE)
QUIET_S = 2.5
"""Longer than channels gather before they are told, and than the first pause before a retry."""


@dataclass(slots=True)
class Receiver:
    """A service as users would write it: takes what is genuine, refuses all else."""

    secret: str
    url: str = ""
    bodies: list[Any] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    fails: int = 0
    """How many requests more are answered as if this service were not there."""
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    is_genuine: Callable[..., bool] = field(init=False)

    def __post_init__(self) -> None:
        code: dict[str, Any] = {}
        exec(VERIFICATION, code)
        self.is_genuine = code["is_genuine"]

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        if not self.is_genuine(request.headers, body, self.secret):
            return web.Response(status=401)
        self.ids.append(request.headers["Webhook-Id"])
        if self.fails > 0:
            self.fails -= 1
            return web.Response(status=503)
        self.bodies.append(json.loads(body))
        self.arrived.set()
        return web.Response(status=204)

    @property
    def told(self) -> list[str]:
        return [address for body in self.bodies for address in body["channels"]]

    async def is_told(self, amount: int) -> None:
        async with asyncio.timeout(10):
            while len(self.told) < amount:
                self.arrived.clear()
                await self.arrived.wait()


@pytest.fixture
def secret() -> str:
    return subprocess.check_output(["bash", "-c", MAKE_SECRET], text=True).strip()


@pytest.fixture
async def receiver(secret: str) -> AsyncIterator[Receiver]:
    receiver = Receiver(secret)
    app = web.Application()
    app.router.add_post("/gone", receiver.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    receiver.url = f"http://localhost:{runner.addresses[0][1]}/gone"
    yield receiver
    await runner.cleanup()


@pytest.fixture
def directory(tmp_path: Path, receiver: Receiver) -> Path:
    """A working directory with the configuration of the page."""
    text = ALLOWED + CONFIGURATION.replace("https://example.com/gone", receiver.url)
    (tmp_path / "megaphone.toml").write_text(text.replace("whsec_…", receiver.secret))
    return tmp_path


async def create(broker: BrokerProcess, amount: int) -> list[str]:
    async with aiohttp.ClientSession(broker.url) as session:
        made = []
        for _ in range(amount):
            async with session.post("/create") as response:
                made.append((await response.json())["consumerAddress"])
        return made


async def dispose(directory: Path, address: str) -> None:
    connector = aiohttp.UnixConnector(path=str(directory / "megaphone.sock"))
    async with (
        aiohttp.ClientSession("http://megaphone", connector=connector) as operator,
        operator.delete(f"/channel/{address}") as response,
    ):
        assert response.status == 200


async def counts(broker: BrokerProcess) -> dict[str, int]:
    async with (
        aiohttp.ClientSession(broker.url) as session,
        session.get("/metrics") as response,
    ):
        text = await response.text()
    return {
        name: int(n)
        for name, n in re.findall(r"^megaphone_webhooks_(\w+) (\d+)$", text, re.MULTILINE)
    }


async def stopped(broker: BrokerProcess) -> str:
    """Stop a broker. Returns: what it logged since it serves."""
    broker.process.send_signal(signal.SIGTERM)
    assert broker.process.stderr is not None
    log = await asyncio.to_thread(broker.process.stderr.read)
    assert await asyncio.to_thread(broker.process.wait, 10) == 0
    return log


async def test_channels_that_are_disposed_of_or_expire_are_told_once(
    directory: Path, receiver: Receiver
) -> None:
    with broker_process(directory, channel_ttl_secs=3) as broker:
        disposed, *expiring = await create(broker, 5)
        await dispose(directory, disposed)
        await receiver.is_told(1)
        assert receiver.bodies == [{"channels": [disposed]}]
        await receiver.is_told(5)
        await asyncio.sleep(QUIET_S)
        assert sorted(receiver.told[1:]) == sorted(expiring)
        assert len(set(receiver.ids)) == len(receiver.ids) == len(receiver.bodies)
        assert {"channels": []} not in receiver.bodies
        assert await counts(broker) == {
            "sent": len(receiver.bodies),
            "failed": 0,
            "lost": 0,
            "waiting": 0,
        }
        log = await stopped(broker)
    assert len(receiver.told) == 5
    assert "webhook" not in log


async def test_a_receiver_that_was_away_is_told_when_it_is_back(
    directory: Path, receiver: Receiver
) -> None:
    receiver.fails = 2
    with broker_process(directory) as broker:
        [address] = await create(broker, 1)
        await dispose(directory, address)
        await receiver.is_told(1)
        assert len(receiver.ids) == 3
        assert len(set(receiver.ids)) == 1
        assert await counts(broker) == {"sent": 1, "failed": 2, "lost": 0, "waiting": 0}
        log = await stopped(broker)
    assert "webhook audit: a request was not accepted (status 503)" in log
    for unspoken in (address, receiver.secret, receiver.url):
        assert unspoken not in log


async def test_a_node_that_stops_tells_that_its_channels_have_gone(
    directory: Path, receiver: Receiver
) -> None:
    with broker_process(directory) as broker:
        made = await create(broker, 1_500)
        await stopped(broker)
    assert sorted(receiver.told) == sorted(made)
    assert sorted(len(body["channels"]) for body in receiver.bodies) == [500, 1_000]


async def test_a_receiver_that_refuses_does_not_hold_up_the_stop_and_the_loss_is_logged(
    directory: Path, receiver: Receiver
) -> None:
    receiver.secret = "whsec_b3RoZXI="  # takes nothing any more
    with broker_process(directory) as broker:
        await create(broker, 3)
        started = time.monotonic()
        log = await stopped(broker)
    assert time.monotonic() - started < 8  # it takes two seconds, but more on a busy machine
    assert receiver.told == []
    assert "webhook audit: stopped; 3 channels in total were not reported" in log


async def test_a_node_does_not_start_with_an_endpoint_that_it_may_not_call(
    directory: Path, receiver: Receiver
) -> None:
    file = directory / "megaphone.toml"
    file.write_text(file.read_text().replace(ALLOWED, ""))
    started = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "megaphone", "serve"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert started.returncode == 2
    assert "webhooks.audit.endpoint" in started.stderr
    assert "webhooks_allow" in started.stderr
    assert receiver.url not in started.stderr


async def test_what_the_broker_did_not_sign_is_not_genuine(receiver: Receiver) -> None:
    forged = {
        "Webhook-Id": "msg_1",
        "Webhook-Timestamp": str(int(time.time())),
        "Webhook-Signature": "v1,AAAA",
    }
    assert not receiver.is_genuine(forged, b'{"channels":[]}', receiver.secret)
