"""A webhook gets a report of every removed channel in time, or the loss is counted.

The endpoints are real servers on loopback; only the times are shorter than in production.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from aiohttp import web

from megaphone.observe.metrics import Metrics
from megaphone.observe.webhooks import WebhookLimits, Webhooks, key_of, signature
from megaphone.settings import Webhook

NEVER_S = 60.0
"""Longer than any test."""
FAST = WebhookLimits(
    interval_s=0.01,
    timeout_s=5,
    retry_s=0.02,
    longest_retry_s=0.1,
    give_up_s=NEVER_S,
    stop_s=0.5,
)


def limits(**changes: float) -> WebhookLimits:
    values = {name: getattr(FAST, name) for name in WebhookLimits.__slots__}
    return WebhookLimits(**values | changes)


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    """The time on the clock of the event loop."""

    @property
    def channels(self) -> list[str]:
        content = json.loads(self.body)
        assert list(content) == ["channels"]
        return list(content["channels"])

    @property
    def id(self) -> str:
        return self.headers["Webhook-Id"]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0


HANG = Answer(after_s=NEVER_S)


@dataclass(slots=True)
class Endpoint:
    """A server that keeps the requests it gets, and answers as a test sets it."""

    port: int = 0
    received: list[Received] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    """The first answers, in order."""
    then: Answer = field(default_factory=Answer)
    """All further answers."""
    at_once: int = 0
    """How many requests wait for their answers now."""
    most_at_once: int = 0

    def hook(self, path: str = "/gone", secret: str | None = None, user: str = "") -> Webhook:
        return Webhook(endpoint=f"http://{user}127.0.0.1:{self.port}{path}", secret=secret)

    @property
    def told(self) -> list[str]:
        return [address for request in self.received for address in request.channels]

    async def handle(self, request: web.Request) -> web.Response:
        assert request.method == "POST"
        body = await request.read()
        now = asyncio.get_running_loop().time()
        self.received.append(Received(request.raw_path, dict(request.headers), body, now))
        answer = self.answers.pop(0) if self.answers else self.then
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(answer.after_s)
        self.at_once -= 1
        return web.Response(status=answer.status, headers=answer.headers)

    async def has(self, amount: int) -> list[Received]:
        """Wait until so many requests have arrived."""
        await until(lambda: len(self.received) >= amount)
        return self.received


@asynccontextmanager
async def serving() -> AsyncIterator[Endpoint]:
    endpoint = Endpoint()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", endpoint.handle)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    endpoint.port = int(runner.addresses[0][1])
    try:
        yield endpoint
    finally:
        await runner.cleanup()


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """Answer every request with the same bytes. Yields: the port."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await reader.read()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield int(server.sockets[0].getsockname()[1])


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with serving() as endpoint:
        yield endpoint


async def until(condition: Callable[[], bool], within_s: float = 5) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await a_moment()


async def a_moment() -> None:
    await asyncio.sleep(0.002)


async def nothing_more(endpoint: Endpoint, for_s: float = 0.15) -> bool:
    """Return whether no further request arrives within a time."""
    before = len(endpoint.received)
    with suppress(TimeoutError):
        await until(lambda: len(endpoint.received) > before, for_s)
    return len(endpoint.received) == before


def hooks_of(hooks: Mapping[str, Webhook], *, limits: WebhookLimits = FAST) -> Webhooks:
    """Return hooks that may call the endpoints of these tests."""
    return Webhooks(hooks, allow=["127.0.0.1"], limits=limits)


def addresses(amount: int) -> list[str]:
    return [f"node.{number:050d}.1" for number in range(amount)]


def remove(webhooks: Webhooks, channels: list[str]) -> None:
    for address in channels:
        webhooks.channel_removed(address)


def gaps(received: list[Received]) -> list[float]:
    return [after.at - before.at for before, after in pairwise(received)]


