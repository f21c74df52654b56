"""Several workers serve one port, and go on whatever becomes of one of them."""

import asyncio
import itertools
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import aiohttp
import grpc
import pytest

from megaphone.settings import Settings
from megaphone.workers.member import COMMAND
from megaphone.workers.messages import Begin, encode
from megaphone_api.v1 import channels_pb2 as pb
from megaphone_api.v1.channels_pb2_grpc import ChannelServiceStub
from tests.support.busy_clients import GrpcClient, HttpClient, Record, be_busy
from tests.support.certificates import make_certificates
from tests.support.process import (
    MEGAPHONE,
    BrokerProcess,
    broker_process,
    environment,
    next_line,
    wait_for,
)
from tests.support.redis_fixtures import shared_server
from tests.support.redis_server import redis_server

PREFIXES = (f"workers-{number}" for number in itertools.count())
WITHIN_S = 40.0
SOCKETS = ("megaphone.sock", "megaphone.2.sock")
"""The admin sockets of two workers."""


@contextmanager
def workers(directory: Path, count: int = 2, **settings: Any) -> Iterator[BrokerProcess]:
    """Run a broker with so many workers, and end them all at the end."""
    with shared_server() as server:
        shared: dict[str, Any] = {
            "store": server.text_url,
            "store_prefix": next(PREFIXES),
            "workers": count,
            "agent_warmup_secs": 0,
        }
        with broker_process(directory, MEGAPHONE, **(shared | settings)) as broker:
            pids = processes(broker)
            try:
                yield broker
            finally:
                pids |= processes(broker)
                broker.process.kill()
                broker.process.wait()
                # They notice that the supervisor has gone.
                wait_for(lambda: not any(is_alive(pid) for pid in pids))


def processes(broker: BrokerProcess) -> set[int]:
    """Return the ids of the worker processes."""
    pid = broker.process.pid
    try:
        return {int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except FileNotFoundError:
        return set()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def post(broker: BrokerProcess, path: str, body: bytes = b"") -> Any:
    headers = {"Content-Type": "application/json"}
    request = Request(f"{broker.url}{path}", body, headers, method="POST")
    with urlopen(request, timeout=WITHIN_S) as answer:
        return json.loads(answer.read())


def metrics(broker: BrokerProcess) -> dict[str, float]:
    with urlopen(f"{broker.url}/metrics", timeout=WITHIN_S) as answer:
        lines = answer.read().decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}


def finished(
    directory: Path, *arguments: str, **settings: Any
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [MEGAPHONE, "serve", *arguments],
        cwd=directory,
        env=environment(directory, settings),
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )


async def test_every_worker_serves_every_channel_over_both_faces(tmp_path: Path) -> None:
    with workers(tmp_path) as broker:
        assert "; 2 workers: processes " in broker.start_line
        assert len(processes(broker)) == 2
        made = [post(broker, "/create") for _ in range(20)]
        for channel in made:  # each on a connection of its own
            post(broker, f"/write/{channel['producerAddress']}/s", b"1")
        async with grpc.aio.insecure_channel(broker.grpc_target) as connection:
            stub = ChannelServiceStub(connection)
            for channel in made:
                request = pb.ReadRequest(consumer_address=channel["consumerAddress"], limit=1)
                bodies = [e.body async for answer in stub.Read(request) for e in answer.events]
                assert bodies == [b"1"]


def test_the_metrics_of_any_worker_are_those_of_all(tmp_path: Path) -> None:
    with workers(tmp_path, agent="one") as broker:
        for _ in range(20):
            post(broker, "/create")
        for _ in range(4):
            found = metrics(broker)
            assert found["megaphone_channel_created"] == found["megaphone_channels"] == 20
            assert found["megaphone_workers"] == 2
            created = 'megaphone_requests_total{face="http",method="create",code="OK"}'
            assert found[created] == 20
            assert found['megaphone_request_seconds_count{method="create"}'] == 20
            assert found["megaphone_channels_limit"] == 100_000  # of all together
            assert found["megaphone_store_channels"] <= 20
            assert found["process_start_time_seconds"] < time.time()
            [store] = [name for name in found if name.startswith("megaphone_store_info{")]
            assert 'persistence="no persistence",wait_replicas="0"' in store
            assert found[store] == 1


