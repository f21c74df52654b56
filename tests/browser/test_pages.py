"""The pages that the broker itself serves, in a real browser that asks no other host."""

import json
from collections.abc import AsyncIterator

import pytest

from megaphone.app import App
from tests.support.chromium import CHROMIUM, DevTools, Page, tab
from tests.support.faces import Created, HttpFace

pytestmark = [
    pytest.mark.group("browser"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]

REFUSALS = """
    window.refused = [];
    addEventListener("securitypolicyviolation", (event) => refused.push(event.blockedURI));
"""
"""Remembers what the policy of a page has refused."""
HOSTS = """
    [...new Set(performance.getEntriesByType("resource").map((one) => new URL(one.name).host))]
"""


@pytest.fixture
async def page(app: App, tools: DevTools) -> AsyncIterator[Page]:
    """A page of the broker's own, which notes what its policy refuses."""
    async with tab(tools, f"http://127.0.0.1:{app.http_port}/livez") as page:
        await page.devtools("Page.enable")
        await page.devtools("Page.addScriptToEvaluateOnNewDocument", source=REFUSALS)
        yield page


async def open_path(page: Page, app: App, path: str) -> None:
    await page.go(f"http://127.0.0.1:{app.http_port}{path}")


async def asked_only_the_broker(page: Page, app: App) -> None:
    assert await page.value("refused") == []
    assert await page.value(HOSTS) == [f"127.0.0.1:{app.http_port}"]


async def text(page: Page, selector: str) -> str:
    return str(await page.value(f"document.querySelector({json.dumps(selector)}).textContent"))


async def shown_channel(page: Page) -> Created:
    """Create a channel on the page. Returns: what the page shows of it."""
    await page.value("document.querySelector('#create').click()")
    await page.becomes("document.querySelector('#state').textContent === 'open'")
    return Created(await text(page, "#producer"), await text(page, "#consumer"), [])


async def test_the_first_page_shows_that_the_node_is_well(app: App, page: Page) -> None:
    await open_path(page, app, "/")
    await page.becomes("document.querySelector('#health').className === 'good'")
    assert await text(page, "#health") == "This node is well, and takes new channels."
    await asked_only_the_broker(page, app)


@pytest.mark.settings(max_channels=1)
async def test_the_first_page_shows_that_the_node_takes_no_channels(
    app: App, http: HttpFace, page: Page
) -> None:
    await http.create()
    await open_path(page, app, "/")
    await page.becomes("document.querySelector('#health').className === 'bad'")
    assert "LIMIT_EXCEEDED" in await text(page, "#health")
    await page.value("document.querySelector('#create').click()")
    await page.becomes("document.querySelector('#problem').textContent !== ''")
    assert "LIMIT_EXCEEDED" in await text(page, "#problem")


@pytest.mark.settings(poll_duration_millis=250)
async def test_a_channel_can_be_tried_on_the_first_page(
    app: App, http: HttpFace, page: Page
) -> None:
    await open_path(page, app, "/")
    channel = await shown_channel(page)
    assert channel.producer in await text(page, "#command")
    await page.value("document.querySelector('#write').requestSubmit()")
    await page.becomes("document.querySelectorAll('#events li').length === 1")
    assert await text(page, "#events li") == 'greetings{"hello":"world"}'
    await http.write(channel.producer, "else", b'"<b>where</b>"')
    await page.becomes("document.querySelectorAll('#events li').length === 2")
    assert await text(page, "#events li") == 'else"<b>where</b>"'
    await page.value("document.querySelector('#body').value = 'no JSON'")
    await page.value("document.querySelector('#write').requestSubmit()")
    await page.becomes("document.querySelector('#problem').textContent !== ''")
    assert "BAD_REQUEST" in await text(page, "#problem")
    await asked_only_the_broker(page, app)


@pytest.mark.settings(poll_duration_millis=250)
async def test_the_first_page_says_that_its_channel_has_gone(app: App, page: Page) -> None:
    await open_path(page, app, "/")
    channel = await shown_channel(page)
    await app.admin.dispose(channel.consumer)
    await page.becomes("document.querySelector('#state').textContent.includes('has gone')")
    await shown_channel(page)


async def test_the_description_is_shown_without_another_host(app: App, page: Page) -> None:
    await open_path(page, app, "/docs")
    await page.becomes("document.querySelectorAll('.opblock').length > 10", within_s=30)
    shown = set(await page.value("[...document.querySelectorAll('.opblock')].map((one) => one.id)"))
    assert "operations-Channels-create" in shown
    await asked_only_the_broker(page, app)


async def test_a_request_can_be_sent_from_the_description(app: App, page: Page) -> None:
    await open_path(page, app, "/docs#/Channels/create")
    await page.becomes("document.querySelector('.try-out__btn') !== null", within_s=30)
    await page.value("document.querySelector('.try-out__btn').click()")
    await page.becomes("document.querySelector('.execute') !== null")
    await page.value("document.querySelector('.execute').click()")
    await page.becomes("document.querySelector('.live-responses-table') !== null")
    assert "producerAddress" in await text(page, ".live-responses-table")
