"""The JavaScript that the documentation gives to newcomers does what it says."""

import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from megaphone.app import App
from tests.support.chromium import CHROMIUM, DevTools, Page, tab
from tests.support.faces import Created, HttpFace
from tests.support.scenes import eventually

pytestmark = [
    pytest.mark.group("browser"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.settings(cors_allow_origin=("*",)),
]

ROOT = Path(__file__).parents[2]
SHOW = "window.shown = []; window.show = (event) => shown.push(event.body);"


def blocks(document: str) -> list[str]:
    return re.findall(r"```js\n(.*?)\n```", (ROOT / document).read_text(), re.DOTALL)


@pytest.mark.parametrize("document", ["README.md", "docs/browsers.md"])
async def test_the_line_shows_each_event(
    app: App, http: HttpFace, channel: Created, page: Page, document: str
) -> None:
    line = blocks(document)[0]
    address = json.dumps(f"http://127.0.0.1:{app.http_port}/read/{channel.consumer}")
    runnable = line.replace("`/read/${consumerAddress}`", address)
    await page.value(f"{SHOW} {runnable} 0")
    await http.write(channel.producer, "s", b'"hello"')
    await page.becomes("shown.length === 1")
    assert await page.value("shown") == ["hello"]


class Site:
    """A web site whose reads come from the broker, unless it refuses them."""

    def __init__(self, broker: str, session: aiohttp.ClientSession) -> None:
        self._broker = broker
        self._session = session
        self.refuses = False
        self.refused = 0

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if not request.path.startswith("/read/"):
            return web.Response(text="<!doctype html>", content_type="text/html")
        if self.refuses:
            self.refused += 1
            return web.json_response({"code": "SHUTTING_DOWN"}, status=503)
        return await self._from_broker(request)

    async def _from_broker(self, request: web.BaseRequest) -> web.StreamResponse:
        wanted = {
            name: request.headers[name]
            for name in ("Accept", "Last-Event-ID")
            if name in request.headers
        }
        async with self._session.get(self._broker + request.path_qs, headers=wanted) as answer:
            response = web.StreamResponse(
                status=answer.status, headers={"Content-Type": answer.headers["Content-Type"]}
            )
            await response.prepare(request)
            async for chunk in answer.content.iter_any():
                await response.write(chunk)
        return response


@pytest.fixture
async def site_of_app(app: App) -> AsyncIterator[tuple[Site, str]]:
    async with aiohttp.ClientSession() as session:
        site = Site(f"http://127.0.0.1:{app.http_port}", session)
        runner = web.ServerRunner(
            web.Server(site.answer, access_log=None),  # addresses are secrets
            handler_cancellation=True,
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield site, f"http://127.0.0.1:{runner.addresses[0][1]}/"
        await runner.cleanup()


@pytest.fixture
async def listening(
    site_of_app: tuple[Site, str], channel: Created, tools: DevTools
) -> AsyncIterator[Page]:
    """A page that reads the channel by the lines of the document."""
    [_, lines] = blocks("docs/browsers.md")
    assert len(lines.splitlines()) <= 10
    async with tab(tools, site_of_app[1]) as page:
        await page.value(f"{SHOW} window.listen = {lines}; listen({json.dumps(channel.consumer)})")
        yield page


async def test_the_lines_go_on_when_their_channel_has_gone(
    app: App, http: HttpFace, channel: Created, listening: Page
) -> None:
    await http.write(channel.producer, "s", b"1")
    await listening.becomes("shown.length === 1")
    another = await http.create()
    await listening.value(f"window.newConsumer = async () => {json.dumps(another.consumer)}, 0")
    await app.admin.dispose(channel.consumer)
    await http.write(another.producer, "s", b"2")
    await listening.becomes("shown.length === 2")
    assert await listening.value("shown") == [1, 2]


@pytest.mark.settings(poll_duration_millis=250)
async def test_the_lines_go_on_when_reads_were_refused_for_a_while(
    http: HttpFace, channel: Created, site_of_app: tuple[Site, str], listening: Page
) -> None:
    site, _ = site_of_app
    await http.write(channel.producer, "s", b"1")
    await listening.becomes("shown.length === 1")
    site.refuses = True

    async def is_refused() -> bool:
        return site.refused >= 2

    await eventually(is_refused)
    await http.write(channel.producer, "s", b"2")
    site.refuses = False
    await listening.becomes("shown.length === 2")
    await http.write(channel.producer, "s", b"3")
    await listening.becomes("shown.length === 3")
    assert await listening.value("shown") == [1, 2, 3]
