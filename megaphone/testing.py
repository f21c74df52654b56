"""Fixtures of pytest for apps that use Megaphone: a real broker, in the process of the tests.

pytest loads this module in every run in which the broker is installed. So it imports nothing until
a test asks for a fixture.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

    from megaphone.app import App


@dataclass(frozen=True, slots=True)
class Broker:
    """A broker that serves on free ports of the loopback interface."""

    http_port: int
    grpc_port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://127.0.0.1:{self.grpc_port}"


@contextmanager
def running_broker(**settings: Any) -> Iterator[Broker]:
    """Run a broker within this context, in a thread of its own.

    `settings` are those of `megaphone.settings.Settings`. It has its own channels, no admin socket,
    and takes channels at once. Raises: TypeError, for a setting that does not exist.
    """
    import asyncio
    import threading
    from concurrent.futures import Future

    from megaphone.model import AgentMode
    from megaphone.settings import Settings

    chosen: dict[str, Any] = {
        "address": "127.0.0.1:0",
        "grpc_address": "127.0.0.1:0",
        "agent": {"testing": AgentMode.MASTER},
        "agent_warmup_secs": 0,
    }
    serves: Future[App] = Future()
    stop: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
    work = serve(Settings(**chosen | settings), serves, stop)
    thread = threading.Thread(target=asyncio.run, args=(work,), name="megaphone broker")
    thread.start()
    try:
        app = serves.result()
        yield Broker(app.http_port, app.grpc_port)
    finally:
        loop, stopping = stop.result()
        with suppress(RuntimeError):  # if it could not start, its loop is closed
            loop.call_soon_threadsafe(stopping.set)
        thread.join()


async def serve(
    settings: Any,
    serves: "Future[App]",
    stop: "Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]",
) -> None:
    import asyncio

    from megaphone.app import running

    stopping = asyncio.Event()
    stop.set_result((asyncio.get_running_loop(), stopping))
    try:
        async with running(settings) as app:
            serves.set_result(app)
            await stopping.wait()
    except Exception as error:
        if serves.done():
            raise
        serves.set_exception(error)


@pytest.fixture(scope="session")
def megaphone_broker() -> Iterator[Broker]:
    """A broker for all tests of the run. Each test makes its own channels."""
    with running_broker() as broker:
        yield broker


@pytest.fixture
def megaphone_url(megaphone_broker: Broker, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of the broker, which `MEGAPHONE_URL` has too while the test runs."""
    monkeypatch.setenv("MEGAPHONE_URL", megaphone_broker.url)
    return megaphone_broker.url
