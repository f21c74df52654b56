"""Chromium without a window, controlled through its DevTools protocol."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from tests.support.scenes import eventually
from tests.support.settings import IS_LONG

WHOLE, SHELL = shutil.which("chromium"), shutil.which("chromium-headless-shell")
"""The browser as people have it, and the same engine without the browser around it, which needs a
quarter of the processor time."""
CHROMIUM = (WHOLE or SHELL) if IS_LONG else (SHELL or WHOLE)
"""The program that the tests start; None if there is none."""
FLAGS = (
    "--headless",
    "--no-sandbox",  # Chromium has no sandbox for root, and the pages are our own
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-breakpad",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--remote-debugging-port=0",
)
DEVTOOLS = re.compile(r"DevTools listening on (ws://\S+)\n")
STARTS_WITHIN_S = 30.0
STOPS_WITHIN_S = 5.0


@contextmanager
def chromium(*flags: str) -> Iterator[str]:
    """Run Chromium with a profile of its own. Yields: the URL of its DevTools."""
    assert CHROMIUM is not None
    with TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as home:
        log = Path(home, "log")
        with log.open("wb") as output:
            process = subprocess.Popen(
                [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={home}/profile", "about:blank"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | {"HOME": home, "TMPDIR": home},
                start_new_session=True,
            )
        try:
            yield wait_for_devtools(process, log)
        finally:
            stop(process)


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End Chromium in order, and then kill the rest of its process group."""
    process.terminate()
    until = time.monotonic() + STOPS_WITHIN_S
    # Nobody else can get the id of the group before we have waited for its first process.
    while time.monotonic() < until and not has_ended(process.pid):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


def wait_for_devtools(process: "subprocess.Popen[bytes]", log: Path) -> str:
    until = time.monotonic() + STARTS_WITHIN_S
    while process.poll() is None and time.monotonic() < until:
        if found := DEVTOOLS.search(log.read_text(errors="replace")):
            return found[1]
        time.sleep(0.05)
    raise AssertionError(f"Chromium did not start: {log.read_text(errors='replace')}")


class DevTools:
    """Calls Chromium, one call at a time."""

    def __init__(self, connection: "aiohttp.ClientWebSocketResponse[bool]") -> None:
        self._connection = connection
        self._ids = count()

    async def call(self, method: str, *, session: str | None = None, **params: Any) -> Any:
        """Return the result of a call to the browser, or to a page if a session is given."""
        call_id = next(self._ids)
        request: dict[str, Any] = {"id": call_id, "method": method, "params": params}
        if session is not None:
            request["sessionId"] = session
        await self._connection.send_json(request)
        while True:
            answer = await self._connection.receive_json()
            if answer.get("id") == call_id:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]


@asynccontextmanager
async def devtools(url: str) -> AsyncIterator[DevTools]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, max_msg_size=0) as connection,
    ):
        yield DevTools(connection)


class Page:
    """A page in its own tab."""

    def __init__(self, tools: DevTools, session: str) -> None:
        self._tools = tools
        self._session = session

    async def devtools(self, method: str, **params: Any) -> Any:
        return await self._tools.call(method, session=self._session, **params)

    async def value(self, expression: str) -> Any:
        """Evaluate an expression, and wait for it if it is a promise. Fails if it throws."""
        answer = await self.devtools(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    async def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the page."""
        return await self.value(f"{function}({', '.join(map(json.dumps, arguments))})")

    async def becomes(self, condition: str, within_s: float = 10) -> None:
        """Wait until a condition holds in the page."""

        async def holds() -> bool:
            return await self.value(condition) is True

        try:
            await eventually(holds, within_s)
        except TimeoutError:
            raise AssertionError(f"not so within {within_s:g} s: {condition}") from None

    async def go(self, url: str) -> None:
        """Load another page in the same tab, or the same page again."""
        await self.value("window.isOld = true")
        await self.devtools("Page.navigate", url=url)
        await self.becomes("!window.isOld && document.readyState === 'complete'")

    async def show(self, html: str) -> None:
        """Replace the document without changing its URL, and so its origin."""
        await self.value(f"document.open(); document.write({json.dumps(html)}); document.close()")


@asynccontextmanager
async def tab(tools: DevTools, url: str) -> AsyncIterator[Page]:
    """Open a page that shares no cache and no connections with other pages."""
    context = (await tools.call("Target.createBrowserContext"))["browserContextId"]
    try:
        target = await tools.call(
            "Target.createTarget", url="about:blank", browserContextId=context
        )
        attached = await tools.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        page = Page(tools, attached["sessionId"])
        await page.go(url)
        yield page
    finally:
        await tools.call("Target.disposeBrowserContext", browserContextId=context)
