"""A broker that is stopped ends every open read after a whole event, and is gone soon."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import aiohttp
import grpc
import pytest

from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from tests.support.ports import free_port
from tests.support.process import (
    MEGAPHONE,
    BrokerProcess,
    broker_process,
    environment,
    next_line,
    wait_for,
)
from tests.support.redis_server import redis_server

READS = 50
OWN_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Runs a command whose terminal is its standard input."""
GONE_WITHIN_S = 8.0
"""Less than a read or a waiting writer has. It takes a second, but several on a busy machine."""


async def open_http_read(
    session: aiohttp.ClientSession, broker: BrokerProcess, opened: asyncio.Semaphore
) -> bytes:
    """Read until the end. Raises, when the end comes in the middle of a chunk."""
    async with session.post(f"{broker.url}/create") as created:
        addresses = await created.json()
    write = f"{broker.url}/write/{addresses['producerAddress']}/s"
    async with session.post(write, json={"n": 1}) as written:
        assert written.status == 201
    async with session.get(f"{broker.url}/read/{addresses['consumerAddress']}") as response:
        first = await response.content.readline()
        opened.release()
        return first + await response.content.read()


async def open_grpc_read(connection: grpc.aio.Channel, opened: asyncio.Semaphore) -> list[bytes]:
    """Read until the end. Raises, when the status is not OK."""
    stub = ChannelServiceStub(connection)
    addresses = await stub.CreateChannel(pb.CreateChannelRequest())
    await stub.Write(
        pb.WriteRequest(producer_address=addresses.producer_address, stream_id="s", body=b"1")
    )
    bodies = []
    async for response in stub.Read(pb.ReadRequest(consumer_address=addresses.consumer_address)):
        bodies += [event.body for event in response.events]
        opened.release()
    return bodies


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
async def test_open_reads_end_cleanly_and_the_process_is_gone(
    tmp_path: Path, signal_number: signal.Signals
) -> None:
    opened = asyncio.Semaphore(0)
    with broker_process(tmp_path, MEGAPHONE) as broker:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
            grpc.aio.insecure_channel(broker.grpc_target) as connection,
            asyncio.TaskGroup() as group,
        ):
            over_http = [
                group.create_task(open_http_read(session, broker, opened)) for _ in range(READS)
            ]
            over_grpc = [
                group.create_task(open_grpc_read(connection, opened)) for _ in range(READS)
            ]
            async with asyncio.timeout(20):
                for _ in range(2 * READS):
                    await opened.acquire()
            stopped_at = time.monotonic()
            broker.process.send_signal(signal_number)
            code = await asyncio.to_thread(broker.process.wait, 10)
            took_s = time.monotonic() - stopped_at
        assert code == 0
        assert took_s < GONE_WITHIN_S
        for task in over_http:
            assert task.result().endswith(b"\n")
            assert json.loads(task.result())["body"] == {"n": 1}
        assert [task.result() for task in over_grpc] == [[b"1"]] * READS
        assert not (tmp_path / "megaphone.sock").exists()


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with broker_process(tmp_path, MEGAPHONE) as broker:
        broker.process.send_signal(signal.SIGTERM)
        broker.process.send_signal(signal.SIGTERM)
        assert broker.process.wait(10) in (0, -signal.SIGTERM)


def status_of(url: str, method: str = "GET", data: bytes | None = None) -> int:
    request = Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except HTTPError as error:
        return error.code


def test_a_broker_that_stops_serves_its_channels_but_makes_none(tmp_path: Path) -> None:
    """It looks for its target as long as it may."""
    target = f"http://127.0.0.1:{free_port()}"
    with broker_process(tmp_path, drain_target=target, drain_timeout_secs=20) as broker:
        with urlopen(Request(f"{broker.url}/create", method="POST"), timeout=10) as created:
            addresses = json.load(created)
        assert status_of(f"{broker.url}/readyz") == 200
        broker.process.send_signal(signal.SIGTERM)
        wait_for(lambda: status_of(f"{broker.url}/readyz") == 503, 10)
        assert status_of(f"{broker.url}/readyz/create") == 503
        assert status_of(f"{broker.url}/create", "POST") == 503
        assert status_of(f"{broker.url}/livez") == 200
        assert (
            status_of(f"{broker.url}/write/{addresses['producerAddress']}/s", "POST", b"1") == 201
        )


