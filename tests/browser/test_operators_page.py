"""The page of `megaphone ui` in a real browser."""

import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from megaphone.cli.ui_relay import Relay
from megaphone.cli.ui_server import UiServer
from megaphone_client import Channel, Megaphone
from tests.browser.axe import assert_all_can_use
from tests.support.chromium import CHROMIUM, DevTools, Page, tab
from tests.support.process import BrokerProcess, broker_process

pytestmark = [
    pytest.mark.group("browser"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
]

REFUSALS = """
    window.refused = [];
    addEventListener("securitypolicyviolation", (event) => refused.push(event.violatedDirective));
"""
ROWS = "[...document.querySelectorAll('#channels tbody tr')]"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("broker")


@pytest.fixture(scope="module")
def broker(home: Path) -> Iterator[BrokerProcess]:
    with broker_process(home) as process:
        yield process


@pytest.fixture(scope="module")
def server(home: Path, broker: BrokerProcess) -> Iterator[UiServer]:
    with UiServer(0, Relay(str(home / "megaphone.sock"), allow_actions=True)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
async def client(broker: BrokerProcess) -> AsyncIterator[Megaphone]:
    async with Megaphone.from_url(broker.url) as client:
        yield client


@pytest.fixture
async def page(tools: DevTools, server: UiServer) -> AsyncIterator[Page]:
    """The page, which notes what its policy refuses."""
    async with tab(tools, f"http://127.0.0.1:{server.server_port}/") as page:
        await page.devtools("Page.enable")
        await page.devtools("Page.addScriptToEvaluateOnNewDocument", source=REFUSALS)
        await page.go(server.link)
        yield page
        assert await page.value("refused") == []


async def channels(client: Megaphone, *depths: int) -> list[str]:
    """Make channels with so many events. Returns: their names on the page."""
    made: list[Channel] = []
    for depth in depths:
        made.append(await client.create(label="a label"))
        for number in range(depth):
            await client.write(made[-1].producer, "s", number)
    return [name_of(channel) for channel in made]


def name_of(channel: Channel) -> str:
    agent, _, rest = channel.consumer.partition(".")
    return f"{agent}.{rest[:8]}…"


async def cells(page: Page, name: str) -> list[str]:
    """Return what the page shows of a channel, when it does."""
    await page.becomes(f"{ROWS}.some((row) => row.cells[0].textContent === {json.dumps(name)})")
    found = await page.value(f"{ROWS}.map((row) => [...row.cells].map((cell) => cell.textContent))")
    return next(row for row in found if row[0] == name)


async def press(page: Page, text: str, within: str) -> None:
    await page.value(
        f"[...document.querySelector({json.dumps(within)}).querySelectorAll('button')]"
        f".find((one) => one.textContent === {json.dumps(text)}).click()"
    )


async def test_the_page_shows_a_node_while_it_runs(page: Page, client: Megaphone) -> None:
    full, empty = await channels(client, 3, 0)
    texts = "[...row.cells].map((cell) => cell.textContent).slice(0, 6).join()"
    wanted = f"{full},a label,3,0,0,no"
    await page.becomes(f"{ROWS}.some((row) => {texts} === {json.dumps(wanted)})", within_s=20)
    assert (await cells(page, empty))[2] == "0"
    assert "token" not in await page.value("location.href")
    await page.becomes("document.querySelector('#state').textContent.startsWith('Live')")
    await page.becomes("/^in \\d/.test(document.querySelector('#in').textContent)")
    await page.becomes("document.querySelector('#line-in').getAttribute('d').includes('L')")
    await page.becomes("/Loop delay\\d+\\.\\d ms/.test(document.body.textContent)")


async def test_open_reads_are_told_by_kind(page: Page, client: Megaphone) -> None:
    made = [await client.create() for _ in range(3)]
    note = "document.querySelector('#note1').textContent"
    await page.becomes(f"{note} === ''")
    async with AsyncExitStack() as stack:
        for number, channel in enumerate(made):
            reader = client.read(channel.consumer, ack="auto" if number else "none")
            await client.write(channel.producer, "s", 1)
            await anext(await stack.enter_async_context(reader))
        await page.becomes(f"{note} === '1 plain, 2 acknowledging'")
    await page.becomes(f"{note} === ''")


async def test_channels_are_filtered_and_sorted(page: Page, client: Megaphone) -> None:
    oldest, deepest = await channels(client, 1, 5)
    await page.becomes(f"{ROWS}[0]?.cells[0].textContent === {json.dumps(deepest)}")
    await page.value(
        f"filter.value = {json.dumps(oldest[-9:-1])}; filter.dispatchEvent(new Event('input'))"
    )
    await page.becomes(f"{ROWS}.length === 1")
    assert await page.value(f"{ROWS}[0].cells[0].textContent") == oldest
    await page.value("filter.value = ''; filter.dispatchEvent(new Event('input'))")
    await press(page, "Age", "#channels thead")
    await page.becomes(
        f"{ROWS}.findIndex((row) => row.cells[0].textContent === {json.dumps(oldest)})"
        f" < {ROWS}.findIndex((row) => row.cells[0].textContent === {json.dumps(deepest)})"
    )
    assert await page.value("document.querySelector('[aria-sort]').textContent") == "Age"


async def test_a_channel_is_shown_when_its_name_is_pressed(page: Page, client: Megaphone) -> None:
    (name,) = await channels(client, 2)
    await cells(page, name)
    await press(page, name, "#channels tbody")
    await page.becomes("details.open && document.querySelector('#name').textContent !== ''")
    shown = (
        "Object.fromEntries([...document.querySelectorAll('#facts dt')]"
        ".map((one) => [one.textContent, one.nextSibling.textContent]))"
    )
    facts = await page.value(shown)
    assert (facts["Label"], facts["Unsent"], facts["Capacity"]) == ("a label", "2", "100")
    assert facts["Last read"] == facts["Reader"]
    assert len(facts["Short id"]) == 8
    await assert_all_can_use(page)
    await press(page, "Close", "#details")
    assert await page.value("details.open") is False


async def test_a_channel_is_disposed_of_after_a_question(page: Page, client: Megaphone) -> None:
    (name,) = await channels(client, 20)
    await page.becomes(f"{ROWS}[0]?.cells[0].textContent === {json.dumps(name)}")
    await press(page, "Dispose", "#channels tbody tr")
    assert name in await page.value("question.textContent")
    await press(page, "Cancel", "dialog")
    await press(page, "Dispose", "#channels tbody tr")
    await press(page, "Dispose", "dialog")
    await page.becomes(f"{ROWS}.every((row) => row.cells[0].textContent !== {json.dumps(name)})")
    await page.becomes("/Events lost.*: 20/.test(notable.textContent)")
    assert "Done: dispose." in await page.value("notable.textContent")
    await press(page, "Drain this node", "main")
    await page.value("target.value = 'nonsense'")
    await press(page, "Drain", "dialog")
    await page.becomes("notable.textContent.includes('Failed: drain: BAD_REQUEST')")


async def test_everybody_can_use_the_page(page: Page, client: Megaphone) -> None:
    (name,) = await channels(client, 2)
    await cells(page, name)
    await assert_all_can_use(page)
    await press(page, "Drain this node", "main")
    await assert_all_can_use(page)
