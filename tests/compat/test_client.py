"""The original client library reads from our broker what it read from its own."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest

from megaphone.access.tokens import digest_of
from tests.compat.client import reading
from tests.compat.http import post
from tests.support.process import BrokerProcess, broker_process

WINDOW_MS = 250
TOKEN = "mgp_" + "t" * 43
CREATORS_NEED_A_TOKEN: dict[str, Any] = {
    "auth.require": "create",
    "auth.tokens.back-end.sha256": digest_of(TOKEN),
    "auth.tokens.back-end.actions": "create",
}
QUIET_S = 3 * WINDOW_MS / 1000
"""Long enough for another read or two, so that what is sent twice would show."""


@dataclass(frozen=True, slots=True)
class Channel:
    broker_url: str
    producer: str
    consumer: str

    def write(self, stream: str, body: Any) -> None:
        answer = post(f"{self.broker_url}/write/{self.producer}/{stream}", body)
        assert answer.status == 201, answer

    def stream(self, *streams: str) -> str:
        """Return the client's argument for one stream of these stream ids."""
        return f"{self.consumer}={','.join(streams)}"

    def response(self, stream: str) -> str:
        return f"{self.consumer}?{stream}"


def create(broker_url: str) -> Channel:
    """Create a channel as a back end does. A broker that requires no token ignores ours."""
    asked = {"protocols": ["HTTP_STREAM_NDJSON_V1"]}
    created = post(f"{broker_url}/create", asked, TOKEN).json()
    return Channel(broker_url, created["producerAddress"], created["consumerAddress"])


@pytest.fixture(scope="module", params=["nothing", "a token to create"])
def broker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BrokerProcess]:
    """Ours, which requires nothing, or a token of those who create channels. The old library has no
    tokens, and must see no difference."""
    directory = tmp_path_factory.mktemp("ours")
    settings = {} if request.param == "nothing" else CREATORS_NEED_A_TOKEN
    with broker_process(directory, poll_duration_millis=WINDOW_MS, **settings) as broker:
        if settings:
            assert post(f"{broker.url}/create", {}).status == 401
        yield broker


@pytest.fixture
def channel(broker: BrokerProcess) -> Channel:
    return create(broker.url)


def test_every_event_arrives_once_and_in_order_across_many_windows(broker: BrokerProcess) -> None:
    """What waits from one window to the next must fit into the client's read buffer: see
    `test_what_was_written_before_the_first_read_arrives`."""
    channels = [create(broker.url) for _ in range(3)]
    streams = ["first", "second", "third"]
    wanted = [channel.stream(stream) for channel in channels for stream in streams]
    with reading(broker.url, *wanted) as reader:
        written = write_for(3.0, channels, streams)
        for subscription in wanted:
            reader.wait_for_bodies(subscription, written)
        time.sleep(QUIET_S)
        for channel in channels:
            for stream in streams:
                expected = [f"{channels.index(channel)} {stream} {n}" for n in range(written)]
                assert reader.bodies(channel.stream(stream)) == expected


def write_for(duration_s: float, channels: list[Channel], streams: list[str]) -> int:
    """Write to every stream of every channel, over and over. Returns: how often to each."""
    until, written = time.monotonic() + duration_s, 0
    while time.monotonic() < until:
        for index, channel in enumerate(channels):
            for stream in streams:
                channel.write(stream, f"{index} {stream} {written}")
        written += 1
        time.sleep(0.015)
    assert written > 100
    return written


def test_one_subscription_to_two_streams_gets_both_in_the_order_written(channel: Channel) -> None:
    for n in range(20):
        channel.write("even" if n % 2 == 0 else "odd", n)
    with reading(channel.broker_url, channel.stream("even", "odd")) as reader:
        assert reader.wait_for_bodies(channel.stream("even", "odd"), 20) == list(range(20))