def test_a_hangup_reads_the_settings_again_and_refuses_wrong_ones(tmp_path: Path) -> None:
    file = tmp_path / "megaphone.toml"
    file.write_text("buffer_capacity = 1\n")
    with broker_process(tmp_path, MEGAPHONE) as broker:
        file.write_text("buffer_capacity = 0\n")
        broker.process.send_signal(signal.SIGHUP)
        line = next_line(broker, "the settings stay as they were")
        assert "megaphone.toml: buffer_capacity = 0 is not allowed" in line
        file.write_text("buffer_capacity = 3\n")
        broker.process.send_signal(signal.SIGHUP)
        next_line(broker, "the settings were read again; changed: none")
        line = next_line(broker, "change only at the next start")
        assert line.endswith("next start: buffer_capacity")
        with urlopen(f"{broker.url}/metrics", timeout=10) as answer:
            metrics = answer.read().decode()
        assert 'megaphone_reloads_total{outcome="success"} 1\n' in metrics
        assert 'megaphone_reloads_total{outcome="failure"} 1\n' in metrics
        broker.process.send_signal(signal.SIGTERM)
        assert broker.process.wait(10) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_hangup_while_the_file_of_the_settings_is_away_changes_nothing(
    tmp_path: Path, workers: int
) -> None:
    """Else a node would be open to everybody while somebody replaces the file."""
    file = tmp_path / "megaphone.toml"
    file.write_text('[auth]\nrequire = ["create"]\n')
    with ExitStack() as stack:
        settings: dict[str, object] = {}
        if workers > 1:
            server = stack.enter_context(redis_server())
            settings = {"workers": workers, "store": server.text_url}
        broker = stack.enter_context(broker_process(tmp_path, MEGAPHONE, **settings))
        file.unlink()
        broker.process.send_signal(signal.SIGHUP)
        next_line(broker, "megaphone.toml: cannot be read: No such file or directory")
        with pytest.raises(HTTPError, match="401"):
            urlopen(Request(f"{broker.url}/create", method="POST"), timeout=10)


def test_a_hangup_does_not_end_a_broker_that_stops(tmp_path: Path) -> None:
    """Service managers send it after SIGTERM."""
    with broker_process(tmp_path, MEGAPHONE) as broker:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGHUP):
            broker.process.send_signal(number)
        assert broker.process.wait(10) == 0


def test_a_broker_stops_when_its_terminal_is_closed(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    log = tmp_path / "log"
    with log.open("w") as written:
        process = subprocess.Popen(
            [sys.executable, "-c", OWN_TERMINAL, MEGAPHONE, "serve"],
            cwd=tmp_path,
            env=environment(tmp_path, {}),
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=written,
        )
    os.close(theirs)
    try:
        wait_for(lambda: "serves HTTP" in log.read_text())
        os.close(ours)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
    assert "SIGHUP: stopping, because the terminal was closed" in log.read_text()


def test_a_hangup_is_ignored_under_nohup(tmp_path: Path) -> None:
    nohup = tmp_path / "nohup"
    nohup.write_text(f"#!/bin/sh\ntrap '' HUP\nexec {MEGAPHONE} serve\n")
    nohup.chmod(0o755)
    with broker_process(tmp_path, str(nohup)) as broker:
        broker.process.send_signal(signal.SIGHUP)
        with urlopen(f"{broker.url}/livez", timeout=10) as answer:
            assert answer.status == 200
        broker.process.send_signal(signal.SIGTERM)
        assert broker.process.wait(10) == 0


async def test_a_writer_that_waits_is_told_and_its_event_was_not_accepted(tmp_path: Path) -> None:
    with broker_process(tmp_path, MEGAPHONE, buffer_capacity=1) as broker:
        async with aiohttp.ClientSession() as session:
            async with session.post(f"{broker.url}/create") as created:
                address = (await created.json())["producerAddress"]
            url = f"{broker.url}/write/{address}/s"
            async with session.post(url, json=1) as written:
                assert written.status == 201
            waiting = asyncio.create_task(session.post(url, json=2))
            await metric_reaches(session, broker, "megaphone_writers_waiting", 1)
            broker.process.send_signal(signal.SIGTERM)
            async with await waiting as refused:
                assert refused.status == 503
                assert (await refused.json())["code"] == "SHUTTING_DOWN"


async def metric_reaches(
    session: aiohttp.ClientSession, broker: BrokerProcess, name: str, value: int
) -> None:
    async with asyncio.timeout(5):
        while True:
            async with session.get(f"{broker.url}/metrics") as response:
                if f"\n{name} {value}\n" in await response.text():
                    return
