"""An incident for each alert: it happens on a node that runs, and Prometheus raises the alert.

The rules are those of deploy/prometheus, but look back on seconds. All tests share one Prometheus
and the nodes that it watches.
"""

import http.client
import json
import os
import re
import signal
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
import yaml

from megaphone_client.sync import Megaphone
from tests.dashboard import DASHBOARD, expression
from tests.support.certificates import make_certificates
from tests.support.documented import ROOT
from tests.support.forked import run, without_own_settings
from tests.support.ports import free_port
from tests.support.process import MEGAPHONE, BrokerProcess, broker_process, wait_for
from tests.support.prometheus import (
    RULES,
    WINDOW,
    Prometheus,
    hurried,
    needs_prometheus,
    prometheus,
)
from tests.support.redis_server import RedisServer, redis_server
from tests.support.settings import IS_LONG

pytestmark = [needs_prometheus, pytest.mark.group("prometheus")]

takes_long = pytest.mark.skipif(
    not IS_LONG, reason="takes seconds: workers or the store start anew"
)

WITHIN_S = 20.0
CAPACITY = 5
SELECTOR = re.compile(r"\b(?:megaphone_(?!operator_)\w+|process_\w+|up|ALERTS)(?:\{[^}]*\})?(?!\w)")
OF_PROMETHEUS = {'ALERTS{alertstate="firing", alertname=~"Megaphone.*"}'}
"""What need not be there, because it is there only while an alert fires."""
OF_A_BUSY_MACHINE = {"MegaphoneDown", "MegaphoneLoopLag", "MegaphoneDeliverySlow"}
"""What other tests at the same time may cause on a node that is well."""
PEER = struct.Struct("3i")
"""The process, user and group at the other end of a Unix socket."""


def runbook(alert: str) -> str:
    """Return what docs/alerts.md says about an alert."""
    return (ROOT / "docs" / "alerts.md").read_text().split(f"\n### {alert}\n")[1].split("\n#")[0]


