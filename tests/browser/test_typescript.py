"""The TypeScript client, as pages without a bundler get it: in pages and workers of another origin
than the broker's."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from megaphone.app import App
from tests.support.chromium import CHROMIUM, DevTools, Page, tab
from tests.support.faces import HttpFace

BUILT = Path(__file__).parents[2] / "clients/typescript/dist"
READER = """
import { Megaphone } from "/client/megaphone.min.js";
const show = globalThis.show ?? postMessage;
const { searchParams } = new URL(import.meta.url);
const { broker, consumers } = Object.fromEntries(searchParams);
const asking = (url, init) => {
  show({ asked: (init.method ?? "GET") + " " + new URL(url).pathname.split("/")[1] });
  return fetch(url, init);
};
const megaphone = new Megaphone(broker, { fetch: asking });
for (const consumer of consumers.split(","))
  megaphone.channel(consumer, { ack: "auto" }).stream("s").subscribe(({ body }) => show({ body }));
"""
PAGE = """<!doctype html><script type="module">
Object.assign(window, { shown: [], asked: [] });
window.show = ({ body, asked: call }) => call ? asked.push(call) : shown.push(body);
const reader = "/reader.js" + location.search;
if (location.pathname === "/page") await import(reader);
else new Worker(reader, { type: "module" }).onmessage = ({ data }) => show(data);
</script>"""

pytestmark = [
    pytest.mark.group("browser"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.skipif(not BUILT.exists(), reason="needs the TypeScript client: make client-ts"),
    pytest.mark.settings(cors_allow_origin=("*",)),
]


@pytest.fixture
async def client_site() -> AsyncIterator[str]:
    """A site of another origin than the broker's."""

    async def page(request: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html")

    async def reader(request: web.Request) -> web.Response:
        return web.Response(text=READER, content_type="text/javascript")

    site = web.Application()
    site.router.add_get("/page", page)
    site.router.add_get("/worker", page)
    site.router.add_get("/reader.js", reader)
    site.router.add_static("/client", BUILT)
    runner = web.AppRunner(site, access_log=None)  # addresses are secrets
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.mark.parametrize("where", ["page", "worker"])
async def test_channels_are_read_and_acknowledged_over_one_connection(
    tools: DevTools, app: App, http: HttpFace, client_site: str, where: str
) -> None:
    made = [await http.create() for _ in range(2)]
    consumers = ",".join(one.consumer for one in made)
    query = f"broker=http://127.0.0.1:{app.http_port}&consumers={consumers}"
    async with tab(tools, f"{client_site}/{where}?{query}") as page:
        for number in range(4):
            await http.write(made[number % 2].producer, "s", str(number).encode())
        await shows(page, 4)
        reads = "asked.filter((one) => one.endsWith('read')).join()"
        assert await page.value(reads) == "POST read"
        await page.becomes("asked.filter((one) => one === 'POST ack').length >= 2")


async def shows(page: Page, count: int) -> None:
    """Wait until a page has shown so many events, and judge their order in each channel."""
    await page.becomes(f"shown.length >= {count}")
    shown = await page.value("shown")
    for remainder in range(2):
        assert [one for one in shown if one % 2 == remainder] == list(range(remainder, count, 2))
