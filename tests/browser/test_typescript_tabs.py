"""Tabs of one browser share one read of the TypeScript client, whichever of them close or crash."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import web

from megaphone.app import App
from tests.support.chromium import CHROMIUM, DevTools, Page
from tests.support.faces import Created, HttpFace

BUILT = Path(__file__).parents[2] / "clients/typescript/dist"
TABS = 8
EVENTS = 1_500
AT_ONCE = 45
BEAT_MS = 500
PAGE = """<!doctype html><script type="module">
import { Megaphone } from "/client/index.js";
import { tabsWithin } from "/client/tabs.js";
Object.assign(window, { shown: [], gaps: 0, askedAt: 0 });
const { broker, consumer } = Object.fromEntries(new URLSearchParams(location.search));
const asking = (...all) => { window.askedAt = Date.now(); return fetch(...all); };
const channel = new Megaphone(broker, { fetch: asking }).channel(consumer, {
  share: tabsWithin(%d), onGap: () => window.gaps++,
});
window.isReady = true;
for await (const { body } of channel) shown.push(body);
</script>"""

pytestmark = [
    pytest.mark.group("browser"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.skipif(not BUILT.exists(), reason="needs the TypeScript client: make client-ts"),
    pytest.mark.settings(cors_allow_origin=("*",), poll_duration_millis=1_000),
]


@pytest.fixture
async def client_site() -> AsyncIterator[str]:
    """A site of another origin than the broker's, whose page reads a channel."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=PAGE % BEAT_MS, content_type="text/html")

    site = web.Application()
    site.router.add_get("/", page)
    site.router.add_static("/client", BUILT)
    runner = web.AppRunner(site, access_log=None)  # addresses are secrets
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


class Tab:
    def __init__(self, target: str, page: Page) -> None:
        self.target = target
        self.page = page


@pytest.fixture
async def tabs(
    tools: DevTools, app: App, channel: Created, client_site: str
) -> AsyncIterator[list[Tab]]:
    """Tabs that share what a browser shares between the pages of a site."""
    context = (await tools.call("Target.createBrowserContext"))["browserContextId"]
    url = f"{client_site}/?broker=http://127.0.0.1:{app.http_port}&consumer={channel.consumer}"
    found = []
    for _ in range(TABS):
        made = await tools.call("Target.createTarget", url=url, browserContextId=context)
        target = made["targetId"]
        attached = await tools.call("Target.attachToTarget", targetId=target, flatten=True)
        page = Page(tools, attached["sessionId"])
        await page.becomes("window.isReady === true")
        found.append(Tab(target, page))
    yield found
    await tools.call("Target.disposeBrowserContext", browserContextId=context)


async def leader_of(tabs: list[Tab]) -> Tab:
    asked = [(await tab.page.value("askedAt"), at) for at, tab in enumerate(tabs)]
    return tabs[max(asked)[1]]


async def lose(tools: DevTools, tab: Tab, *, crashes: bool) -> None:
    if not crashes:
        await tools.call("Target.closeTarget", targetId=tab.target)
        return
    with suppress(TimeoutError, AssertionError):
        async with asyncio.timeout(0.5):
            await tab.page.devtools("Page.crash")


@pytest.mark.timeout(120)
async def test_each_tab_shows_each_event_once_while_leaders_close_and_crash(
    tools: DevTools, http: HttpFace, channel: Created, tabs: list[Tab]
) -> None:
    await http.write(channel.producer, "s", b"0")
    for tab in tabs:
        await tab.page.becomes("shown.length === 1")
    assert sum([bool(await tab.page.value("askedAt")) for tab in tabs]) == 1
    left = list(tabs)
    for number in range(1, EVENTS):
        # The broker keeps the last 100 events of a tab that dies, so no more may be on their way.
        if number % AT_ONCE == 0:
            await left[-1].page.becomes(f"shown.length > {number - AT_ONCE}", within_s=20)
        await http.write(channel.producer, "s", str(number).encode())
        if number in (400, 800, 1_200):
            leader = await leader_of(left)
            left.remove(leader)
            await lose(tools, leader, crashes=number == 800)
    for tab in left:
        await tab.page.becomes(f"shown.length >= {EVENTS}", within_s=30)
        assert await tab.page.value("shown") == list(range(EVENTS))
        assert await tab.page.value("gaps") == 0


async def test_a_tab_that_says_nothing_any_more_is_replaced(
    http: HttpFace, channel: Created, tabs: list[Tab]
) -> None:
    """That is how a tab that hangs looks to the others."""
    await http.write(channel.producer, "s", b"0")
    for tab in tabs:
        await tab.page.becomes("shown.length === 1")
    mute = await leader_of(tabs)
    await mute.page.value("BroadcastChannel.prototype.postMessage = () => {}; 0")
    for number in range(1, 20):
        await http.write(channel.producer, "s", str(number).encode())
    for tab in tabs:
        await tab.page.becomes("shown.length >= 20", within_s=20)
        assert await tab.page.value("shown") == list(range(20))
        assert await tab.page.value("gaps") == 0
    assert await leader_of(tabs) is not mute