def megactl(socket_path: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [MEGAPHONE.replace("megaphone", "megactl"), "-p", str(socket_path), *arguments],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )


def agents_of(socket_path: Path) -> set[str]:
    """Return the names of the agents of a worker; none if it does not answer."""
    listed = megactl(socket_path, "-o", "json", "list-agents")
    return {agent["name"] for agent in json.loads(listed.stdout)} if listed.stdout else set()


def test_each_worker_has_an_admin_socket(tmp_path: Path) -> None:
    with workers(tmp_path, agent="one") as broker:
        made = post(broker, "/create")
        for name in SOCKETS:
            listed = megactl(tmp_path / name, "list-channels", "--agent", "one")
            assert made["consumerAddress"].split(".")[0] in listed.stdout
            assert (tmp_path / name).stat().st_mode & 0o077 == 0
        broker.process.terminate()
        assert broker.process.wait(WITHIN_S) == 0
        assert list(tmp_path.glob("*.sock*")) == []


def test_an_agent_that_one_worker_is_given_is_given_to_all(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in SOCKETS)
    with workers(tmp_path, agent="one") as broker:
        assert megactl(second, "add-agent", "--name", "two").returncode == 0
        for path in (first, second):
            assert agents_of(path) == {"one", "two"}
            again = megactl(path, "add-agent", "--name", "two")
            assert "agent two is on this node already" in again.stderr
        assert "must be 1 to" in megactl(first, "add-agent", "--name", "t.o").stderr
        # Also to those that are started later.
        before = processes(broker)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: len(processes(broker) - before) == 2)
        for path in (first, second):
            wait_for(lambda path=path: agents_of(path) == {"one", "two"})  # type: ignore[misc]


def test_an_agent_that_is_removed_from_one_worker_is_removed_from_all(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in SOCKETS)
    with workers(tmp_path, agent="one") as broker:
        assert "add another one before" in megactl(first, "remove-agent", "-n", "one").stderr
        assert megactl(second, "add-agent", "--name", "two").returncode == 0
        done = megactl(first, "remove-agent", "-n", "one")
        assert (done.returncode, done.stderr) == (0, "")
        for path in (first, second):
            wait_for(lambda path=path: agents_of(path) == {"two"})  # type: ignore[misc]
        # Also from those that are started later.
        before = processes(broker)
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: len(processes(broker) - before) == 2)
        for path in (first, second):
            wait_for(lambda path=path: agents_of(path) == {"two"})  # type: ignore[misc]


def test_an_agent_is_not_given_to_all_while_one_worker_does_not_answer(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in SOCKETS)
    with workers(tmp_path, agent="one") as broker:
        [deaf] = re.findall(r"processes \d+, (\d+)", broker.start_line)
        os.kill(int(deaf), signal.SIGSTOP)
        refused = megactl(first, "add-agent", "--name", "two")
        os.kill(int(deaf), signal.SIGCONT)
        assert refused.returncode == 1
        assert "not every worker has agent two: worker 2 does not answer" in refused.stderr
        assert megactl(first, "add-agent", "--name", "two").returncode == 0
        for path in (first, second):
            assert agents_of(path) == {"one", "two"}


def test_a_worker_that_dies_is_started_again_and_its_counts_stay(tmp_path: Path) -> None:
    with workers(tmp_path) as broker:
        for _ in range(20):
            post(broker, "/create")
        assert metrics(broker)["megaphone_channel_created"] == 20
        before = processes(broker)
        os.kill(min(before), signal.SIGKILL)
        line = next_line(broker, "started again")
        assert "ended by SIGKILL; the worker is started again" in line
        assert next_line(broker, "a worker serves")
        assert len(processes(broker) - before) == 1
        found = metrics(broker)
        assert found["megaphone_channel_created"] == 20
        assert found["megaphone_workers"] == 2
        assert found["megaphone_workers_died"] == 1