def hook_tasks() -> list[str]:
    return [repr(task) for task in asyncio.all_tasks() if "Hook." in repr(task)]


def lines_of(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [r.getMessage() for r in caplog.records if text in r.getMessage()]


# -- Requests


async def test_removed_channels_are_reported_in_the_form_of_the_contract(
    endpoint: Endpoint,
) -> None:
    async with hooks_of({"audit": endpoint.hook("/gone")}) as webhooks:
        remove(webhooks, addresses(3))
        (request, *others) = await endpoint.has(1)
        await until(lambda: webhooks.sent == 1)
    assert request.path == "/gone"
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.body) == {"channels": addresses(3)}
    assert not others
    assert (webhooks.sent, webhooks.failed, webhooks.lost) == (1, 0, 0)


async def test_every_hook_gets_the_report(endpoint: Endpoint) -> None:
    hooks = {"a": endpoint.hook("/a"), "b": endpoint.hook("/b")}
    async with hooks_of(hooks) as webhooks:
        remove(webhooks, addresses(1))
        await until(lambda: webhooks.sent == 2)
    assert sorted(request.path for request in endpoint.received) == ["/a", "/b"]


async def test_an_endpoint_is_called_just_as_it_is_written(endpoint: Endpoint) -> None:
    hook = endpoint.hook("/a%2Fb/%41?sig=x%3D%2B+%7e/", user="me:p%40ss%E2%82%AC@")
    async with hooks_of({"audit": hook}) as webhooks:
        remove(webhooks, addresses(1))
        (request,) = await endpoint.has(1)
    assert request.path == "/a%2Fb/%41?sig=x%3D%2B+%7e/"
    expected = base64.b64encode("me:p@ss€".encode()).decode()
    assert request.headers["Authorization"] == f"Basic {expected}"


async def test_the_headers_name_the_request_and_the_time_of_the_try(endpoint: Endpoint) -> None:
    endpoint.answers = [Answer(503), Answer(503)]
    started = time.time()
    pauses = limits(retry_s=0.6, longest_retry_s=0.6)
    async with hooks_of({"a": endpoint.hook()}, limits=pauses) as webhooks:
        remove(webhooks, addresses(1))
        first, second, third = await endpoint.has(3)
        await until(lambda: webhooks.sent == 1)
        remove(webhooks, addresses(1))
        *_, other = await endpoint.has(4)
    assert first.id == second.id == third.id
    assert first.body == second.body == third.body
    assert other.id != first.id
    assert re.fullmatch(r"[A-Za-z0-9_-]{10,}", other.id)
    times = [int(request.headers["Webhook-Timestamp"]) for request in endpoint.received]
    assert int(started) <= times[0] <= times[1] <= times[2] <= time.time()
    assert times[2] > times[0], "the time must be that of the try"


@pytest.mark.parametrize(
    ("secret", "key"),
    [
        ("a plain secret", b"a plain secret"),
        ("whsec_" + base64.b64encode(b"\x00\xff binary key").decode(), b"\x00\xff binary key"),
    ],
)
async def test_every_try_is_signed_anew_with_the_secret(
    endpoint: Endpoint, secret: str, key: bytes
) -> None:
    endpoint.answers = [Answer(500)]
    hook, pauses = endpoint.hook(secret=secret), limits(retry_s=1.0, longest_retry_s=1.0)
    async with hooks_of({"audit": hook}, limits=pauses) as webhooks:
        remove(webhooks, addresses(2))
        requests = await endpoint.has(2)
    for request in requests:
        signed = f"{request.id}.{request.headers['Webhook-Timestamp']}.{request.body.decode()}"
        digest = hmac.new(key, signed.encode(), hashlib.sha256).digest()
        expected = "v1," + base64.b64encode(digest).decode()
        assert request.headers["Webhook-Signature"] == expected
    assert len({request.headers["Webhook-Signature"] for request in requests}) == 2