class Node:
    """A node that Prometheus watches by its name."""

    def __init__(self, name: str, folder: Path, broker: BrokerProcess) -> None:
        self.name = name
        self.folder = folder
        self.broker = broker
        self.producers: list[str] = []
        """Of all channels that were created."""

    def call(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, Any]:
        """Return the status and the body of an answer."""
        headers = {"Content-Type": "application/json"} | headers
        request = Request(f"{self.broker.url}{path}", body or None, headers, method=method)
        try:
            with urlopen(request, timeout=WITHIN_S) as answer:
                return answer.status, json.loads(answer.read())
        except HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def create(self, **options: object) -> tuple[str, str]:
        """Create a channel. Returns: the addresses of its producer and its consumer."""
        status, made = self.call("POST", "/create", json.dumps(options).encode())
        assert status == 200, made
        self.producers.append(made["producerAddress"])
        return made["producerAddress"], made["consumerAddress"]

    def write(self, producer: str, body: bytes = b"1") -> str:
        """Write an event. Returns: `OK`, or the code of the error."""
        status, answer = self.call("POST", f"/write/{producer}/s", body)
        return "OK" if status == 201 else str(answer["code"])

    def is_ready(self) -> bool:
        with suppress(OSError, http.client.HTTPException):
            return self.call("GET", "/readyz")[0] == 200
        return False

    def channels_to_look_at(self, alert: str) -> list[str]:
        """Run the command by which the runbook finds channels. Returns: their addresses."""
        [command] = re.findall(r"`megactl (list-channels .+?)`", runbook(alert))
        _, *lines = self.megactl(*command.split()).splitlines()
        return [line.split("|")[-1].strip() for line in lines]

    def admin_process(self) -> int | None:
        """Return the process that serves the admin socket; None if none does."""
        with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
            connection.connect(str(self.folder / "megaphone.sock"))
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
            return int(PEER.unpack(peer)[0])
        return None

    def begin(self, request: str, body: bytes = b"") -> socket.socket:
        """Send a request, and do not wait for the answer. It ends when the socket is closed."""
        connection = socket.create_connection(("127.0.0.1", self.broker.http_port))
        head = (
            f"{request} HTTP/1.1\r\nHost: node\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        connection.settimeout(WITHIN_S)
        connection.sendall(head.encode() + body)
        return connection

    def megactl(self, *words: str, exit_code: int = 0) -> str:
        """Run a command of the node's operators. Returns: what it prints."""
        done = run(
            ["megactl", "-p", str(self.folder / "megaphone.sock"), *words],
            directory=self.folder,
            environment=without_own_settings(),
        )
        assert done.returncode == exit_code, done.stderr
        return done.stdout


@dataclass(slots=True)
class Site:
    """All nodes of these tests."""

    folder: Path
    store: RedisServer
    stack: ExitStack
    nodes: dict[str, Node] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    """Where Prometheus finds the metrics of each node."""

    def start(self, name: str, command: str | None = None, **settings: Any) -> Node:
        folder = self.folder / name
        folder.mkdir()
        process = broker_process(folder, command, agent_warmup_secs=0, **settings)
        broker = self.stack.enter_context(process)
        self.targets[name] = str(settings.get("ops_address", f"127.0.0.1:{broker.http_port}"))
        self.nodes[name] = Node(name, folder, broker)
        return self.nodes[name]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with redis_server(appendonly="yes") as store, ExitStack() as stack:
        site = Site(folder, store, stack)
        site.start("rooms", buffer_capacity=CAPACITY)
        site.start("hasty", **HASTY, buffer_capacity=CAPACITY)
        site.start("starved")
        site.start("well")
        site.start("narrow", **NARROW, ops_address=f"127.0.0.1:{free_port()}")
        site.start("doors", **behind_doors(folder), ops_address=f"127.0.0.1:{free_port()}")
        site.start("shared", MEGAPHONE, **with_a_store(store))
        target = site.start("target").broker.grpc_target
        source = site.start("source", agent="moving")
        source.megactl("pipe-agent", "-n", "moving", "-t", f"http://{target}")
        yield site


HASTY: dict[str, Any] = {"write_timeout_millis": 1000, "tenants.default.reads": 0}
NARROW: dict[str, Any] = {
    "max_channels": 10,
    "max_buffered_bytes": 2**20,
    "max_connections": 8,
}


def behind_doors(folder: Path) -> dict[str, Any]:
    """Return the settings of a node with TLS and tokens, whose issuer does not answer."""
    made = make_certificates(folder)
    return {
        "tls.certificate": made.certificate,
        "tls.key": made.key,
        "auth.require": "create",
        "auth.issuers.silent.issuer": "https://id.example.com",
        "auth.issuers.silent.audience": "https://push.example.com",
        "auth.issuers.silent.jwks_url": f"http://127.0.0.1:{free_port()}/keys",
    }


def with_a_store(store: RedisServer) -> dict[str, Any]:
    """Return the settings of two workers, which report to a webhook that is not there."""
    return {
        "store": store.text_url,
        "workers": 2,
        "webhooks.nobody.endpoint": f"http://127.0.0.1:{free_port()}/",
        "webhooks_allow": "127.0.0.1",
    }


@pytest.fixture(scope="module")
def watcher(site: Site) -> Iterator[Prometheus]:
    rules = hurried(RULES.read_text())
    with prometheus(site.folder / "prometheus", site.targets, rules) as started:
        yield started


@pytest.fixture
def rooms(site: Site) -> Node:
    """A node for channels and events."""
    return site.nodes["rooms"]


# -- Channels and events


def full_channel(node: Node) -> tuple[str, str]:
    producer, consumer = node.create()
    assert [node.write(producer) for _ in range(CAPACITY)] == ["OK"] * CAPACITY
    return producer, consumer


def test_writes_to_a_full_channel_time_out(watcher: Prometheus, site: Site) -> None:
    hasty = site.nodes["hasty"]
    producer, consumer = full_channel(hasty)
    with ExitStack() as writers:

        def write() -> None:
            writers.enter_context(hasty.begin(f"POST /write/{producer}/s", b"1"))

        said = watcher.wait_until_fires("MegaphoneWritesTimeOut", write, instance="hasty")
        assert hasty.channels_to_look_at("MegaphoneWritesTimeOut") == [consumer]
    assert "find no place in time" in said["summary"]


def test_a_writer_waits_all_the_time(watcher: Prometheus, rooms: Node) -> None:
    full_channel(rooms)
    producer, consumer = full_channel(rooms)
    with rooms.begin(f"POST /write/{producer}/s", b"1"):
        watcher.wait_until_fires("MegaphoneChannelsBlocked", instance="rooms")
        assert rooms.channels_to_look_at("MegaphoneChannelsBlocked") == [consumer]
        story = rooms.megactl("show-channel", "-n", consumer)
    assert re.search(r"^waiting writers +1, ", story, re.MULTILINE)
    assert re.search(r"^reader +-$", story, re.MULTILINE)


def test_a_channel_ends_with_events_that_nobody_read(watcher: Prometheus, rooms: Node) -> None:
    def end() -> None:
        producer, _ = rooms.create()
        assert rooms.write(producer) == "OK"
        rooms.call("DELETE", f"/channel/{producer}")

    watcher.wait_until_fires("MegaphoneEventsLost", end, instance="rooms")


def test_readers_come_late(watcher: Prometheus, rooms: Node) -> None:
    producer, consumer = rooms.create(capacity=CAPACITY + 5)
    for _ in range(CAPACITY + 1):  # more than any other channel has
        assert rooms.write(producer) == "OK"
    time.sleep(1.1)  # the reader is away
    assert rooms.channels_to_look_at("MegaphoneDeliverySlow")[0] == consumer
    with rooms.begin(f"GET /read/{consumer}"):
        watcher.wait_until_fires("MegaphoneDeliverySlow", instance="rooms")


def test_clients_come_back_all_the_time(watcher: Prometheus, rooms: Node) -> None:
    _, consumer = rooms.create()

    def read_and_leave() -> None:
        for _ in range(20):
            with rooms.begin(f"GET /read/{consumer}") as connection:
                connection.recv(1)

    watcher.wait_until_fires("MegaphoneReconnectStorm", read_and_leave, instance="rooms")


def test_a_process_gets_no_processor(watcher: Prometheus, site: Site) -> None:
    process = site.nodes["starved"].broker.process

    def stop() -> None:
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.4)
        process.send_signal(signal.SIGCONT)
        time.sleep(0.4)

    watcher.wait_until_fires("MegaphoneLoopLag", stop, instance="starved")


