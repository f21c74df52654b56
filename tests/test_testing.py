"""The fixtures that the broker brings for tests of apps."""

import asyncio
import os
import subprocess
import sys
import urllib.request

import pytest

from megaphone.testing import Broker, running_broker
from megaphone_client import Megaphone


def test_the_broker_serves_both_protocols(megaphone_broker: Broker) -> None:
    async def round_trip(url: str) -> object:
        async with Megaphone.from_url(url) as megaphone:
            channel = await megaphone.create()
            await megaphone.write(channel.producer, "s", "hello")
            async with megaphone.read(channel.consumer) as reader:
                return (await anext(reader)).body

    for url in (megaphone_broker.url, megaphone_broker.grpc_url):
        assert asyncio.run(round_trip(url)) == "hello"


def test_the_url_is_in_the_environment(megaphone_url: str) -> None:
    assert os.environ["MEGAPHONE_URL"] == megaphone_url
    with urllib.request.urlopen(f"{megaphone_url}/readyz") as answer:
        assert answer.status == 200


def test_a_broker_may_have_settings_of_its_own() -> None:
    with running_broker(poll_duration_millis=10) as broker:
        request = urllib.request.Request(f"{broker.url}/create", method="POST")
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(request)


def test_a_broker_that_cannot_start_says_why() -> None:
    with running_broker() as broker:
        taken = f"127.0.0.1:{broker.http_port}"
        with pytest.raises(OSError, match="in use"), running_broker(address=taken):
            pass
    with pytest.raises(TypeError), running_broker(no_such_setting=1):
        pass


def test_loading_the_fixtures_imports_nothing() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import megaphone.testing;"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"megaphone", "megaphone.testing"}
