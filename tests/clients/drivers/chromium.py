"""The driver of the TypeScript client in a page: python -m tests.clients.drivers.chromium [worker]

It passes commands to a page in Chromium, and the page's reports on. The page is of another origin
than the broker, so the broker must allow that, and the page cannot write. With `worker`, the client
is in a worker of the page.
"""

import asyncio
import itertools
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from tests.support.chromium import chromium

HERE = Path(__file__).parent
BUILT = HERE.parents[2] / "clients/typescript/dist"
DRIVER = """
import { Megaphone } from "/client/index.js";
import { Driver } from "/drivers/javascript.js";
const driver = new Driver(Megaphone, (told) => report(JSON.stringify(told)));
"""
PAGE = f"""<!doctype html><script type="module">
{DRIVER}
window.carryOut = (command) => driver.carryOut(command);
window.close = () => driver.close();
driver.report({{ is: "ready" }});
</script>"""
PAGE_OF_WORKER = """<!doctype html><script>
const worker = new Worker("/worker.js", { type: "module" });
let closed;
worker.onmessage = ({ data }) => data === "closed" ? closed() : report(data);
window.carryOut = (command) => worker.postMessage(command);
window.close = () => new Promise((resolve) => { closed = resolve; worker.postMessage("close"); });
</script>"""
WORKER = f"""
const report = postMessage;
{DRIVER}
onmessage = ({{ data }}) =>
  data === "close" ? driver.close().then(() => postMessage("closed")) : driver.carryOut(data);
driver.report({{ is: "ready" }});
"""


class Page:
    """A page whose reports go to standard output."""

    def __init__(self, connection: "aiohttp.ClientWebSocketResponse[bool]") -> None:
        self._connection = connection
        self._numbers = itertools.count()
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._session: dict[str, str] = {}

    async def open(self, url: str) -> None:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = {"sessionId": attached["sessionId"]}
        await self.call("Runtime.enable")
        await self.call("Runtime.addBinding", name="report")
        await self.call("Page.navigate", url=url)

    async def call(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        self._calls[number] = future = asyncio.get_running_loop().create_future()
        request = {"id": number, "method": method, "params": params}
        await self._connection.send_json(request | self._session)
        return await future

    async def listen(self) -> None:
        async for message in self._connection:
            told = message.json()
            if told.get("method") == "Runtime.bindingCalled":
                sys.stdout.write(told["params"]["payload"] + "\n")
                sys.stdout.flush()
            elif (future := self._calls.pop(told.get("id"), None)) is not None:
                future.set_result(told.get("result"))


async def site() -> web.AppRunner:
    """Serve the pages, the driver and the client."""
    served = web.Application()
    for path, text, media_type in (
        ("/", PAGE, "text/html"),
        ("/worker", PAGE_OF_WORKER, "text/html"),
        ("/worker.js", WORKER, "text/javascript"),
    ):
        answer = partial(web.Response, text=text, content_type=media_type)
        served.router.add_get(path, partial(answering, answer))
    served.router.add_static("/client", BUILT)
    served.router.add_static("/drivers", HERE)
    runner = web.AppRunner(served, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    return runner


async def answering(answer: Callable[[], web.Response], _: web.Request) -> web.Response:
    return answer()


async def run(devtools_url: str, path: str) -> None:
    """Carry out commands until there are no more."""
    runner = await site()
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(devtools_url, max_msg_size=0) as connection,
    ):
        page = Page(connection)
        listening = asyncio.create_task(page.listen())
        await page.open(f"http://127.0.0.1:{runner.addresses[0][1]}/{path}")
        while line := await asyncio.to_thread(sys.stdin.readline):
            command = json.dumps(json.loads(line))
            await page.call("Runtime.evaluate", expression=f"void carryOut({command})")
        await page.call("Runtime.evaluate", expression="window.close()", awaitPromise=True)
        listening.cancel()
    await runner.cleanup()


if __name__ == "__main__":
    with chromium() as url:
        asyncio.run(run(url, *sys.argv[1:] or [""]))