# -- Limits of a node


@pytest.fixture
def narrow(site: Site) -> Iterator[Node]:
    """A node with low limits, without channels."""
    node = site.nodes["narrow"]
    yield node
    for producer in node.producers:
        node.call("DELETE", f"/channel/{producer}")


def test_events_that_nobody_reads_fill_the_memory(watcher: Prometheus, narrow: Node) -> None:
    narrow.create()
    producer, consumer = narrow.create()
    narrow.create()
    body = json.dumps("x" * 30_000).encode()
    while narrow.write(producer, body) != "LIMIT_EXCEEDED":
        pass
    watcher.wait_until_fires("MegaphoneMemoryNearLimit", instance="narrow")
    assert narrow.channels_to_look_at("MegaphoneMemoryNearLimit")[0] == consumer


def test_channels_reach_their_limit(watcher: Prometheus, narrow: Node) -> None:
    for _ in range(10):
        narrow.create()
    watcher.wait_until_fires("MegaphoneChannelsNearLimit", instance="narrow")


def test_clients_get_no_connection(watcher: Prometheus, narrow: Node) -> None:
    def connect() -> None:
        for _ in range(3):
            one = socket.create_connection(("127.0.0.1", narrow.broker.http_port))
            one.sendall(b"GET /")
            stack.callback(one.close)

    with ExitStack() as stack:
        watcher.wait_until_fires("MegaphoneConnectionsRefused", connect, instance="narrow")


# -- Who may pass


@pytest.fixture
def doors(site: Site) -> Node:
    return site.nodes["doors"]


