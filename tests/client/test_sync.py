"""The client for programs without asyncio, over both protocols."""

import gc
import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import megaphone_client as aio
from megaphone.testing import Broker
from megaphone_client import ChannelNotFound, EventsLost, sync
from tests.client.conftest import PROTOCOLS

GONE = "testing." + "x" * 50 + ".1"


@pytest.fixture(params=PROTOCOLS)
def url(megaphone_broker: Broker, request: pytest.FixtureRequest) -> str:
    return {"http": megaphone_broker.url, "grpc": megaphone_broker.grpc_url}[request.param]


@pytest.fixture
def megaphone(url: str) -> Iterator[sync.Megaphone]:
    with sync.Megaphone.from_url(url) as client:
        yield client


@pytest.fixture
def channel(megaphone: sync.Megaphone) -> aio.Channel:
    return megaphone.create()


def write(megaphone: sync.Megaphone, channel: aio.Channel, *bodies: object) -> None:
    assert not megaphone.write_batch([channel.producer], [("s", body) for body in bodies])


# -- The names


@pytest.mark.parametrize("name", ["Megaphone", "Reader", "Subscriptions", "Publisher", "Event"])
def test_both_clients_have_the_same_calls(name: str) -> None:
    def calls(of: type[Any]) -> dict[str, list[inspect.Parameter]]:
        found = {}
        for call, value in inspect.getmembers(of):
            if not call.startswith("_") and callable(value):
                parameters = list(inspect.signature(value).parameters.values())
                name = "close" if call == "aclose" else call
                found[name] = [one.replace(annotation=one.empty) for one in parameters]
        return found

    asynchronous, synchronous = calls(getattr(aio, name)), calls(getattr(sync, name))
    if name == "Subscriptions":  # what the pump calls, and calls whose options are handed on
        assert {"stream", "first"} == synchronous.keys()
        return
    assert synchronous == asynchronous


# -- Calls


def test_an_event_arrives_as_it_was_written(
    megaphone: sync.Megaphone, channel: aio.Channel
) -> None:
    written = megaphone.write(channel.producer, "weather", {"sky": "grey"})
    with megaphone.read(channel.consumer, type=dict) as reader:
        event = next(reader)
        assert (event.id, event.stream, event.body) == (written, "weather", {"sky": "grey"})
        assert event.raw == b'{"sky":"grey"}'
        assert event.consumer == channel.consumer
        assert event.time.tzinfo is not None
        assert event.id in repr(event)
    assert megaphone.exists([channel.consumer, GONE]) == {channel.consumer: True, GONE: False}


def test_errors_are_the_same(megaphone: sync.Megaphone) -> None:
    with pytest.raises(ChannelNotFound):
        megaphone.ack(GONE, "x" * 23)
    with megaphone.read(GONE) as reader, pytest.raises(ChannelNotFound):
        next(reader)
    with pytest.raises(ValueError, match="URL"):
        sync.Megaphone.from_url("nowhere")


def test_headers_may_come_from_a_function(url: str) -> None:
    asked = []

    def headers() -> dict[str, str]:
        asked.append(threading.current_thread().name)
        return {"X-Token": "1"}

    with sync.Megaphone.from_url(url, headers=headers) as megaphone:
        megaphone.create()
    assert asked
    assert "megaphone" not in asked  # or a slow one would hold up all reads


def test_many_events_in_batches(megaphone: sync.Megaphone, channel: aio.Channel) -> None:
    gone = "testing.gone"
    with megaphone.publisher() as publisher:
        sent = [publisher.send(channel.producer, "s", number) for number in range(50)]
        ids = [one.result() for one in sent]
        bad = publisher.send(gone, "s", 1)
        with pytest.raises(aio.MegaphoneError):
            bad.result()
        publisher.send(gone, "s", 1)
        with pytest.raises(aio.MegaphoneError):
            publisher.flush()
    with megaphone.read(channel.consumer, limit=50) as reader:
        events = list(reader)
    assert [event.id for event in events] == ids
    assert [event.body for event in events] == list(range(50))


# -- Reading


def test_what_was_given_counts_as_dealt_with_one_by_one(
    megaphone: sync.Megaphone, channel: aio.Channel
) -> None:
    write(megaphone, channel, 1, 2, 3, 4)
    with megaphone.read(channel.consumer) as reader:
        assert [next(reader).body for _ in range(2)] == [1, 2]

    def fail() -> None:
        with megaphone.read(channel.consumer) as reader:
            assert [next(reader).body for _ in range(2)] == [3, 4]
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    with megaphone.read(channel.consumer) as reader:
        assert [event.body for event in reader.batch()] == [4]
        assert reader.batch(wait_s=0.01) == []


def test_the_cursor_follows_the_app(megaphone: sync.Megaphone, channel: aio.Channel) -> None:
    write(megaphone, channel, 1, 2, 3)
    with megaphone.read(channel.consumer, ack="none") as reader:
        first, _, _ = [next(reader) for _ in range(3)]
        assert reader.cursor != first.id
        write(megaphone, channel, 4)
        last = next(reader)
    with megaphone.read(channel.consumer, ack="none", after=first.id) as reader:
        assert [next(reader).body for _ in range(3)] == [2, 3, 4]
        assert last.body == 4


