"""An agent moves between the original and ours, in both directions, while events are written.

What the original loses on the way is its own: it forwards neither what was written before the pipe,
nor disposals, and it does not say when it is done.
"""

import json
import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from megaphone.store.memory.waiting import UNREAD_S
from tests.compat.brokers import Broker, Channel, Start, ours, theirs
from tests.compat.http import post
from tests.compat.original import MEGACTL as THEIR_MEGACTL
from tests.support.ports import free_ports
from tests.support.process import MEGAPHONE

AGENT = "moved"
WINDOW_MS = 300
WITHIN_S = 10.0
OUR_MEGACTL = Path(MEGAPHONE).with_name("megactl")


@dataclass(frozen=True, slots=True)
class Nodes:
    """Two brokers: the source has the agent that moves, the target another one."""

    source: Broker
    target: Broker

    def pipe(self, *channels: Channel) -> None:
        """Pipe the agent, and wait until the target has its channels."""
        answer = self.source.pipe(AGENT, self.target.pipe_target)
        assert (answer.status, answer.json()) == (202, {"status": "OK"})
        self.wait_for_channels(*channels)

    def wait_for_channels(self, *channels: Channel) -> None:
        addresses = [channel.consumer for channel in channels]
        eventually(lambda: all(self.target.exists(*addresses).values()))

    def stop_source(self) -> None:
        self.source.process.send_signal(signal.SIGTERM)
        self.source.process.wait(timeout=WITHIN_S)


@contextmanager
def nodes(tmp_path: Path, source: Start, target: Start) -> Iterator[Nodes]:
    directories = [tmp_path / "source", tmp_path / "target"]
    for directory in directories:
        directory.mkdir()
    with (
        source(directories[0], AGENT, poll_duration_millis=WINDOW_MS) as from_node,
        target(directories[1], "home", poll_duration_millis=WINDOW_MS) as to_node,
    ):
        yield Nodes(from_node, to_node)


@pytest.fixture
def to_ours(tmp_path: Path) -> Iterator[Nodes]:
    with nodes(tmp_path, theirs, ours) as pair:
        yield pair


@pytest.fixture
def to_theirs(tmp_path: Path) -> Iterator[Nodes]:
    with nodes(tmp_path, ours, theirs) as pair:
        yield pair