def test_a_stream_that_nobody_subscribed_to_disturbs_no_other(channel: Channel) -> None:
    with reading(channel.broker_url, channel.stream("mine")) as reader:
        for n in range(10):
            channel.write("other", "not mine")
            channel.write("mine", n)
        assert reader.wait_for_bodies(channel.stream("mine"), 10) == list(range(10))


def test_what_was_written_before_the_first_read_arrives(channel: Channel) -> None:
    """As much as fits into the client's read buffer; what that cuts in two the client loses."""
    for n in range(70):
        channel.write("s", n)
    with reading(channel.broker_url, channel.stream("s")) as reader:
        assert reader.wait_for_bodies(channel.stream("s"), 70) == list(range(70))


def test_a_batch_to_many_channels_arrives_at_each(broker: BrokerProcess) -> None:
    channels = [create(broker.url) for _ in range(4)]
    messages = [{"streamId": "s", "body": n} for n in range(30)]
    with reading(broker.url, *(channel.stream("s") for channel in channels)) as reader:
        addresses = [channel.producer for channel in channels]
        answer = post(f"{broker.url}/write-batch", {"channels": addresses, "messages": messages})
        assert (answer.status, answer.json()["failures"]) == (201, [])
        for channel in channels:
            assert reader.wait_for_bodies(channel.stream("s"), 30) == list(range(30))


@pytest.mark.parametrize(
    "body",
    [
        None,
        True,
        0,
        -1,
        2**63 - 1,
        -(2**63),
        2**64 - 1,
        0.1,
        -2.5e-3,
        1.7976931348623157e308,
        "",
        'Grüße, 世界, 👩‍👩‍👧, \u2028, \x00, \n, ", \\',
        {"ключ": {"nested": [1, [2, {"deep": None}]]}},
        [],
        {},
        ["a"] * 500,
    ],
    ids=lambda body: ascii(body)[:30],
)
def test_a_body_arrives_as_it_was_written(channel: Channel, body: Any) -> None:
    with reading(channel.broker_url, channel.stream("s")) as reader:
        channel.write("s", body)
        [arrived] = reader.wait_for_bodies(channel.stream("s"), 1)
        assert (type(arrived), arrived) == (type(body), body)


@pytest.mark.parametrize("stream", ["a.b", "with space", "größe", "a+b", "~!$&'()*;:@"])
def test_any_stream_id_can_be_subscribed_to(channel: Channel, stream: str) -> None:
    with reading(channel.broker_url, channel.stream(stream)) as reader:
        answer = post(f"{channel.broker_url}/write/{channel.producer}/{quote(stream)}", "here")
        assert answer.status == 201
        assert reader.wait_for_bodies(channel.stream(stream), 1) == ["here"]


def test_events_that_fill_the_read_buffer_of_the_client_arrive(channel: Channel) -> None:
    """The client takes no larger ones, from whichever broker: 8 KiB, and a little for the frame."""
    body = "x" * 7_500
    with reading(channel.broker_url, channel.stream("s")) as reader:
        for n in range(5):
            channel.write("s", [n, body])
            reader.wait_for_bodies(channel.stream("s"), n + 1)
        assert reader.bodies(channel.stream("s")) == [[n, body] for n in range(5)]


def test_a_response_that_is_awaited_arrives(channel: Channel) -> None:
    with reading(channel.broker_url, channel.response("answer")) as reader:
        time.sleep(2 * WINDOW_MS / 1000)
        channel.write("question", "not this")
        channel.write("answer", {"the": "response"})
        assert reader.wait_for_bodies(channel.response("answer"), 1) == [{"the": "response"}]


def test_a_response_on_a_channel_that_is_read_already_reuses_it(channel: Channel) -> None:
    wanted = [channel.stream("s"), channel.response("answer")]
    with reading(channel.broker_url, *wanted) as reader:
        assert [line["reads"] for line in reader.asked] == [None, channel.consumer]
        for n in range(5):
            channel.write("s", n)
        channel.write("answer", "done")
        assert reader.wait_for_bodies(channel.response("answer"), 1) == ["done"]
        assert reader.wait_for_bodies(channel.stream("s"), 5) == list(range(5))
