"""Pages in a real browser read channels: by EventSource, and by fetch with acknowledgements."""

import asyncio
import json
from typing import Any

import pytest

from megaphone.app import App, running
from megaphone.model import NewEvent
from tests.support.chromium import CHROMIUM, DevTools, Page, tab
from tests.support.connections import metric
from tests.support.faces import Created, HttpFace, http_face
from tests.support.proxy import proxy_to
from tests.support.scenes import UNKNOWN_EVENT, numbers, read_once_free, write_numbers
from tests.support.settings import fast_settings

pytestmark = [
    pytest.mark.group("browser"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.settings(cors_allow_origin=("*",), poll_duration_millis=250),
]

EVENTS = 1_000
BETWEEN_WRITES_S = 0.005
OPEN, CLOSED = 1, 2  # of EventSource.readyState


def url_of(port: int, path: str, channel: Created, query: str = "") -> str:
    return f"http://127.0.0.1:{port}/{path}/{channel.consumer}{query and '?'}{query}"


async def messages(page: Page) -> list[tuple[str, Any]]:
    """Return the `lastEventId` and the event's body of all that an EventSource has dispatched."""
    return [(one["id"], one["event"]["body"]) for one in await page.value("messages")]


async def heard_in_the_end(
    http: HttpFace, channel: Created, page: Page, count: int
) -> list[tuple[str, Any]]:
    """Return what the page was told once it has `count` events, and anything that comes after.

    Waits for a further connection and an event on it: whatever came again, came before that one.
    """
    await page.becomes(f"messages.length >= {count}", within_s=30)
    await page.becomes(f"opens > {await page.value('opens')}")
    marker = await http.write(channel.producer, "s", b'"marker"')
    await page.becomes("messages.at(-1).event.body === 'marker'")
    *heard, last = await messages(page)
    assert last == (marker, "marker")
    return heard


# -- EventSource


async def test_a_thousand_events_come_once_and_in_order_over_many_windows_and_a_reset(
    app: App, http: HttpFace, channel: Created, page: Page
) -> None:
    async with proxy_to(app.http_port, cuts=[b'"body":500']) as proxy:
        await page.call("listen", url_of(proxy.port, "read", channel))
        ids = []
        for value in range(EVENTS):
            ids += await write_numbers(http, channel, [value])
            await asyncio.sleep(BETWEEN_WRITES_S)
        heard = await heard_in_the_end(http, channel, page, EVENTS)
        assert heard == list(zip(ids, range(EVENTS), strict=True))
        assert proxy.cuts == [], "the connection was not cut"
        assert await page.value("gaps") == 0
        windows = set(await page.value("messages.map((message) => message.open)"))
        assert len(windows) >= 5 + len(["the one after the cut"])


async def test_it_does_not_matter_where_in_an_event_the_connection_is_cut(
    app: App, http: HttpFace, page: Page
) -> None:
    for cut in (
        b"retry: 500\nid: -\n\n",
        b"\n\nid: ",
        b'"body":5',
        b'"body":5}\n',
        b'"body":5}\n\n',
        b'"body":5}\n\nid',
    ):
        channel = await http.create()
        ids = await write_numbers(http, channel, range(10))
        async with proxy_to(app.http_port, cuts=[cut]) as proxy:
            await page.call("listen", url_of(proxy.port, "read", channel))
            heard = await heard_in_the_end(http, channel, page, 10)
            assert heard == list(zip(ids, range(10), strict=True)), cut
            assert proxy.cuts == [], "the connection was not cut"
            await page.call("stop")


async def test_nothing_that_is_acknowledged_is_lost_or_repeated_however_often_it_is_cut(
    app: App, http: HttpFace, channel: Created, page: Page
) -> None:
    batch = [NewEvent("s", b"%d" % value) for value in range(EVENTS)]
    cuts = [b'"body":%d' % value for value in range(150, EVENTS, 200)]
    async with proxy_to(app.http_port, cuts) as proxy:
        await page.call("listen", url_of(proxy.port, "read", channel, "ack=explicit"))
        await page.call("acknowledgeEach", 10, url_of(app.http_port, "ack", channel))
        assert await http.write_batch([channel.producer], batch) == []
        heard = await heard_in_the_end(http, channel, page, EVENTS)
        assert [body for _, body in heard] == list(range(EVENTS))
        assert proxy.cuts == [], "the connection was not cut as often as it should"
        assert await page.value("acknowledged") > 0


@pytest.mark.settings(poll_duration_millis=10_000)
@pytest.mark.parametrize("before", [0, 3])
async def test_it_comes_back_while_the_broker_believes_in_its_former_connection(
    app: App, http: HttpFace, channel: Created, page: Page, before: int
) -> None:
    async with proxy_to(app.http_port, hides_cuts=True) as proxy:
        await page.call("listen", url_of(proxy.port, "read", channel))
        await page.becomes("opens === 1")
        ids = await write_numbers(http, channel, range(before))
        await page.becomes(f"messages.length === {before}")
        proxy.cut()
        await page.becomes(f"opens === 2 || source.readyState === {CLOSED}")
        assert await page.value("source.readyState") == OPEN, "EventSource has given up for good"
        ids += await write_numbers(http, channel, range(before, 6))
        await page.becomes("messages.length === 6")
        assert await messages(page) == list(zip(ids, range(6), strict=True))


@pytest.mark.settings(poll_duration_millis=10_000, buffer_capacity=10)
@pytest.mark.parametrize("before", [0, 3])
async def test_a_page_is_told_that_events_are_missing(
    app: App, http: HttpFace, channel: Created, page: Page, before: int
) -> None:
    async with proxy_to(app.http_port, hides_cuts=True) as proxy:
        await page.call("listen", url_of(proxy.port, "read", channel))
        await page.becomes("opens === 1")
        await write_numbers(http, channel, range(before))
        await page.becomes(f"messages.length === {before}")
        proxy.cut()
        batch = [NewEvent("s", b"%d" % value) for value in range(before, 30)]
        assert await http.write_batch([channel.producer], batch) == []
        await page.becomes("messages.length > 0 && messages.at(-1).event.body === 29")
        heard = [body for _, body in await messages(page)]
        assert heard == [*range(before), *range(20, 30)]
        assert await page.value("gaps") == 1


async def test_parameters_in_its_url_do_no_harm(app: App, http: HttpFace, page: Page) -> None:
    for query in (
        "limit=3",
        "wait_ms=100",
        "heartbeat_ms=100",
        "takeover=true",
        "ack=explicit&window=4",
        "limit=3&ack=explicit",
        "stream=s",
    ):
        channel = await http.create()
        ids = await write_numbers(http, channel, range(10))
        await page.call("listen", url_of(app.http_port, "read", channel, query))
        heard = await heard_in_the_end(http, channel, page, 10)
        assert heard == list(zip(ids, range(10), strict=True)), query
        await page.call("stop")


async def test_the_place_to_start_in_its_url_counts_only_until_it_has_one_of_its_own(
    app: App, http: HttpFace, channel: Created, page: Page
) -> None:
    ids = await write_numbers(http, channel, range(10))
    query = f"after={ids[2]}&limit=3"
    await page.call("listen", url_of(app.http_port, "read", channel, query))
    heard = await heard_in_the_end(http, channel, page, 7)
    assert heard == list(zip(ids[3:], range(3, 10), strict=True))


async def test_bodies_come_as_they_were_written(
    app: App, http: HttpFace, channel: Created, page: Page
) -> None:
    bodies = [
        "null",
        '""',
        '"a\\nb\\r\\nc\\u0000"',
        '"\u2028 \u2029 \x85 \ufeff \N{PARTY POPPER}"',
        '{\n  "over": [1,\r\n 2],\r "lines": true\n}',
        '"\\n\\nid: x\\ndata: y\\n\\n"',
        "[1.5, -0, 1e3]",
    ]
    for body in bodies:
        await http.write(channel.producer, "s", body.encode())
    await page.call("listen", url_of(app.http_port, "read", channel))
    await page.becomes(f"messages.length === {len(bodies)}")
    assert [body for _, body in await messages(page)] == [json.loads(body) for body in bodies]


async def test_it_gives_up_when_its_channel_has_gone(
    app: App, channel: Created, page: Page
) -> None:
    await page.call("listen", url_of(app.http_port, "read", channel))
    await page.becomes("opens === 1")
    await app.admin.dispose(channel.consumer)
    await page.becomes(f"source.readyState === {CLOSED}")


@pytest.mark.settings(poll_duration_millis=10_000)
async def test_that_of_a_second_page_is_refused_and_the_first_reads_on(
    app: App, http: HttpFace, channel: Created, page: Page, tools: DevTools, site: str
) -> None:
    await page.call("listen", url_of(app.http_port, "read", channel))
    await page.becomes("opens === 1")
    async with tab(tools, site) as second:
        await second.call("listen", url_of(app.http_port, "read", channel))
        await second.becomes(f"source.readyState === {CLOSED}")
        ids = await write_numbers(http, channel, range(3))
        await page.becomes("messages.length === 3")
        assert await messages(page) == list(zip(ids, range(3), strict=True))
        assert await messages(second) == []


@pytest.mark.settings(poll_duration_millis=10_000)
async def test_that_of_a_page_that_was_loaded_again_reads_on(
    app: App, http: HttpFace, channel: Created, page: Page, site: str
) -> None:
    for value in range(3):
        await page.call("listen", url_of(app.http_port, "read", channel))
        await write_numbers(http, channel, [value])
        await page.becomes(f"messages.length > 0 && messages.at(-1).event.body === {value}")
        await page.go(site)


@pytest.mark.settings(poll_duration_millis=10_000)
async def test_that_of_the_next_page_takes_over_if_it_asks_for_it(
    app: App, http: HttpFace, channel: Created, page: Page, site: str
) -> None:
    # The browser keeps the page that was left, and its connection, for the way back.
    for value in range(3):
        await page.go(f"{site}/{value}")
        await page.call("listen", url_of(app.http_port, "read", channel, "takeover=true"))
        await write_numbers(http, channel, [value])
        await page.becomes(f"messages.length > 0 && messages.at(-1).event.body === {value}")


# -- fetch, and who may read

NOT_ALLOWED = "Failed to fetch"
"""All that Chromium tells a page of an answer that is not for it."""


async def refusal(page: Page, function: str, *arguments: Any) -> Any:
    """Call a function of the page that must fail. Returns: what the page learns of it."""
    called = f"{function}({', '.join(map(json.dumps, arguments))})"
    return await page.value(f"{called}.then(() => 'not refused', (error) => error.message)")


async def read_and_acknowledge(page: Page, port: int, http: HttpFace, channel: Created) -> None:
    """Read 30 events by tens, through a buffer of 10."""
    read = url_of(port, "read", channel, "ack=explicit&limit=10")
    acknowledge = url_of(port, "ack", channel)
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(write_numbers(http, channel, range(30)))
        for first in (0, 10, 20):
            for _ in range(2):  # what is not acknowledged comes again
                events = await page.call("readLines", read)
                assert [event["body"] for event in events] == list(range(first, first + 10))
            await page.call("acknowledge", acknowledge, events[-1]["eid"])
    assert events[-1]["eid"] == writing.result()[-1]
    assert await page.value("acknowledged") == 30
    assert await page.call("readLines", url_of(port, "read", channel, "wait_ms=0")) == []


@pytest.mark.settings(buffer_capacity=10, poll_duration_millis=10_000, cors_allow_origin=())
async def test_a_page_of_the_brokers_own_origin_reads_lines_and_acknowledges(
    app: App, http: HttpFace, channel: Created, tools: DevTools, html: str
) -> None:
    async with tab(tools, f"http://127.0.0.1:{app.http_port}/livez") as page:
        await page.show(html)
        await read_and_acknowledge(page, app.http_port, http, channel)


@pytest.mark.settings(buffer_capacity=10, poll_duration_millis=10_000)
async def test_a_page_of_another_origin_reads_lines_and_acknowledges(
    app: App, http: HttpFace, channel: Created, page: Page
) -> None:
    await read_and_acknowledge(page, app.http_port, http, channel)


async def test_a_page_of_another_origin_sees_whether_its_place_was_known(
    app: App, http: HttpFace, channel: Created, page: Page
) -> None:
    known = await http.write(channel.producer, "s", b"1")
    for event_id, recovered in ((known, "true"), (UNKNOWN_EVENT, "false")):
        url = url_of(app.http_port, "read", channel, f"after={event_id}&wait_ms=0")
        assert await page.call("header", url, "Megaphone-Recovered") == recovered


async def test_a_page_of_another_origin_sees_errors(app: App, page: Page) -> None:
    unknown = f"http://127.0.0.1:{app.http_port}/read/elsewhere.{'A' * 50}.1"
    assert await refusal(page, "readLines", unknown) == "NOT_FOUND"


async def test_a_page_of_another_origin_cannot_write(
    app: App, http: HttpFace, channel: Created, page: Page
) -> None:
    url = f"http://127.0.0.1:{app.http_port}/write/{channel.producer}/s"
    assert await refusal(page, "acknowledge", url, "x") == NOT_ALLOWED
    assert await page.call("readLines", url_of(app.http_port, "read", channel, "wait_ms=0")) == []


async def test_a_page_of_another_origin_cannot_create_a_channel_unseen(
    app: App, page: Page
) -> None:
    """`no-cors` is how a page sends what it need not ask for."""
    url = f"http://127.0.0.1:{app.http_port}/create"
    before = await metric(app, "megaphone_channel_created")
    options = "{method: 'POST', mode: 'no-cors', body: 'x'}"
    assert await page.value(f"fetch('{url}', {options}).then(answer => answer.type)") == "opaque"
    assert await metric(app, "megaphone_channel_created") == before


@pytest.mark.settings(cors_allow_origin=(), poll_duration_millis=10_000)
async def test_unless_it_is_set_no_page_of_another_origin_reads_and_nothing_is_lost(
    app: App, http: HttpFace, channel: Created, page: Page
) -> None:
    event_id = await http.write(channel.producer, "s", b"1")
    read = url_of(app.http_port, "read", channel, "takeover=true")
    await page.call("listen", read)
    await page.becomes(f"source.readyState === {CLOSED}")
    assert await page.value("[opens, messages.length]") == [0, 0]
    assert await refusal(page, "readLines", read) == NOT_ALLOWED
    acknowledge = url_of(app.http_port, "ack", channel)
    assert await refusal(page, "acknowledge", acknowledge, event_id) == NOT_ALLOWED
    assert numbers(await read_once_free(http, channel, 1)) == [1]


@pytest.mark.parametrize(("host", "allowed"), [("127.0.0.1", True), ("localhost", False)])
async def test_only_pages_of_the_origin_that_is_set_read_and_acknowledge(
    tools: DevTools, site: str, site_port: int, host: str, allowed: bool
) -> None:
    async with (
        running(fast_settings(cors_allow_origin=(site,))) as app,
        http_face(app) as http,
        tab(tools, f"http://{host}:{site_port}") as page,
    ):
        channel = await http.create()
        event_id = await http.write(channel.producer, "s", b"1")
        answer = "not refused" if allowed else NOT_ALLOWED
        read = url_of(app.http_port, "read", channel, "limit=1&takeover=true")
        assert await refusal(page, "readLines", read) == answer
        acknowledge = url_of(app.http_port, "ack", channel)
        assert await refusal(page, "acknowledge", acknowledge, event_id) == answer
