"""A long request that is answered at once: 202 with the address of a channel, in which the job says
how far it is and, at the end, what came out.

The caller needs no connection to this back end meanwhile, and neither waits for the other.
"""

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

from aiohttp import web

from megaphone_client import Channel, Megaphone

HERE = Path(__file__).parent
CLIENT = HERE.parents[1] / "clients" / "typescript" / "dist"
STEPS = 20
STEP_S = 0.2


class Jobs:
    """The back end."""

    def __init__(self, megaphone: Megaphone, broker_url: str) -> None:
        self._megaphone = megaphone
        self._page = (HERE / "jobs.html").read_text().replace("{broker}", broker_url)
        self._running: set[asyncio.Task[None]] = set()

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/", self.page),
                web.post("/report", self.report),
                web.static("/client", CLIENT),
            ]
        )
        return app

    async def page(self, request: web.Request) -> web.Response:
        return web.Response(text=self._page, content_type="text/html")

    async def report(self, request: web.Request) -> web.Response:
        channel = await self._megaphone.create(label="report")
        job = asyncio.create_task(self._work(channel))
        self._running.add(job)
        job.add_done_callback(self._running.discard)
        return web.json_response({"consumer": channel.consumer}, status=202)

    async def _work(self, channel: Channel) -> None:
        for step in range(1, STEPS + 1):
            await asyncio.sleep(STEP_S)
            percent = 100 * step // STEPS
            await self._megaphone.write(channel.producer, "progress", {"percent": percent})
        await self._megaphone.write(channel.producer, "done", {"rows": 1_234, "total": 56_789})


async def serve(broker_url: str, port: int) -> None:
    async with Megaphone.from_url(broker_url) as megaphone:
        runner = web.AppRunner(Jobs(megaphone, broker_url).app())
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port).start()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()


if __name__ == "__main__":
    url = os.environ.get("MEGAPHONE_URL", "http://localhost:3000")
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(url, int(sys.argv[1])))
