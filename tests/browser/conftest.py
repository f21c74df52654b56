"""Fixtures for tests with a browser: Chromium, and a site of another origin than the broker's."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiohttp import web

from tests.support.chromium import DevTools, Page, chromium, devtools, tab
from tests.support.faces import Created, HttpFace

PAGE = Path(__file__).with_name("page.html")


@pytest.fixture(scope="session")
def devtools_url() -> Iterator[str]:
    with chromium() as url:
        yield url


@pytest.fixture
async def tools(devtools_url: str) -> AsyncIterator[DevTools]:
    async with devtools(devtools_url) as tools:
        yield tools


@pytest.fixture
def html() -> str:
    return PAGE.read_text()


@pytest.fixture
async def site_port(html: str) -> AsyncIterator[int]:
    """A web server that answers every path with the page."""

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response(text=html, content_type="text/html")

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@pytest.fixture
def site(site_port: int) -> str:
    return f"http://127.0.0.1:{site_port}"


@pytest.fixture
async def page(tools: DevTools, site: str) -> AsyncIterator[Page]:
    """The page, opened from the site."""
    async with tab(tools, site) as page:
        yield page


@pytest.fixture
async def channel(http: HttpFace) -> Created:
    return await http.create()