def test_a_signature_is_that_of_the_standard_webhooks_libraries() -> None:
    key = key_of("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_secret_may_be_any_bytes_that_a_variable_can_hold() -> None:
    assert key_of(os.fsdecode(b"\xe4\xff")) == b"\xe4\xff"


async def test_without_a_secret_nothing_is_signed(endpoint: Endpoint) -> None:
    async with hooks_of({"audit": endpoint.hook()}) as webhooks:
        remove(webhooks, addresses(1))
        (request,) = await endpoint.has(1)
    assert "Webhook-Signature" not in request.headers


async def test_cookies_of_an_endpoint_are_not_sent_back(endpoint: Endpoint) -> None:
    endpoint.then = Answer(headers={"Set-Cookie": "a=b"})
    async with hooks_of({"audit": endpoint.hook()}) as webhooks:
        remove(webhooks, addresses(1))
        await until(lambda: webhooks.sent == 1)
        remove(webhooks, addresses(1))
        *_, request = await endpoint.has(2)
    assert "Cookie" not in request.headers


# -- Batches


async def test_a_request_has_at_most_a_thousand_addresses(endpoint: Endpoint) -> None:
    async with hooks_of({"audit": endpoint.hook()}) as webhooks:
        remove(webhooks, addresses(2_500))
        await until(lambda: webhooks.sent == 3)
    assert [len(request.channels) for request in endpoint.received] == [1_000, 1_000, 500]
    assert endpoint.told == addresses(2_500)


async def test_channels_removed_within_the_interval_are_reported_together(
    endpoint: Endpoint,
) -> None:
    async with hooks_of({"audit": endpoint.hook()}, limits=limits(interval_s=0.4)) as webhooks:
        for address in addresses(4):
            webhooks.channel_removed(address)
            await asyncio.sleep(0.02)
        await endpoint.has(1)
        webhooks.channel_removed("node.next.1")
        requests = await endpoint.has(2)
    assert [request.channels for request in requests] == [addresses(4), ["node.next.1"]]
    assert gaps(requests)[0] > 0.35


async def test_a_slow_endpoint_gets_one_request_at_a_time(endpoint: Endpoint) -> None:
    endpoint.then = Answer(after_s=0.1)
    async with hooks_of({"audit": endpoint.hook()}, limits=limits(interval_s=0.3)) as webhooks:
        for address in addresses(30):
            webhooks.channel_removed(address)
            await asyncio.sleep(0.02)
        await until(lambda: len(endpoint.told) == 30)
    assert len(endpoint.received) < 5


async def test_a_whole_batch_does_not_wait_for_the_interval(endpoint: Endpoint) -> None:
    patient = limits(interval_s=0.4, batch=10)
    async with hooks_of({"audit": endpoint.hook()}, limits=patient) as webhooks:
        remove(webhooks, addresses(25))
        first, second, third = await endpoint.has(3)
    assert second.at - first.at < 0.2
    assert third.at - second.at > 0.35


async def test_an_empty_list_is_never_sent(endpoint: Endpoint) -> None:
    async with hooks_of({"audit": endpoint.hook()}) as webhooks:
        assert await nothing_more(endpoint)
        remove(webhooks, addresses(1))
        await until(lambda: webhooks.sent == 1)
        assert await nothing_more(endpoint)
    assert [request.channels for request in endpoint.received] == [addresses(1)]


def test_the_limits_are_those_that_are_promised() -> None:
    limits = WebhookLimits()
    assert (limits.batch, limits.capacity) == (1_000, 100_000)
    assert (limits.interval_s, limits.timeout_s, limits.stop_s) == (1, 10, 2)
    assert 60 <= limits.give_up_s <= 600
    assert limits.longest_retry_s < limits.give_up_s


# -- Failures


@pytest.mark.parametrize("status", [304, 400, 401, 404, 408, 410, 413, 429, 500, 502, 503, 504])
async def test_a_refused_request_is_tried_again(endpoint: Endpoint, status: int) -> None:
    endpoint.answers = [Answer(status), Answer(status)]
    async with hooks_of({"audit": endpoint.hook()}) as webhooks:
        remove(webhooks, addresses(1))
        await until(lambda: webhooks.sent == 1)
    assert [request.channels for request in endpoint.received] == [addresses(1)] * 3
    assert (webhooks.sent, webhooks.failed, webhooks.lost) == (1, 2, 0)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(endpoint: Endpoint, status: int) -> None:
    async with serving() as target:
        location = f"http://127.0.0.1:{target.port}/"
        endpoint.answers = [Answer(status, {"Location": location})]
        async with hooks_of({"audit": endpoint.hook()}) as webhooks:
            remove(webhooks, addresses(1))
            await until(lambda: webhooks.sent == 1)
        assert (len(endpoint.received), webhooks.failed) == (2, 1)
        assert target.received == []


async def test_an_endpoint_that_does_not_answer_in_time_is_tried_again(endpoint: Endpoint) -> None:
    endpoint.answers = [HANG]
    async with hooks_of({"audit": endpoint.hook()}, limits=limits(timeout_s=0.2)) as webhooks:
        remove(webhooks, addresses(1))
        await until(lambda: webhooks.sent == 1)
    first, second = endpoint.received
    assert first.id == second.id
    assert 0.15 < second.at - first.at < 2


async def test_an_endpoint_that_cannot_be_reached_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as gone:
        hook = gone.hook()
    async with hooks_of({"audit": hook}) as webhooks:
        remove(webhooks, addresses(1))
        await until(lambda: webhooks.failed == 3)
    assert (webhooks.sent, webhooks.lost) == (0, 1)
    (line,) = lines_of(caplog, "not accepted")
    assert "Connection refused" in line


async def test_an_answer_need_not_be_read_to_its_end() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\nand so on"
    async with answering(answer) as port:
        hook = Webhook(endpoint=f"http://127.0.0.1:{port}/")
        async with hooks_of({"audit": hook}, limits=limits(timeout_s=NEVER_S)) as webhooks:
            remove(webhooks, addresses(1))
            await until(lambda: webhooks.sent == 1)


async def test_the_pauses_between_tries_grow(endpoint: Endpoint) -> None:
    endpoint.answers = [Answer(500)] * 4
    pauses = limits(retry_s=0.05, longest_retry_s=0.2)
    async with hooks_of({"audit": endpoint.hook()}, limits=pauses) as webhooks:
        remove(webhooks, addresses(1))
        requests = await endpoint.has(5)
    for gap, least in zip(gaps(requests), [0.05, 0.1, 0.2, 0.2], strict=True):
        assert least * 0.95 < gap < least * 1.5 + 0.3


async def test_a_request_is_given_up_in_the_end_and_the_next_one_goes_out(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.then = Answer(500)
    async with hooks_of({"audit": endpoint.hook()}, limits=limits(give_up_s=0.3)) as webhooks:
        remove(webhooks, addresses(7))
        await until(lambda: webhooks.lost == 7)
        tried = endpoint.received[:]
        endpoint.then = Answer(200)
        webhooks.channel_removed("node.next.1")
        await until(lambda: webhooks.sent == 1)
    assert len(tried) > 2
    assert len({request.id for request in tried}) == 1
    assert webhooks.failed == len(tried)
    assert tried[-1].at - tried[0].at < 0.35
    assert endpoint.received[-1].channels == ["node.next.1"]
    (line,) = lines_of(caplog, "gave up")
    assert "7 channels" in line


async def test_a_failure_is_logged_once_until_requests_are_accepted_again(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    endpoint.answers = [Answer(500)] * 4
    async with hooks_of({"audit": endpoint.hook()}) as webhooks:
        remove(webhooks, addresses(1))
        await until(lambda: webhooks.sent == 1)
        endpoint.answers = [Answer(500)]
        remove(webhooks, addresses(1))
        await until(lambda: webhooks.sent == 2)
    assert ["500" in line for line in lines_of(caplog, "audit")] == [True, False, True, False]


# -- Bounds


async def test_a_slow_endpoint_does_not_hold_back_another(endpoint: Endpoint) -> None:
    async with serving() as slow:
        slow.then = HANG
        hooks = {"slow": slow.hook(), "quick": endpoint.hook()}
        async with hooks_of(hooks, limits=limits(stop_s=0.1)) as webhooks:
            remove(webhooks, addresses(1))
            await slow.has(1)
            for sent in range(1, 6):
                remove(webhooks, addresses(1))
                await until(lambda sent=sent: webhooks.sent >= sent)  # type: ignore[misc]
        assert len(slow.received) >= 1
        assert len(endpoint.told) == 6


async def test_slow_endpoints_on_one_host_do_not_hold_back_another_there(
    endpoint: Endpoint,
) -> None:
    endpoint.answers = [HANG] * 150
    hooks = {f"slow{number}": endpoint.hook() for number in range(150)}
    quick = {"quick": endpoint.hook()}
    async with hooks_of(hooks | quick, limits=limits(stop_s=0.1)) as webhooks:
        remove(webhooks, addresses(1))
        await until(lambda: webhooks.sent == 1)
    assert len(endpoint.received) == 151


async def test_channels_beyond_the_limit_are_counted_as_lost_and_logged_once(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.answers = [Answer(after_s=0.2)]
    async with hooks_of({"a": endpoint.hook()}, limits=limits(capacity=100, batch=30)) as webhooks:
        remove(webhooks, addresses(10))
        await endpoint.has(1)  # and is under way
        remove(webhooks, addresses(160)[10:])
        assert webhooks.lost == 50
        await until(lambda: webhooks.sent == 5)
    assert endpoint.told == addresses(110)
    (line,) = lines_of(caplog, "further channels")
    assert "100 channels" in line


async def test_being_full_is_logged_again_only_after_nothing_waited(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.then = Answer(after_s=0.05)
    async with hooks_of({"a": endpoint.hook()}, limits=limits(capacity=10, batch=1)) as webhooks:
        remove(webhooks, addresses(11))
        await until(lambda: webhooks.sent >= 1)
        remove(webhooks, addresses(11))
        assert webhooks.lost > 2
        assert len(lines_of(caplog, "further channels")) == 1
        await until(lambda: webhooks.sent + webhooks.lost == 22)
        remove(webhooks, addresses(11))
        assert len(lines_of(caplog, "further channels")) == 2


def test_before_the_start_channels_wait_within_the_bound() -> None:
    hook = Webhook(endpoint="http://127.0.0.1:1/")
    webhooks = hooks_of({"a": hook, "b": hook})
    remove(webhooks, addresses(100_010))
    assert webhooks.lost == 20


async def test_channels_removed_before_the_start_are_reported(endpoint: Endpoint) -> None:
    webhooks = hooks_of({"audit": endpoint.hook()})
    remove(webhooks, addresses(3))
    async with webhooks:
        await endpoint.has(1)
    assert endpoint.told == addresses(3)


async def test_without_hooks_there_is_nothing_to_do() -> None:
    before = asyncio.all_tasks()
    async with Webhooks({}) as webhooks:
        remove(webhooks, addresses(3))
        assert asyncio.all_tasks() == before
    assert (webhooks.sent, webhooks.failed, webhooks.lost) == (0, 0, 0)


# -- The end


async def test_at_the_end_waiting_channels_are_reported_at_once(endpoint: Endpoint) -> None:
    patient = limits(interval_s=NEVER_S, stop_s=10)
    async with hooks_of({"audit": endpoint.hook()}, limits=patient) as webhooks:
        await a_moment()  # by now it gathers
        remove(webhooks, addresses(2_500))
        assert await nothing_more(endpoint)
        started = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - started < patient.stop_s
    assert sorted(endpoint.told) == addresses(2_500)
    assert (webhooks.sent, webhooks.lost) == (3, 0)


async def test_at_the_end_a_request_that_pauses_is_tried_once_more(endpoint: Endpoint) -> None:
    endpoint.answers = [Answer(503)]
    patient = limits(retry_s=NEVER_S, longest_retry_s=NEVER_S, give_up_s=10 * NEVER_S, stop_s=10)
    async with hooks_of({"audit": endpoint.hook()}, limits=patient) as webhooks:
        remove(webhooks, addresses(2))
        await until(lambda: webhooks.failed == 1)
    first, second = endpoint.received
    assert first.id == second.id
    assert (webhooks.sent, webhooks.lost) == (1, 0)


async def test_at_the_end_nothing_is_tried_twice(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.then = Answer(500)
    patient = limits(retry_s=NEVER_S, longest_retry_s=NEVER_S, give_up_s=10 * NEVER_S, stop_s=10)
    async with hooks_of({"audit": endpoint.hook()}, limits=patient) as webhooks:
        remove(webhooks, addresses(2))
        await until(lambda: webhooks.failed == 1)
        remove(webhooks, addresses(3))
    assert len(endpoint.received) == 3  # the first one, that again, and the rest
    assert (webhooks.sent, webhooks.failed, webhooks.lost) == (0, 3, 5)
    (line,) = lines_of(caplog, "stopped")
    assert "5 channels" in line


async def test_the_end_is_not_delayed_and_unreported_channels_are_counted_and_logged(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint.then = HANG
    hooks = {"a": endpoint.hook(), "b": endpoint.hook()}
    async with hooks_of(hooks, limits=limits(timeout_s=NEVER_S, batch=10)) as webhooks:
        remove(webhooks, addresses(200))
        await endpoint.has(2)
        assert len([task for task in hook_tasks() if "Hook.run" in task]) == 2
        started = asyncio.get_running_loop().time()
    assert 0.4 < asyncio.get_running_loop().time() - started < NEVER_S / 4
    assert (webhooks.sent, webhooks.lost) == (0, 400)
    assert ["200 channels" in line for line in lines_of(caplog, "stopped")] == [True, True]
    assert not hook_tasks()


async def test_at_the_end_a_request_that_hangs_does_not_keep_others_from_their_try(
    endpoint: Endpoint,
) -> None:
    endpoint.answers = [HANG]
    quick = limits(timeout_s=NEVER_S, batch=10)
    async with hooks_of({"audit": endpoint.hook()}, limits=quick) as webhooks:
        remove(webhooks, addresses(10))
        await endpoint.has(1)
        remove(webhooks, addresses(60)[10:])
    assert (webhooks.sent, webhooks.lost) == (5, 10)


async def test_at_the_end_several_requests_go_out_at_once(endpoint: Endpoint) -> None:
    endpoint.then = Answer(after_s=0.2)
    async with hooks_of({"a": endpoint.hook()}, limits=limits(batch=1, stop_s=10)) as webhooks:
        remove(webhooks, addresses(16))
    assert endpoint.most_at_once > 1
    assert (webhooks.sent, webhooks.lost) == (16, 0)


async def test_channels_removed_after_the_end_are_counted_as_lost(endpoint: Endpoint) -> None:
    async with hooks_of({"audit": endpoint.hook()}) as webhooks:
        pass
    remove(webhooks, addresses(3))
    assert webhooks.lost == 3
    assert endpoint.received == []


async def test_an_end_that_is_cancelled_leaves_nothing_running(endpoint: Endpoint) -> None:
    endpoint.then = HANG
    hooks = {"audit": endpoint.hook()}

    async def serve_briefly(webhooks: Webhooks) -> None:
        async with webhooks:
            remove(webhooks, addresses(1))
            await endpoint.has(1)

    webhooks = hooks_of(hooks, limits=limits(timeout_s=NEVER_S, stop_s=NEVER_S))
    serving_task = asyncio.create_task(serve_briefly(webhooks))
    await endpoint.has(1)
    await asyncio.sleep(0.05)  # by now it waits for the last try
    serving_task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving_task
    assert webhooks.lost == 1
    assert not hook_tasks()


# -- Where a hook may call


class Names:
    """What the name server of these tests says: each answer once, and the last one for ever."""

    def __init__(self, *answers: str) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def getaddrinfo(self, host: str, port: int, **options: object) -> list[object]:
        self.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in answer.split()
        ]


def named(monkeypatch: pytest.MonkeyPatch, *answers: str) -> Names:
    """Let all names have these addresses, one answer after the other."""
    names = Names(*answers)
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", names.getaddrinfo)
    return names


async def answered_wrongly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Close a connection that should not have been made."""
    writer.close()


def hook_at(host: str, endpoint: Endpoint) -> Webhook:
    return Webhook(endpoint=f"http://{host}:{endpoint.port}/inpath")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0",
        "localhost",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
    ],
)
async def test_a_hook_does_not_call_its_own_machine_unless_that_is_allowed(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    async with Webhooks({"audit": hook_at(host, endpoint)}, limits=FAST) as webhooks:
        remove(webhooks, addresses(1))
        await until(lambda: webhooks.failed > 1)
    assert endpoint.received == []
    (line,) = lines_of(caplog, "not accepted")
    assert line.endswith("(its address is not public, and not in `webhooks_allow`)")


@pytest.mark.parametrize("answer", ["127.0.0.1", "::ffff:127.0.0.1", "127.0.0.1 ::1", "0.0.0.0"])
async def test_a_hook_does_not_call_a_name_that_leads_to_its_own_machine(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    named(monkeypatch, answer)
    async with Webhooks({"audit": hook_at("evil.example", endpoint)}, limits=FAST) as webhooks:
        remove(webhooks, addresses(1))
        await until(lambda: webhooks.failed > 1)
    assert endpoint.received == []


async def test_a_hook_that_may_not_be_called_is_logged_at_the_start(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    named(monkeypatch, "10.0.0.1")
    async with Webhooks({"audit": hook_at("internal.example", endpoint)}, limits=FAST) as webhooks:
        await until(lambda: lines_of(caplog, "`webhooks_allow`") != [])
    assert webhooks.failed == 0
    assert "internal.example" not in caplog.text


@pytest.mark.parametrize("entry", ["127.0.0.0/8", "127.0.0.1", "Hooks.Example"])
async def test_a_hook_calls_what_is_allowed_by_its_network_or_by_its_name(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, entry: str
) -> None:
    named(monkeypatch, "127.0.0.1")
    hooks = {"audit": hook_at("hooks.example", endpoint)}
    async with Webhooks(hooks, allow=[entry], limits=FAST) as webhooks:
        remove(webhooks, addresses(1))
        await until(lambda: webhooks.sent == 1)
    (request,) = endpoint.received
    assert request.headers["Host"] == f"hooks.example:{endpoint.port}"


async def test_of_the_addresses_of_a_name_only_allowed_ones_are_called(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch, "127.0.0.2 127.0.0.1")
    async with await asyncio.start_server(answered_wrongly, "127.0.0.2", endpoint.port):
        hooks = {"audit": hook_at("hooks.example", endpoint)}
        async with Webhooks(hooks, allow=["127.0.0.1"], limits=FAST) as webhooks:
            remove(webhooks, addresses(1))
            await until(lambda: webhooks.sent == 1)
    assert webhooks.failed == 0


async def test_a_name_is_resolved_once_for_each_try_and_what_was_checked_is_called(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that gives another address after the check gains nothing."""
    endpoint.answers = [Answer(500)]
    start, first, second = "127.0.0.1", "127.0.0.1", "127.0.0.1"
    names = named(monkeypatch, start, first, second, "169.254.169.254")
    hooks = {"audit": hook_at("hooks.example", endpoint)}
    async with Webhooks(hooks, allow=["127.0.0.1"], limits=FAST) as webhooks:
        await until(lambda: names.asked == 1)
        remove(webhooks, addresses(1))
        await until(lambda: webhooks.sent == 1)
        assert names.asked == 3
        remove(webhooks, addresses(1))
        await until(lambda: webhooks.failed > 2)
    assert len(endpoint.received) == 2


def test_a_wrong_entry_of_the_allowed_destinations_is_refused() -> None:
    with pytest.raises(ValueError, match="host bits set"):
        Webhooks({}, allow=["10.0.0.1/8"])


# -- Secrets


async def test_no_address_secret_or_endpoint_gets_into_the_log(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    endpoint.answers = [Answer(500), Answer(404), Answer(302, {"Location": "/x"}), HANG]
    endpoint.then = Answer(503)
    async with serving() as gone:
        pass
    async with answering(b"nonsense\r\n\r\n") as port:
        hooks = {
            name: at.hook("/in/path?token=inquery", "insecret", "inuser:inpassword@")
            for name, at in (("audit", endpoint), ("down", gone), ("odd", Endpoint(port)))
        }
        few = limits(timeout_s=0.1, give_up_s=0.3, capacity=3, batch=1)
        async with hooks_of(hooks, limits=few) as webhooks:
            remove(webhooks, [f"inaddress{number}" for number in range(9)])
            await until(lambda: len(endpoint.received) > 6 and webhooks.lost > 20)
            remove(webhooks, [f"inaddress{number}" for number in range(9)])
    for name in hooks:
        assert lines_of(caplog, f"webhook {name}: ")
    for secret in ("inaddress", "insecret", "inuser", "inpassword", "inquery", "in/path"):
        assert secret not in caplog.text


async def test_an_answer_that_is_not_http_is_a_failure_that_may_pass(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with answering(b"nonsense\r\n\r\n") as port:
        hook = Webhook(endpoint=f"http://127.0.0.1:{port}/")
        async with hooks_of({"audit": hook}) as webhooks:
            remove(webhooks, addresses(1))
            await until(lambda: webhooks.failed > 2)
    (line,) = lines_of(caplog, "not accepted")
    assert line.endswith("(ClientResponseError)")


# -- Metrics


async def test_reports_wait_until_an_endpoint_has_accepted_them(endpoint: Endpoint) -> None:
    endpoint.answers = [Answer(500)]
    async with hooks_of({"audit": endpoint.hook()}, limits=limits(batch=2)) as webhooks:
        remove(webhooks, addresses(3))
        assert "\nmegaphone_webhooks_waiting 3\n" in Metrics(webhooks).render().decode()
        await until(lambda: webhooks.failed == 1)
        assert webhooks.waiting == 3  # also those in the request that is tried again
        await until(lambda: webhooks.sent == 2)
        assert webhooks.waiting == 0


async def test_metrics_contain_the_counts_of_webhooks(endpoint: Endpoint) -> None:
    endpoint.answers = [Answer(500), Answer(404)]
    async with hooks_of({"audit": endpoint.hook()}, limits=limits(capacity=5)) as webhooks:
        remove(webhooks, addresses(10))
        await until(lambda: webhooks.sent == 1)
        text = Metrics(webhooks).render().decode()
    for line in ("sent 1", "failed 2", "lost 5"):
        name, value = line.split()
        assert f"\n# TYPE megaphone_webhooks_{name} counter\n" in text
        assert f"\nmegaphone_webhooks_{name} {value}\n" in text


def test_metrics_without_webhooks_say_zero() -> None:
    text = Metrics().render().decode()
    for name in ("sent", "failed", "lost"):
        assert f"\nmegaphone_webhooks_{name} 0\n" in text
