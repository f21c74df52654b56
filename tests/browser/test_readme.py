"""The line of JavaScript that the documentation gives to newcomers does what it says."""

import json
import re
from pathlib import Path

import pytest

from megaphone.app import App
from tests.support.chromium import CHROMIUM, Page
from tests.support.faces import Created, HttpFace

pytestmark = [
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.settings(cors_allow_origin="*"),
]

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("document", ["README.md", "docs/delivery.md"])
async def test_the_line_shows_each_event(
    app: App, http: HttpFace, channel: Created, page: Page, document: str
) -> None:
    [line] = re.findall(r"```js\n(.*?)\n```", (ROOT / document).read_text(), re.DOTALL)
    address = json.dumps(f"http://127.0.0.1:{app.http_port}/read/{channel.consumer}")
    runnable = line.replace("`/read/${consumerAddress}`", address)
    await page.value("window.shown = [], window.show = (event) => shown.push(event.body), 0")
    await page.value(f"{runnable} 0")
    await http.write(channel.producer, "s", b'"hello"')
    await page.becomes("shown.length === 1")
    assert await page.value("shown") == ["hello"]
