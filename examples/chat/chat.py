"""A chat: rooms, who is present and who is typing, answers word by word, and jobs with progress.

Each page has a channel of its own, and this back end writes what happens in a room to the channels
of all who are there, as one batch. It holds no connection to any page: a page reads at the broker,
and sends what its user does as small requests.

Nothing is missed when a connection breaks or the broker starts anew. Each message of a room has a
number, so a page notices that one is missing, and asks for what came after its last one.
"""

import asyncio
import os
import secrets
import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from megaphone_client import Megaphone, MegaphoneError

HERE = Path(__file__).parent
CLIENT = HERE.parents[1] / "clients" / "typescript" / "dist"
KEPT_MESSAGES = 200
LIFE_S = 15.0
"""How long a channel lives unread: so long a closed page counts as present."""
PLACES = 1_000
"""How many events a channel holds that its page has not read, so that a page that was closed keeps
no writer waiting before its channel ends."""
WRITE_S = 10.0
WORD_S = 0.08
STEP_S = 0.15
MOST_CHARACTERS = 2_000
ANSWER = (
    "You asked: {question} I am not a model, only a loop that writes one word after the other. But"
    " a model would do the same: each word is an event, written to the channel of every page in"
    " this room, and you read it while I am still looking for the next one."
)


@dataclass
class Message:
    """A line of a room. An answer grows, and a job gets further."""

    number: int
    sender: str
    text: str
    key: str = ""
    """What its page calls it, so that a message that is sent again is in the room once."""
    done: int | None = None
    """How much of a job is done, in percent."""


@dataclass
class Member:
    """A page in a room."""

    name: str
    producer: str
    consumer: str


@dataclass
class Room:
    """Who is present, what was said, and what is to be sent to all pages, in order."""

    members: dict[str, Member] = field(default_factory=dict)
    """By a secret that only the page knows."""
    messages: list[Message] = field(default_factory=list)
    outbox: asyncio.Queue[tuple[str, object]] = field(default_factory=asyncio.Queue)
    said: int = 0

    def say(self, sender: str, text: str, key: str = "", done: int | None = None) -> Message:
        self.said += 1
        message = Message(self.said, sender, text, key, done)
        self.messages = [*self.messages, message][-KEPT_MESSAGES:]
        self.outbox.put_nowait(("message", asdict(message)))
        return message

    def remove(self, members: Sequence[Member]) -> None:
        if members:
            kept = {key: one for key, one in self.members.items() if one not in members}
            self.members = kept
            self.say_who_is_there()

    def say_who_is_there(self) -> None:
        names = sorted({member.name for member in self.members.values()})
        self.outbox.put_nowait(("people", names))


