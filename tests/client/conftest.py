"""A client of the broker, over each protocol in turn."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from megaphone.app import App
from megaphone_client import Channel, Megaphone

PROTOCOLS = ("http", "grpc")


def url_of(app: App, protocol: str) -> str:
    port = {"http": app.http_port, "grpc": app.grpc_port}[protocol]
    return f"{protocol}://127.0.0.1:{port}"


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
async def megaphone(app: App, protocol: str) -> AsyncIterator[Megaphone]:
    async with Megaphone.from_url(url_of(app, protocol)) as client:
        yield client


@pytest.fixture
async def channel(megaphone: Megaphone) -> Channel:
    return await megaphone.create()
