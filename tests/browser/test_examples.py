"""The examples in a real browser: the chat, also while its broker is started anew, and a job."""

import json
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from aiohttp import ClientSession, web

from examples.chat.chat import CLIENT, Chat
from examples.jobs.jobs import Jobs
from megaphone_client import Megaphone
from tests.browser.axe import assert_all_can_use
from tests.support.chromium import CHROMIUM, DevTools, Page, tab
from tests.support.ports import free_ports
from tests.support.process import BrokerProcess, broker_process
from tests.support.proxy import Proxy, proxy_to
from tests.support.scenes import eventually

pytestmark = [
    pytest.mark.group("browser"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.skipif(not (CLIENT / "index.js").exists(), reason="needs make client-ts"),
    pytest.mark.timeout(120),
]

HOST = "127.0.0.1"
LIFE_S = 4.0
TEXTS = "[...document.querySelectorAll('#messages li')].map((one) => one.lastChild.textContent)"
PEOPLE = "[...document.querySelectorAll('#people li')].map((one) => one.textContent)"


class Stage:
    """A broker that can be started anew, a proxy before it, and the port of a back end."""

    def __init__(self, folder: Path, broker_port: int, site_port: int) -> None:
        self.site = f"http://{HOST}:{site_port}"
        self.site_port = site_port
        self.broker_port = broker_port
        self._folder = folder
        self._running = ExitStack()
        self.proxy: Proxy

    @property
    def broker_url(self) -> str:
        return f"http://{HOST}:{self.proxy.port}"

    def start(self) -> BrokerProcess:
        settings = {
            "address": f"{HOST}:{self.broker_port}",
            "cors_allow_origin": self.site,
            "webhooks.chat.endpoint": f"{self.site}/gone",
            "webhooks_allow": HOST,
        }
        return self._running.enter_context(broker_process(self._folder, **settings))

    def kill(self) -> None:
        self._running.close()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(tmp_path, *free_ports(2))
    stage.start()
    try:
        async with proxy_to(stage.broker_port) as stage.proxy:
            yield stage
    finally:
        stage.kill()


@asynccontextmanager
async def served(app: web.Application, stage: Stage) -> AsyncIterator[None]:
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, HOST, stage.site_port).start()
    try:
        yield
    finally:
        await runner.cleanup()


@pytest.fixture
async def chat(stage: Stage) -> AsyncIterator[Chat]:
    async with Megaphone.from_url(stage.broker_url) as client:
        chat = Chat(client, stage.broker_url, LIFE_S)
        async with served(chat.app(), stage):
            yield chat


@asynccontextmanager
async def joined(tools: DevTools, stage: Stage, name: str) -> AsyncIterator[Page]:
    async with tab(tools, f"{stage.site}/?name={name}") as page:
        await page.becomes("state.textContent === 'Connected'", within_s=20)
        yield page


async def say(page: Page, text: str) -> None:
    await page.value(f"text.value = {json.dumps(text)}; form.requestSubmit()")


async def shows(page: Page, *texts: str) -> None:
    """Wait until a page shows exactly these messages, in order."""
    await page.becomes(f"{TEXTS}.join('|') === {json.dumps('|'.join(texts))}", within_s=30)


async def test_nobody_misses_a_message_while_the_broker_is_cut_and_started_anew(
    tools: DevTools, stage: Stage, chat: Chat
) -> None:
    said = [f"number {number}" for number in range(12)]
    async with joined(tools, stage, "Ada") as ada, joined(tools, stage, "Grace") as grace:
        for number, text in enumerate(said):
            await say((ada, grace)[number % 2], text)
            if number % 3 == 2:
                stage.proxy.cut()
            if number == 7:
                stage.kill()
            if number == 9:
                stage.start()
            # The next one is said when this one is in the room, so that one order is right.
            await eventually(partial(has, chat, text), within_s=20)
        for page in (ada, grace):
            await shows(page, *said)
            await page.becomes("state.textContent === 'Connected'", within_s=30)


async def has(chat: Chat, text: str) -> bool:
    return any(message.text == text for message in chat.rooms["lobby"].messages)


async def test_people_come_type_ask_and_leave(
    tools: DevTools, stage: Stage, chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("examples.chat.chat.WORD_S", 0.01)
    monkeypatch.setattr("examples.chat.chat.STEP_S", 0.01)
    async with joined(tools, stage, "Ada") as ada:
        await say(ada, "first")
        async with joined(tools, stage, "Grace") as grace:
            await shows(grace, "first")
            await ada.becomes(f"{PEOPLE}.join() === 'Ada,Grace'")
            await grace.value("document.querySelector('#text').oninput()")
            await ada.becomes("typing.textContent === 'Grace is typing …'")
            await say(grace, "/ask <b>why</b>?")
            await say(ada, "/job")
            for page in (ada, grace):
                await page.becomes(f"{TEXTS}.some((one) => one.endsWith('the next one.'))")
                await page.becomes("document.querySelector('progress')?.value === 100")
            assert await ada.value("document.querySelectorAll('#messages li b').length") == 5
            await assert_all_can_use(ada)
            await grace.value("location.hash = 'garden'")
            await grace.becomes(f"{PEOPLE}.join() === 'Grace' && {TEXTS}.length === 0")
        # Her page is closed: the broker reports that her channel has ended.
        await ada.becomes(f"{PEOPLE}.join() === 'Ada'", within_s=30)
        await eventually(partial(is_empty, chat, "garden"), within_s=30)


async def is_empty(chat: Chat, room: str) -> bool:
    return not chat.rooms[room].members


async def test_a_message_that_is_sent_again_is_in_the_room_once(stage: Stage, chat: Chat) -> None:
    async with ClientSession(stage.site) as session:
        async with session.post("/join", json={"room": "lobby", "name": "Ada"}) as answer:
            secret = (await answer.json())["secret"]
        said = {"room": "lobby", "secret": secret, "text": "once", "key": "a key"}
        for wanted, member in ((200, secret), (200, secret), (404, "another")):
            async with session.post("/say", json=said | {"secret": member}) as answer:
                assert answer.status == wanted
    assert [message.text for message in chat.rooms["lobby"].messages] == ["once"]


async def test_a_page_shows_how_far_a_report_is(
    tools: DevTools, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("examples.jobs.jobs.STEP_S", 0.01)
    async with (
        Megaphone.from_url(stage.broker_url) as client,
        served(Jobs(client, stage.broker_url).app(), stage),
        tab(tools, stage.site) as page,
    ):
        await assert_all_can_use(page)
        await page.value("start.click()")
        await page.becomes("result.textContent.startsWith('Done: 1234 rows')")
        assert await page.value("progress.value") == 100