class Chat:
    """The back end."""

    def __init__(self, megaphone: Megaphone, broker_url: str, life_s: float = LIFE_S) -> None:
        """`broker_url` is where pages read."""
        self._megaphone = megaphone
        self._life_s = life_s
        self._page = (HERE / "chat.html").read_text().replace("{broker}", broker_url)
        self.rooms: dict[str, Room] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/", self.page),
                web.post("/join", self.join),
                web.post("/say", self.say),
                web.post("/typing", self.typing),
                web.post("/missed", self.missed),
                web.post("/gone", self.gone),
                web.static("/client", CLIENT),
            ]
        )
        app.on_cleanup.append(self._stopping)
        return app

    async def _stopping(self, app: web.Application) -> None:
        for task in self._tasks:
            task.cancel()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- What pages ask for

    async def page(self, request: web.Request) -> web.Response:
        return web.Response(text=self._page, content_type="text/html")

    async def join(self, request: web.Request) -> web.Response:
        """Give a page a channel. A page whose channel has gone names its former place."""
        asked = await request.json()
        name, title = str(asked["name"])[:40], str(asked["room"])[:40]
        channel = await self._megaphone.create(ttl_s=self._life_s, capacity=PLACES, label="chat")
        room = self._room(title)
        room.members.pop(str(asked.get("former")), None)
        secret = secrets.token_urlsafe(16)
        room.members[secret] = Member(name, channel.producer, channel.consumer)
        room.say_who_is_there()
        return web.json_response({"consumer": channel.consumer, "secret": secret})

    async def missed(self, request: web.Request) -> web.Response:
        """Answer with the messages behind a number."""
        room, _, asked = await self._place(request)
        behind = int(asked["after"])
        missed = [asdict(message) for message in room.messages if message.number > behind]
        return web.json_response(missed)

    async def say(self, request: web.Request) -> web.Response:
        room, member, asked = await self._place(request)
        text, key = str(asked["text"])[:MOST_CHARACTERS].strip(), str(asked["key"])[:40]
        if any(message.key == key for message in room.messages):
            return web.json_response({})
        command, _, rest = text.partition(" ")
        room.say(member.name, text, key)
        if command == "/ask":
            self._start(answer(room, rest))
        elif command == "/job":
            self._start(work(room, rest or "something long"))
        return web.json_response({})

    async def typing(self, request: web.Request) -> web.Response:
        room, member, _ = await self._place(request)
        room.outbox.put_nowait(("typing", member.name))
        return web.json_response({})

    async def gone(self, request: web.Request) -> web.Response:
        """The broker reports channels that have ended. Their addresses are secrets, so nobody else
        can name one."""
        ended = set((await request.json())["channels"])
        for room in self.rooms.values():
            room.remove([one for one in room.members.values() if one.consumer in ended])
        return web.json_response({})

    async def _place(self, request: web.Request) -> tuple[Room, Member, dict[str, Any]]:
        """Return the room and the member that a page speaks for, and what it asks for."""
        asked = await request.json()
        room = self.rooms.get(str(asked["room"]))
        member = None if room is None else room.members.get(str(asked["secret"]))
        if room is None or member is None:
            raise web.HTTPNotFound
        return room, member, asked

    # -- What the pages get

    def _room(self, title: str) -> Room:
        if title not in self.rooms:
            room = self.rooms[title] = Room()
            self._start(self._send(room))
        return self.rooms[title]

    async def _send(self, room: Room) -> None:
        """Write what happens in a room to the channels of all who are there, in order."""
        while True:
            events = [await room.outbox.get()]
            while not room.outbox.empty() and len(events) < 20:
                events.append(room.outbox.get_nowait())
            producers = [member.producer for member in room.members.values()]
            if not producers:
                continue
            # A page that misses an event asks for it, so no failure is worth another try here.
            try:
                failures = await self._megaphone.write_batch(producers, events, timeout_s=WRITE_S)
            except MegaphoneError as error:
                print(f"not sent: {error.code}", file=sys.stderr)
            else:
                gone = {one.producer for one in failures if one.reason == "NOT_FOUND"}
                room.remove([one for one in room.members.values() if one.producer in gone])


async def answer(room: Room, question: str) -> None:
    """Say an answer word by word, as a model does."""
    message = room.say("Robot", "")
    for word in ANSWER.format(question=question or "nothing.").split(" "):
        await asyncio.sleep(WORD_S)
        added = word if not message.text else f" {word}"
        event = {"number": message.number, "at": len(message.text), "added": added}
        message.text += added
        room.outbox.put_nowait(("word", event))


async def work(room: Room, what: str) -> None:
    """Do a long job, and say how far it is."""
    message = room.say("Robot", f"Working on {what}", done=0)
    for percent in range(4, 101, 4):
        await asyncio.sleep(STEP_S)
        message.done = percent
        room.outbox.put_nowait(("progress", {"number": message.number, "done": percent}))


async def serve(broker_url: str, port: int) -> None:
    async with Megaphone.from_url(broker_url) as megaphone:
        runner = web.AppRunner(Chat(megaphone, broker_url).app())
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
