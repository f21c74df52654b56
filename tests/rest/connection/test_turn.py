"""When the requests of a turn are answered, and in which order."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from megaphone.rest.connection.turn import SMALL_BYTES, Turn


@dataclass
class Scene:
    """A turn whose requests are named by their bytes. Each writes an event for one reader."""

    steps: list[str] = field(default_factory=list)
    turn: Turn = field(init=False)

    def __post_init__(self) -> None:
        self.turn = Turn(asyncio.get_running_loop(), self.ask)

    def ask(self, connections: Sequence[object], requests: Sequence[bytes]) -> list[str]:
        self.steps.append("ask " + " ".join(one[:1].decode() for one in requests))
        self.turn.add_stream(Reader(self.steps))
        return ["answer"] * len(requests)

    def arrive(self, *requests: bytes) -> None:
        for one in requests:
            self.turn.add_request(Writer(self.steps), one)

    async def taken(self) -> list[str]:
        """Return the steps until now, after all that is due."""
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        steps, self.steps[:] = list(self.steps), []
        return steps


@dataclass
class Writer:
    steps: list[str]

    def answer(self, outcome: str, data: bytes) -> None:
        self.steps.append(f"{outcome} {data[:1].decode()}")

    def answer_late(self, outcome: str, data: bytes) -> None:
        raise AssertionError("no request is answered later")


@dataclass
class Reader:
    steps: list[str]

    def take(self) -> None:
        pass

    def prepare(self) -> None:
        pass

    def send_ready(self) -> None:
        self.steps.append("send")


async def test_a_lone_request_is_answered_as_soon_as_it_arrives() -> None:
    scene = Scene()
    scene.arrive(b"a")
    assert scene.steps == ["ask a", "send", "answer a"]
    assert await scene.taken() == ["ask a", "send", "answer a"]


async def test_the_answer_to_a_large_request_goes_out_before_its_events() -> None:
    scene = Scene()
    scene.arrive(b"a" * (SMALL_BYTES + 1))
    assert await scene.taken() == ["ask a", "answer a", "send"]


async def test_requests_that_arrive_together_are_answered_step_by_step() -> None:
    scene = Scene()
    scene.arrive(b"a", b"b", b"c")
    assert await scene.taken() == [
        "ask a", "send", "answer a", "ask b c", "send", "answer b", "answer c",
    ]  # fmt: skip
    scene.arrive(b"d", b"e")
    assert scene.steps == []
    assert await scene.taken() == ["ask d e", "send", "answer d", "answer e"]


async def test_after_a_turn_with_one_request_the_next_is_answered_at_once_again() -> None:
    scene = Scene()
    scene.arrive(b"a", b"b")
    await scene.taken()
    scene.arrive(b"c")
    assert scene.steps == []
    assert await scene.taken() == ["ask c", "send", "answer c"]
    scene.arrive(b"d")
    assert scene.steps == ["ask d", "send", "answer d"]