def test_a_worker_whose_supervisor_goes_while_it_starts_never_serves(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    settings = Settings(
        address="127.0.0.1:0",
        grpc_address="127.0.0.1:0",
        mng_socket_path=str(tmp_path / "megaphone.sock"),
        workers=2,
    )
    with shared_server() as server, socket.create_server(("127.0.0.1", 0)) as http, ours:
        settings = replace(settings, store=server.text_url, store_prefix=next(PREFIXES))
        with theirs:
            worker = subprocess.Popen(
                [*COMMAND, str(theirs.fileno())],
                pass_fds=(theirs.fileno(), http.fileno()),
                env=environment(tmp_path, {}),
                stderr=subprocess.PIPE,
                text=True,
            )
        try:
            ours.sendall(encode(Begin(settings, 1, http.fileno())))
            ours.shutdown(socket.SHUT_WR)  # as if the supervisor had gone, but we still listen
            ours.settimeout(WITHIN_S)
            assert ours.recv(1) == b""  # no `Ready`
            _, log = worker.communicate(timeout=WITHIN_S)
        finally:
            worker.kill()
        assert worker.returncode == 0
        assert "the supervisor has gone: not starting" in log


def test_workers_stop_in_order_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    with workers(tmp_path) as broker:
        pids = processes(broker)
        consumer = post(broker, "/create")["consumerAddress"]
        with urlopen(f"{broker.url}/read/{consumer}", timeout=WITHIN_S) as read:
            broker.process.kill()
            assert read.read() == b""  # complete, because a broken one would raise
        wait_for(lambda: not any(is_alive(pid) for pid in pids))


def test_no_metric_or_log_line_or_argument_has_the_secret_of_the_store(tmp_path: Path) -> None:
    with (
        redis_server(requirepass="geheim") as server,
        workers(tmp_path, store=server.text_url) as broker,
    ):
        with urlopen(f"{broker.url}/metrics", timeout=WITHIN_S) as answer:
            assert b"geheim" not in answer.read()
        for pid in processes(broker) | {broker.process.pid}:
            assert b"geheim" not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert "geheim" not in broker.start_line
        broker.process.terminate()
        assert broker.process.stderr is not None
        assert "geheim" not in broker.process.stderr.read()


def test_memory_is_refused_with_the_reason(tmp_path: Path) -> None:
    ended = finished(tmp_path, "--workers", "2")
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "each worker would have channels of its own" in ended.stderr


def test_a_start_that_fails_stops_all_with_one_line(tmp_path: Path) -> None:
    with shared_server() as server, socket.create_server(("127.0.0.1", 0)) as taken:
        busy = f"127.0.0.1:{taken.getsockname()[1]}"
        for settings in (
            {"store": "redis://127.0.0.1:1"},
            {"store": server.text_url, "address": busy},
            {"store": server.text_url, "grpc_address": busy},
            {"store": server.text_url, "mng_socket_path": "/no/such/folder/m.sock"},
        ):
            ended = finished(tmp_path, "--workers", "3", **settings)
            assert (ended.returncode, ended.stderr.count("\n")) == (1, 1), ended.stderr
            assert ended.stderr.startswith("megaphone: cannot start: ")


def test_two_brokers_do_not_share_a_port_by_mistake(tmp_path: Path) -> None:
    with workers(tmp_path) as broker, shared_server() as server:
        other = tmp_path / "other"
        other.mkdir()
        both = {"address": "127.0.0.1:0", "grpc_address": f"127.0.0.1:{broker.grpc_port}"}
        for changed in (both, {"address": f"127.0.0.1:{broker.http_port}"}):
            for count in ("1", "2"):
                ended = finished(other, "--workers", count, store=server.text_url, **changed)
                assert ended.returncode == 1, (changed, count)


async def test_a_stop_ends_reads_cleanly(tmp_path: Path) -> None:
    with workers(tmp_path) as broker:
        async with aiohttp.ClientSession() as session:
            reads = []
            for _ in range(10):
                made = await asyncio.to_thread(post, broker, "/create")
                path = f"/write/{made['producerAddress']}/s"
                await asyncio.to_thread(post, broker, path, b"1")
                answer = await session.get(f"{broker.url}/read/{made['consumerAddress']}")
                assert json.loads(await answer.content.readline())["body"] == 1
                reads.append(answer)
            broker.process.send_signal(signal.SIGTERM)
            for answer in reads:
                assert await answer.content.read() == b""  # raises, if it does not end cleanly
        assert await asyncio.to_thread(broker.process.wait, WITHIN_S) == 0


def test_a_second_signal_ends_all_at_once(tmp_path: Path) -> None:
    with workers(tmp_path) as broker:
        pids = processes(broker)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)  # so that it cannot stop in order
        broker.process.send_signal(signal.SIGINT)
        next_line(broker, "SIGINT: stopping")
        broker.process.send_signal(signal.SIGINT)
        assert broker.process.wait(5) == -signal.SIGINT
        wait_for(lambda: not any(is_alive(pid) for pid in pids))