def test_somebody_tries_tokens(watcher: Prometheus, doors: Node) -> None:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection("127.0.0.1", doors.broker.http_port, context=context)

    def guess() -> None:
        for number in range(20):
            headers = {"Authorization": f"Bearer guess-{number}"}
            connection.request("POST", "/create", headers=headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 401

    watcher.wait_until_fires("MegaphoneAuthFailures", guess, instance="doors")
    connection.close()


def test_an_issuer_does_not_answer(watcher: Prometheus, doors: Node) -> None:
    watcher.wait_until_fires("MegaphoneKeysOld", instance="doors", issuer="silent")


def test_a_certificate_ends_tomorrow(watcher: Prometheus, doors: Node) -> None:
    said = watcher.wait_until_fires("MegaphoneCertificateExpires", instance="doors", door="public")
    assert "expires in 23h 59m" in said["summary"]


def test_somebody_writes_a_wrong_configuration(watcher: Prometheus, doors: Node) -> None:
    (doors.folder / "megaphone.toml").write_text("no_such_setting = 1\n")

    def reload() -> None:
        doors.broker.process.send_signal(signal.SIGHUP)

    watcher.wait_until_fires("MegaphoneReloadFailed", reload, instance="doors", outcome="failure")


# -- The shared store and workers


@pytest.fixture
def shared(site: Site) -> Node:
    """A broker with two workers, both of which serve."""
    node = site.nodes["shared"]
    wait_for(node.is_ready)
    wait_for(lambda: node.admin_process() is not None)
    return node


def test_somebody_writes_into_the_keys_of_the_store(
    watcher: Prometheus, site: Site, shared: Node
) -> None:
    before = set(site.store.call("KEYS", "*"))
    producer, _ = shared.create()
    for key in set(site.store.call("KEYS", "*")) - before:
        if site.store.call("TYPE", key) == b"string":
            site.store.call("SET", key, "spoilt")

    def write() -> None:
        assert shared.write(producer) == "INTERNAL_SERVER_ERROR"

    watcher.wait_until_fires("MegaphoneInternalErrors", write, instance="shared")


def first_worker(node: Node) -> int:
    pid = node.admin_process()
    assert pid is not None
    return pid


def test_a_worker_is_killed(watcher: Prometheus, shared: Node) -> None:
    os.kill(first_worker(shared), signal.SIGKILL)
    watcher.wait_until_fires("MegaphoneWorkerDied", instance="shared")


@takes_long
def test_a_worker_ends_before_it_has_called_a_webhook(watcher: Prometheus, shared: Node) -> None:
    _, consumer = shared.create()
    shared.megactl("dispose-channel", "-n", consumer)  # by the first worker
    os.kill(first_worker(shared), signal.SIGTERM)  # the other one still answers Prometheus
    watcher.wait_until_fires("MegaphoneWebhooksLost", instance="shared")


@takes_long
def test_the_store_dies(watcher: Prometheus, site: Site, shared: Node) -> None:
    site.store.kill()
    watcher.wait_until_fires(
        "MegaphoneStoreUnavailable", lambda: shared.call("POST", "/create"), instance="shared"
    )
    site.store.start()


# -- All nodes


def test_a_node_that_is_well_raises_no_alert(watcher: Prometheus, site: Site) -> None:
    broker = site.nodes["well"].broker
    for url in (broker.url, f"grpc://{broker.grpc_target}"):
        with Megaphone.from_url(url) as client:
            channel = client.create()
            with client.read(channel.consumer) as events:
                for number in range(20):
                    client.write(channel.producer, "s", number)
                    assert next(events).body == number
            client.dispose(channel.producer)
    wait_for(lambda: bool(watcher.query('megaphone_messages_read{instance="well"} == 40')))
    wait_for(
        lambda: bool(
            watcher.query(f'rate(megaphone_messages_read{{instance="well"}}[{WINDOW}]) == 0')
        )
    )
    raised = watcher.query('max_over_time(ALERTS{instance="well"}[1h])')
    assert {one["metric"]["alertname"] for one in raised} <= OF_A_BUSY_MACHINE


def expressions() -> Iterator[str]:
    """Yield each expression about nodes: of the rules, and of the dashboard with its variables put
    in. The others are about the operator for Kubernetes."""
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        if group["name"] != "megaphone-clusters":
            yield from (rule["expr"] for rule in group["rules"])
    for panel in DASHBOARD["panels"]:
        yield from (expression(target["expr"]) for target in panel.get("targets", ()))
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield expression(variable["query"]["query"].removeprefix("label_values("))


def test_nodes_have_everything_that_rules_and_panels_name(watcher: Prometheus, site: Site) -> None:
    _, consumer = site.nodes["hasty"].create()  # a limit of a tenant is counted once it is reached
    assert site.nodes["hasty"].call("GET", f"/read/{consumer}")[0] == 429
    selectors = {one for text in expressions() for one in SELECTOR.findall(text)}
    assert len(selectors) > 50
    deadline = time.monotonic() + WITHIN_S
    while missing := {one for one in selectors if not watcher.query(one)} - OF_PROMETHEUS:
        assert time.monotonic() < deadline, missing
        time.sleep(0.1)


def test_prometheus_can_evaluate_each_panel(watcher: Prometheus) -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            watcher.query(expression(target["expr"]))


# -- Other nodes


def test_a_drain_finds_no_target(watcher: Prometheus, site: Site) -> None:
    hasty = site.nodes["hasty"]
    hasty.create()

    def drain() -> None:
        hasty.megactl("drain", "--target", f"http://127.0.0.1:{free_port()}", exit_code=1)

    watcher.wait_until_fires("MegaphoneAgentsLeftBehind", drain, instance="hasty")


def test_a_node_dies_that_has_the_replica_of_another(watcher: Prometheus, site: Site) -> None:
    assert not watcher.firing("MegaphonePipeDown")
    site.nodes["target"].broker.process.kill()
    watcher.wait_until_fires("MegaphonePipeDown", instance="source", agent="moving")
    watcher.wait_until_fires("MegaphoneDown", instance="target")