@pytest.fixture(params=["to_ours", "to_theirs"])
def either(request: pytest.FixtureRequest) -> Nodes:
    """Each direction in turn."""
    chosen: Nodes = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture(params=[theirs, ours], ids=["from-theirs", "from-ours"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    """Each broker in turn, with the agent and without a target."""
    with request.param(tmp_path, AGENT) as broker:
        yield broker


def eventually(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < until, f"not within {WITHIN_S:g} s"
        time.sleep(0.02)


def take(broker: Broker, channel: Channel, amount: int) -> list[Any]:
    """Return the next events of a channel: so many at least, and all there are by then."""
    events: list[Any] = []
    until = time.monotonic() + WITHIN_S
    while len(events) < amount and time.monotonic() < until:
        events += broker.read(channel)
    return events + broker.read(channel)


def bodies(events: list[Any]) -> list[Any]:
    return [event["body"] for event in events]


def has_been_fed(broker: Broker, amount: int) -> Callable[[], bool]:
    """Return the condition that so many events have come, which only ours tells from writes."""

    def has_been() -> bool:
        with urllib.request.urlopen(f"{broker.url}/metrics", timeout=WITHIN_S) as response:
            metrics = response.read().decode()
        counts = re.findall(r"^megaphone_messages_(?:received|fed) (\d+)$", metrics, re.MULTILINE)
        return sum(map(int, counts)) >= amount

    return has_been


def write_numbers(broker: Broker, channel: Channel, first: int, end: int) -> None:
    for n in range(first, end):
        broker.write(channel.producer, n)


@dataclass(slots=True)
class Writer:
    """Writes numbers to a channel in a thread, as a back end does that knows of no pipe."""

    broker: Broker
    channel: Channel
    written: int = 0
    _is_over: threading.Event = field(default_factory=threading.Event)

    def write(self) -> None:
        while not self._is_over.is_set():
            self.broker.write(self.channel.producer, self.written)
            self.written += 1
            time.sleep(0.02)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        thread = threading.Thread(target=self.write)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join()


# -- From the original to ours


def test_what_is_written_during_the_pipe_arrives_in_ours(to_ours: Nodes) -> None:
    channels = [to_ours.source.create() for _ in range(3)]
    for channel in channels:
        write_numbers(to_ours.source, channel, 0, 5)
    to_ours.pipe(*channels)
    for channel in channels:
        write_numbers(to_ours.source, channel, 5, 60)
    for channel in channels:
        assert bodies(take(to_ours.target, channel, 55)) == list(range(5, 60))


def test_an_event_is_the_same_in_ours_as_in_the_original(to_ours: Nodes) -> None:
    channel = to_ours.source.create()
    to_ours.pipe(channel)
    written = [{"größe": [1, 2.5, -3, None]}, "世界 👩‍👩‍👧", 2**53, [], "x" * 100_000]
    for n, body in enumerate(written):
        to_ours.source.write(channel.producer, body, stream=f"stream-{n}")
    sent = take(to_ours.source, channel, len(written))
    arrived = take(to_ours.target, channel, len(written))
    assert bodies(arrived) == written
    assert [without_nanoseconds(e) for e in arrived] == [without_nanoseconds(e) for e in sent]


def without_nanoseconds(event: Any) -> Any:
    """Return an event with its time in microseconds, which is what ours keeps."""
    seconds, _, digits = event["ts"].removesuffix("Z").partition(".")
    return event | {"ts": f"{seconds}.{digits[:6]:0<6}Z"}


def test_traffic_from_the_original_arrives_without_a_gap_from_the_pipe_on(to_ours: Nodes) -> None:
    writer = Writer(to_ours.source, to_ours.source.create())
    with writer.at_work():
        eventually(lambda: writer.written > 10)
        to_ours.pipe(writer.channel)
        piped_at = writer.written
        eventually(lambda: writer.written > 50)
    arrived = bodies(take(to_ours.target, writer.channel, writer.written - piped_at))
    assert 0 < arrived[0] <= piped_at
    assert arrived == list(range(arrived[0], writer.written))


def test_batches_to_the_original_arrive_in_ours(to_ours: Nodes) -> None:
    channels = [to_ours.source.create() for _ in range(2)]
    to_ours.pipe(*channels)
    messages = [{"streamId": "s", "body": n} for n in range(20)]
    batch = {"channels": [channel.producer for channel in channels], "messages": messages}
    assert post_batch(to_ours.source, batch) == []
    for channel in channels:
        assert bodies(take(to_ours.target, channel, 20)) == list(range(20))


def post_batch(broker: Broker, batch: dict[str, Any]) -> Any:
    return post(f"{broker.url}/write-batch", batch).json()["failures"]


def test_writes_to_the_consumer_address_of_the_original_arrive_in_ours(to_ours: Nodes) -> None:
    channel = to_ours.source.create()
    to_ours.pipe(channel)
    to_ours.source.write(channel.consumer, "old style")
    assert bodies(take(to_ours.target, channel, 1)) == ["old style"]


def test_after_the_end_of_the_original_ours_goes_on_with_the_channel(to_ours: Nodes) -> None:
    """The original does not say that it is done, so the agent stays a replica."""
    channel = to_ours.source.create()
    to_ours.pipe(channel)
    write_numbers(to_ours.source, channel, 0, 30)
    eventually(has_been_fed(to_ours.target, 30))
    to_ours.stop_source()
    write_numbers(to_ours.target, channel, 30, 40)
    assert bodies(take(to_ours.target, channel, 40)) == list(range(40))
    assert to_ours.target.mode(AGENT) == "REPLICA"


# -- From ours to the original


def test_what_was_written_before_and_during_the_pipe_arrives_in_the_original(
    to_theirs: Nodes,
) -> None:
    channels = [to_theirs.source.create() for _ in range(3)]
    for channel in channels:
        write_numbers(to_theirs.source, channel, 0, 30)
    to_theirs.pipe(*channels)
    for channel in channels:
        write_numbers(to_theirs.source, channel, 30, 80)
    for channel in channels:
        assert bodies(take(to_theirs.target, channel, 80)) == list(range(80))


def test_an_event_is_the_same_in_the_original_as_in_ours(to_theirs: Nodes) -> None:
    channel = to_theirs.source.create()
    written = [{"größe": [1, 2.5, -3, None]}, "世界 👩‍👩‍👧", 2**53, [], "x" * 100_000]
    for n, body in enumerate(written):
        to_theirs.source.write(channel.producer, body, stream=f"stream-{n}")
    to_theirs.pipe(channel)
    arrived = take(to_theirs.target, channel, len(written))
    sent = take(to_theirs.source, channel, len(written))
    assert bodies(arrived) == written
    assert arrived == sent


def test_traffic_from_ours_arrives_without_a_gap(to_theirs: Nodes) -> None:
    writer = Writer(to_theirs.source, to_theirs.source.create())
    with writer.at_work():
        eventually(lambda: writer.written > 10)
        to_theirs.pipe(writer.channel)
        eventually(lambda: writer.written > 80)
    assert writer.written <= 100, "more than the channel holds"
    arrived = bodies(take(to_theirs.target, writer.channel, writer.written))
    assert arrived == list(range(writer.written))


def test_a_full_replica_of_the_original_keeps_the_newest(to_theirs: Nodes) -> None:
    channel = to_theirs.source.create()
    write_numbers(to_theirs.source, channel, 0, 100)
    time.sleep(UNREAD_S)  # until then ours waits for a reader
    to_theirs.pipe(channel)
    write_numbers(to_theirs.source, channel, 100, 130)
    eventually(has_been_fed(to_theirs.target, 130))
    assert bodies(take(to_theirs.target, channel, 100)) == list(range(30, 130))


def test_after_the_end_of_ours_the_original_goes_on_with_the_channel(to_theirs: Nodes) -> None:
    channel = to_theirs.source.create()
    write_numbers(to_theirs.source, channel, 0, 30)
    to_theirs.pipe(channel)
    write_numbers(to_theirs.source, channel, 30, 60)
    to_theirs.stop_source()
    write_numbers(to_theirs.target, channel, 60, 70)
    assert bodies(take(to_theirs.target, channel, 70)) == list(range(70))
    assert to_theirs.target.mode(AGENT) == "REPLICA"


def test_the_original_mistakes_the_end_of_ours_for_the_end_of_the_pipe(to_theirs: Nodes) -> None:
    """A REPLICA with an incoming pipe cannot be piped on. One whose pipe has ended can."""
    channel = to_theirs.source.create()
    to_theirs.pipe(channel)
    own_port = to_theirs.target.pipe_target
    assert to_theirs.target.pipe(AGENT, own_port).status == 400
    to_theirs.stop_source()
    eventually(lambda: to_theirs.target.pipe(AGENT, own_port).status == 202)


# -- In both directions


def test_the_agent_is_piped_at_the_source_and_a_replica_at_the_target(either: Nodes) -> None:
    channels = [either.source.create() for _ in range(4)]
    either.pipe(*channels)
    assert either.source.mode(AGENT) == "PIPED"
    replica = either.target.agents()[AGENT]
    since = replica.pop("since")
    assert since.endswith("Z")
    expected = {"name": AGENT, "warmingUp": False, "mode": "REPLICA", "channelsCount": 4}
    assert replica == expected
    assert either.target.mode("home") == "MASTER"


def test_the_addresses_of_the_source_work_at_the_target(either: Nodes) -> None:
    channel = either.source.create()
    either.pipe(channel)
    expected = {channel.producer: True, channel.consumer: True}
    assert either.target.exists(channel.producer, channel.consumer) == expected
    either.target.write(channel.producer, "written at the target")
    assert bodies(take(either.target, channel, 1)) == ["written at the target"]


def test_a_piped_source_makes_no_more_channels(either: Nodes) -> None:
    either.pipe()
    assert post(f"{either.source.url}/create", {}).status in (500, 503)


def test_channels_of_many_events_survive_a_source_that_is_killed(either: Nodes) -> None:
    channel = either.source.create()
    either.pipe(channel)
    write_numbers(either.source, channel, 0, 50)
    eventually(has_been_fed(either.target, 50))
    either.source.process.kill()
    either.source.process.wait()
    assert bodies(take(either.target, channel, 50)) == list(range(50))
    assert either.target.mode(AGENT) == "REPLICA"


@pytest.mark.parametrize("tool", [THEIR_MEGACTL, OUR_MEGACTL], ids=["their-tool", "our-tool"])
@pytest.mark.parametrize("output", ["plain", "json"])
def test_megactl_pipes_an_agent(either: Nodes, tool: Path, output: str) -> None:
    if not tool.exists():
        pytest.skip("our own megactl is not installed")
    channel = either.source.create()
    command = ["-o", output, "pipe-agent", "-n", AGENT, "-t", either.target.pipe_target]
    done = subprocess.run(
        [tool, "-p", either.source.socket_path, *command],
        capture_output=True,
        text=True,
        timeout=20,
    )
    expected = {"plain": "Operation completed successfully\n", "json": '{"status":"OK"}\n'}
    assert (done.returncode, done.stdout, done.stderr) == (0, expected[output], "")
    either.wait_for_channels(channel)


def test_the_answer_to_a_pipe_is_the_same(tmp_path: Path) -> None:
    answers = []
    for name, start in [("theirs", theirs), ("ours", ours)]:
        (tmp_path / name).mkdir()
        with nodes(tmp_path / name, start, theirs) as pair:
            answers.append(pair.source.pipe(AGENT, pair.target.pipe_target))
    assert answers[0] == answers[1]


def test_an_agent_whose_target_is_not_there_stays_a_master(source: Broker) -> None:
    [nobody] = free_ports(1)
    answer = source.pipe(AGENT, f"http://127.0.0.1:{nobody}")
    assert answer.status in (500, 503)
    assert json.loads(answer.body).keys() >= {"code", "message"}
    assert source.mode(AGENT) == "MASTER"
    source.write(source.create().producer, "still taken")


def test_an_unknown_agent_is_not_piped(either: Nodes) -> None:
    answer = either.source.pipe("nobody", either.target.pipe_target)
    assert answer.status in (400, 404)
    assert json.loads(answer.body).keys() >= {"code", "message"}
    assert either.target.mode("nobody") is None


@pytest.mark.parametrize("target", ["", "not a url", "http://"])
def test_a_target_that_is_no_address_is_refused(source: Broker, target: str) -> None:
    assert source.pipe(AGENT, target).status in (400, 500)
    assert source.mode(AGENT) == "MASTER"


def test_a_replica_with_an_incoming_pipe_is_not_piped_on(either: Nodes) -> None:
    either.pipe()
    eventually(lambda: either.target.mode(AGENT) == "REPLICA")
    assert either.target.pipe(AGENT, either.source.pipe_target).status in (400, 409)
    assert either.target.mode(AGENT) == "REPLICA"


def test_an_agent_that_the_target_has_already_is_left_alone_there(tmp_path: Path) -> None:
    for name, (start, end) in {"to_ours": (theirs, ours), "to_theirs": (ours, theirs)}.items():
        (tmp_path / name).mkdir()
        with start(tmp_path / name, AGENT) as one, end(tmp_path / name, AGENT) as other:
            channel = other.create()
            one.pipe(AGENT, other.pipe_target)
            time.sleep(0.5)
            assert other.mode(AGENT) == "MASTER"
            other.write(channel.producer, "with the key that it had")