def test_a_hangup_takes_new_settings_and_refuses_wrong_ones(tmp_path: Path) -> None:
    file = tmp_path / "megaphone.toml"
    file.write_text("buffer_capacity = 1\nwrite_timeout_millis = 1\n")
    with workers(tmp_path) as broker:
        before = processes(broker)
        file.write_text("buffer_capacity = 0\n")
        broker.process.send_signal(signal.SIGHUP)
        assert "buffer_capacity" in next_line(broker, "no worker is replaced")
        assert processes(broker) == before
        file.write_text("buffer_capacity = 3\nwrite_timeout_millis = 1\n")
        broker.process.send_signal(signal.SIGHUP)
        next_line(broker, "all workers are replaced")
        assert len(processes(broker)) == 2
        assert not processes(broker) & before
        found = metrics(broker)
        assert found['megaphone_reloads_total{outcome="success"}'] == 1
        assert found['megaphone_reloads_total{outcome="failure"}'] == 1
        made = post(broker, "/create")
        for _ in range(3):
            post(broker, f"/write/{made['producerAddress']}/s", b"1")


def test_workers_have_tls_and_a_port_for_operators_and_a_wrong_certificate_ends_none(
    tmp_path: Path,
) -> None:
    made = make_certificates(tmp_path)
    tls: dict[str, Any] = {"tls.certificate": made.certificate, "tls.key": made.key}
    trusting = ssl.create_default_context(cafile=made.authority)
    with workers(tmp_path, ops_address="127.0.0.1:0", **tls) as broker:
        [port] = re.findall(r"operators ask on 127\.0\.0\.1:(\d+)", broker.start_line)
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WITHIN_S) as answer:
            metrics = answer.read().decode()
        assert "\nmegaphone_workers 2\n" in metrics
        until = 'megaphone_certificate_not_after_timestamp_seconds{door="public"} '
        [at] = [float(line.split()[1]) for line in metrics.splitlines() if line.startswith(until)]
        assert abs(at - time.time() - 86_400) < 3_600
        before = processes(broker)
        made.key.write_text("wrong")
        broker.process.send_signal(signal.SIGHUP)
        assert "those after it stay: tls.key" in next_line(broker, "those after it stay")
        assert processes(broker) == before
        with urlopen(
            f"https://127.0.0.1:{broker.http_port}/livez", timeout=WITHIN_S, context=trusting
        ) as answer:
            assert answer.status == 200


@pytest.mark.timeout(240)
async def test_a_rolling_restart_refuses_no_call(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record = Record()
    with workers(tmp_path, grpc_connection_age_secs=2, poll_duration_millis=1_000) as broker:
        before = processes(broker)
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=5)
        async with aiohttp.ClientSession(connector=connector) as session:
            clients: list[HttpClient | GrpcClient] = []
            clients += [HttpClient(session, broker.url) for _ in range(160)]
            clients += [GrpcClient(broker.grpc_target) for _ in range(40)]
            busy = [asyncio.create_task(be_busy(client, record)) for client in clients]
            await record.all_read.wait()
            await asyncio.to_thread(broker.process.send_signal, signal.SIGHUP)
            await asyncio.to_thread(next_line, broker, "all workers are replaced")
            assert not processes(broker) & before
            record.ends.set()
            await asyncio.gather(*busy)
    for name, count in sorted(record.calls.items()):
        record_property(name, count)
        print(name, count)
    assert not record.refused
    assert not record.wrong