def test_by_hand(megaphone: sync.Megaphone, channel: aio.Channel) -> None:
    write(megaphone, channel, 1, 2)
    with megaphone.read(channel.consumer, ack="manual") as reader:
        next(reader).ack()
        next(reader)
    with megaphone.read(channel.consumer) as reader:
        assert next(reader).body == 2


def test_a_slow_app_is_acknowledged_while_it_works(
    megaphone: sync.Megaphone, channel: aio.Channel
) -> None:
    with megaphone.read(channel.consumer) as reader, megaphone.publisher() as publisher:
        for number in range(250):
            publisher.send(channel.producer, "s", number)
        assert [next(reader).body for _ in range(250)] == list(range(250))


def test_gaps(megaphone: sync.Megaphone, channel: aio.Channel) -> None:
    write(megaphone, channel, 1)
    with megaphone.read(channel.consumer, after="x" * 23) as reader:
        with pytest.raises(EventsLost):
            next(reader)
        assert next(reader).body == 1
    seen: list[object] = []
    write(megaphone, channel, 2)
    with megaphone.read(
        channel.consumer,
        after="x" * 23,
        on_gap=lambda: seen.append(threading.current_thread()),
    ) as reader:
        seen.append(next(reader).body)
    assert seen[0] is threading.current_thread()


def test_many_channels(megaphone: sync.Megaphone) -> None:
    channels = [megaphone.create() for _ in range(2)]
    for channel in channels:
        write(megaphone, channel, 1)
    with megaphone.read_many([channel.consumer for channel in channels]) as reader:
        got = {next(reader).consumer for _ in range(2)}
    assert got == {channel.consumer for channel in channels}


def test_streams(megaphone: sync.Megaphone, channel: aio.Channel) -> None:
    with megaphone.subscribe(channel.consumer) as streams:
        write(megaphone, channel, 1, 2)
        assert streams.first("s", type=int) == 1
        with streams.stream("s") as reader:
            assert next(reader).body == 2
        with pytest.raises(TimeoutError):
            streams.first("s", timeout_s=0.01)
        assert streams.cursor is not None


def test_what_came_ahead_is_kept_for_the_next_reader(
    megaphone: sync.Megaphone, channel: aio.Channel
) -> None:
    with megaphone.subscribe(channel.consumer) as streams:
        write(megaphone, channel, 1, 2, 3)
        with streams.stream("s") as reader:
            assert next(reader).body == 1
        assert [streams.first("s") for _ in range(2)] == [2, 3]


def test_a_forgotten_reader_leaves_what_it_has_not_dealt_with(
    megaphone: sync.Megaphone, channel: aio.Channel
) -> None:
    with megaphone.subscribe(channel.consumer) as streams:
        write(megaphone, channel, 1, 2, 3)
        for event in streams.stream("s"):
            if event.body == 2:
                break
        gc.collect()
        assert [streams.first("s", timeout_s=30) for _ in range(2)] == [2, 3]


def test_the_app_hears_of_a_gap_before_the_first_event(
    megaphone: sync.Megaphone, channel: aio.Channel
) -> None:
    seen: list[object] = []

    def on_gap() -> None:
        seen.append("gap")

    write(megaphone, channel, 1)
    with megaphone.subscribe(channel.consumer, after="x" * 23, on_gap=on_gap) as streams:
        seen.append(streams.first("s"))
    assert seen == ["gap", 1]


def test_of_two_readers_that_take_over_the_newer_one_stays(
    megaphone: sync.Megaphone, channel: aio.Channel
) -> None:
    with (
        megaphone.read(channel.consumer, take_over=True) as older,
        megaphone.read(channel.consumer, take_over=True) as newer,
    ):
        with pytest.raises(aio.TakenOver):
            next(older)
        write(megaphone, channel, 1)
        assert next(newer).body == 1


# -- Threads, interrupts and forks


def test_ctrl_c_wakes_a_call_and_loses_nothing(
    megaphone: sync.Megaphone, channel: aio.Channel
) -> None:
    with megaphone.read(channel.consumer) as reader:
        write(megaphone, channel, 1)
        assert next(reader).body == 1
        timer = threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            next(reader)
        timer.join()
        write(megaphone, channel, 2)
        assert next(reader).body == 2


FORKING = """
import os, sys
from megaphone_client import sync
megaphone = sync.Megaphone.from_url(sys.argv[1])
channel = megaphone.create()
child = os.fork()
megaphone.write(channel.producer, "s", "child" if child == 0 else "parent")
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
with megaphone.read(channel.consumer, limit=2) as reader:
    print(sorted(event.body for event in reader))
megaphone.close()
"""


def test_after_a_fork_both_processes_go_on(megaphone_broker: Broker) -> None:
    command = [sys.executable, "-W", "error", "-c", FORKING, megaphone_broker.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("['child', 'parent']\n", "")
