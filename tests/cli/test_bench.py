"""`megaphone bench` against a broker, and its judgement of what a channel got."""

import csv
import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from megaphone.cli.admin_client import call
from megaphone.cli.tally import Deliveries, Times
from tests.cli.conftest import User
from tests.support.process import BrokerProcess, broker_process


def result(text: str) -> Any:
    return json.loads(text)


@pytest.mark.parametrize("kind", ["write", "read", "latency", "fanout"])
def test_each_load_is_measured_and_loses_nothing(user: User, kind: str) -> None:
    done = user.run("bench", kind, "--channels", "5", "--for", "300ms", "-o", "json")
    assert (done.returncode, done.stderr) == (0, "")
    found = result(done.stdout)
    assert found["load"] == kind
    assert found["read_per_s"] > 0
    assert found["write_ms"]["p50"] <= found["write_ms"]["max"]
    assert (found["lost"], found["repeated"], found["out_of_order"]) == (0, 0, 0)
    assert found["settings"]["channels"] == 5
    assert found["client"]["version"]


def test_the_text_names_the_figures_and_the_machine(user: User) -> None:
    text = user.run("bench", "--channels", "2", "--rate", "50", "--for", "300ms").stdout
    assert text.startswith("load      latency, 2 channels, 50 events/s, 100 bytes, 1 in a call")
    assert "cores" in text
    assert "p99.9" in text
    assert "lost 0, repeated 0, out of order 0" in text


def test_a_table_has_one_row(user: User) -> None:
    text = user.run("bench", "write", "--channels", "2", "--for", "200ms", "-o", "csv").stdout
    [row] = csv.DictReader(text.splitlines())
    assert row["lost"] == "0"
    assert float(row["write_ms.p50"]) > 0


def test_batches_over_grpc(user: User, broker: BrokerProcess) -> None:
    url = f"grpc://{broker.grpc_target}"
    load = ("bench", "write", "--batch", "10", "--channels", "3", "--for", "300ms", "--size", "999")
    done = user.run(*load, "-o", "json", "-u", url)
    assert done.returncode == 0, done.stderr
    assert result(done.stdout)["broker"] == url


def test_lost_events_are_counted_and_are_exit_code_5(user: User, broker: BrokerProcess) -> None:
    # To the reader the seventh event is the sixth once more.
    with between(broker.http_port, b'"body":[7,', b'"body":[6,') as url:
        done = user.run("bench", "--channels", "2", "--for", "300ms", "-o", "json", "-u", url)
    assert done.returncode == 5
    found = result(done.stdout)
    assert (found["lost"], found["repeated"], found["out_of_order"]) == (2, 2, 0)
    assert done.stderr == "megaphone: 2 events were lost\n"


@contextmanager
def between(port: int, old: bytes, new: bytes) -> Iterator[str]:
    """Stand before a broker, and change what it sends. Yields: the URL."""

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", port)) as broker:
                threading.Thread(target=self.copy, args=(self.request, broker), daemon=True).start()
                self.copy(broker, self.request)

        def copy(self, source: socket.socket, target: socket.socket) -> None:
            with suppress(OSError):
                while data := source.recv(65_536):
                    target.sendall(data.replace(old, new))
                target.shutdown(socket.SHUT_WR)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Connection) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_the_channels_are_removed_if_the_context_has_the_admin_socket(tmp_path: Path) -> None:
    with broker_process(tmp_path) as broker:
        path = str(tmp_path / "megaphone.sock")
        user = User(tmp_path)
        user.run("context", "add", "here", broker.url, "--socket", path)
        assert user.run("bench", "--channels", "3", "--for", "100ms").returncode == 0
        assert result(call(path, "GET", "/channel/list?limit=50").decode()) == []


def test_no_broker_is_exit_code_1(tmp_path: Path) -> None:
    user = User(tmp_path, {"MEGAPHONE_URL": "http://127.0.0.1:9"})
    done = user.run("bench", "--for", "100ms")
    assert (done.returncode, done.stdout) == (1, "")


def test_percentiles_are_within_one_percent() -> None:
    times = Times()
    for microseconds in range(1, 10_001):
        times.add(microseconds * 1_000)
    median, most = times.percentiles_ms(0.5, 1.0)
    assert median == pytest.approx(5.0, rel=0.01)
    assert most == pytest.approx(10.0, rel=0.01)


def test_without_times_there_are_no_percentiles() -> None:
    assert Times().percentiles_ms(0.5) == [None]


def deliveries(written: int, refused: tuple[int, ...], read: tuple[int, ...]) -> Deliveries:
    judged = Deliveries()
    for number in refused:
        judged.not_written(number)
    judged.written(written)
    for number in read:
        judged.read(number)
    return judged


@pytest.mark.parametrize(
    ("written", "refused", "read", "lost", "repeated", "out_of_order"),
    [
        (3, (), (1, 2, 3), 0, 0, 0),
        (3, (), (1, 3), 1, 0, 0),
        (3, (), (1, 2), 1, 0, 0),
        (3, (), (1, 3, 2), 0, 0, 1),
        (3, (), (1, 2, 2, 3), 0, 1, 0),
        (3, (2,), (1, 3), 0, 0, 0),  # it was refused
        (3, (2,), (1, 2, 3), 0, 0, 0),  # nobody knew, and it was taken
        (2, (), (1, 2, 3), 0, 0, 0),  # the answer to the third is on its way
    ],
)
def test_a_channel_is_judged(
    written: int,
    refused: tuple[int, ...],
    read: tuple[int, ...],
    lost: int,
    repeated: int,
    out_of_order: int,
) -> None:
    judged = deliveries(written, refused, read)
    assert (judged.lost, judged.repeated, judged.out_of_order) == (lost, repeated, out_of_order)
    assert judged.is_complete == (lost == 0)
