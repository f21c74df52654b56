"""Writers to channels that move.

Each writer does what a good client does. It finds the node before each call. If no answer comes, it
repeats the write with the same key, perhaps on another node. Sometimes it loses an answer on
purpose, and sometimes it repeats a write that was answered.
"""

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from megaphone.errors import ChannelNotFound, MegaphoneError, WriteTimeout
from tests.support.checker import Outcome, Write
from tests.support.cluster import Gone
from tests.support.move_desks import AGAIN_S, NOT_FOUND_AT_MOST, Desk, Item, Result, Shared, Way
from tests.support.move_ledger import draw_size
from tests.support.raw_http import Broken

KEY_HOLDS_S = 45.0
"""How long a writer repeats a write with its key. The broker remembers a key for 60 s."""
LOST_ANSWERS = 0.15
"""The share of calls whose answer the writer loses on purpose."""
REPETITIONS = 0.1
"""The share of answered calls that the writer repeats."""


@dataclass(slots=True)
class State:
    """What a writer knows about one event."""

    ids: list[str] = field(default_factory=list)
    is_taken: bool = False
    may_be_taken: bool = False
    is_in_sequence: bool = True

    @property
    def outcome(self) -> Outcome:
        if self.is_taken:
            return Outcome.TAKEN
        return Outcome.UNKNOWN if self.may_be_taken else Outcome.REFUSED

    def learn(self, result: Result) -> None:
        """Record an answer. A refusal changes nothing for an event that was accepted before."""
        if isinstance(result, str):
            self.is_taken = True
            if result:
                self.ids.append(result)


class Patience:
    """Decides how often a writer repeats one call."""

    def __init__(self, rng: random.Random) -> None:
        self._timeouts_left = rng.randint(1, 6)
        self._missing = 0
        self._clock = asyncio.get_running_loop().time
        self._ends_at = self._clock() + KEY_HOLDS_S

    def is_over(self, error: MegaphoneError | None = None) -> bool:
        """Return whether the writer gives up, after this refusal or without one."""
        self._missing = self._missing + 1 if isinstance(error, ChannelNotFound) else 0
        self._timeouts_left -= isinstance(error, WriteTimeout)
        return (
            self._missing == NOT_FOUND_AT_MOST
            or self._timeouts_left == 0
            or self._clock() > self._ends_at
        )


class Writer:
    """Writes numbers in order. It repeats each until it knows the result, or gives up."""

    def __init__(
        self, name: int, desk: Desk, shared: Shared, rng: random.Random, *, has_keys: bool
    ) -> None:
        self._name = name
        self._desk = desk
        self._shared = shared
        self._ledger = shared.ledger
        self._rng = rng
        self._has_keys = has_keys
        self._way = Way(shared)

    async def write(self, count: int, pause_s: float, largest_bytes: int, at_once: int) -> None:
        """Write a number of events, several of them in one call, with pauses of about this
        length."""
        number = 0
        try:
            while number < count:
                size = self._rng.randint(1, at_once)
                numbers = range(number, min(count, number + size))
                await self._settle(numbers, largest_bytes // len(numbers))
                number = numbers.stop
                await asyncio.sleep(self._rng.uniform(0, 2 * pause_s))
        except Gone:
            return
        finally:
            self._desk.close()

    async def _settle(self, numbers: range, largest_bytes: int) -> None:
        items = [
            (item, body)
            for number in numbers
            for body in [self._make(number, largest_bytes)]
            for item in self._items_of(number)
        ]
        states = {item: State() for item, _ in items}
        key = f"{self._name}-{numbers.start}" if self._has_keys else None
        began = self._ledger.tick()
        try:
            await self._call_until_settled(items, states, key)
            if self._has_keys and self._rng.random() < REPETITIONS:
                await asyncio.sleep(self._rng.uniform(0, 0.3))
                await self._repeat(items, states, key)
        finally:
            for item, state in states.items():
                self._note(item, state, began)

    def _make(self, number: int, largest_bytes: int) -> bytes:
        return self._ledger.make_body(self._name, number, draw_size(self._rng, largest_bytes))

    def _items_of(self, number: int) -> list[Item]:
        channels = range(len(self._shared.channels))
        if self._desk.repeats_all:
            return [Item(number, channel) for channel in channels]
        return [Item(number, self._rng.choice(channels))]

    async def _call_until_settled(
        self, items: list[tuple[Item, bytes]], states: dict[Item, State], key: str | None
    ) -> None:
        """Repeat the call until every event is accepted, or until the writer gives up."""
        patience = Patience(self._rng)
        loses_answer = self._rng.random() < LOST_ANSWERS
        calls_all = self._desk.repeats_all
        while not patience.is_over():
            left = [(i, b) for i, b in items if calls_all or not states[i].is_taken]
            try:
                refusal = await self._call(left, states, key, loses_answer=loses_answer)
            except Broken:
                if key is None:
                    return
                await asyncio.sleep(self._rng.choice((0, AGAIN_S, self._rng.uniform(0, 0.5))))
            else:
                if refusal is None or patience.is_over(refusal) or (calls_all and key is None):
                    return
                await asyncio.sleep(AGAIN_S)
            loses_answer = False
            for item, _ in items:
                if not states[item].is_taken:
                    states[item].is_in_sequence = len(items) == 1

    async def _call(
        self,
        items: Sequence[tuple[Item, bytes]],
        states: dict[Item, State],
        key: str | None,
        *,
        loses_answer: bool,
    ) -> MegaphoneError | None:
        """Write events once. Returns: the error of an event that was refused, if any.

        Raises: Broken, if no answer came.
        """
        node = await self._way.node()
        try:
            if loses_answer:
                await self._desk.lose(node, items, key)
                raise Broken
            results = await self._desk.send(node, items, key)
        except MegaphoneError as error:
            return error
        except Broken:
            for item, _ in items:
                states[item].may_be_taken = True
            raise
        refusal = None
        for (item, _), result in zip(items, results, strict=True):
            states[item].learn(result)
            if isinstance(result, MegaphoneError) and not states[item].is_taken:
                refusal = refusal or result
        return refusal

    async def _repeat(
        self, items: list[tuple[Item, bytes]], states: dict[Item, State], key: str | None
    ) -> None:
        """Repeat an accepted write. Whatever the answer is, the event must not be stored twice."""
        if all(state.is_taken for state in states.values()):
            with suppress(Broken):
                await self._call(items, states, key, loses_answer=False)

    def _note(self, item: Item, state: State, began: int) -> None:
        ended = self._ledger.tick()
        self._ledger.note_write(
            item.channel,
            Write(
                self._name,
                item.number,
                state.outcome,
                state.ids[0] if state.ids else None,
                began,
                None if state.outcome is Outcome.UNKNOWN else ended,
                repeated_ids=tuple(state.ids[1:]),
                is_in_sequence=state.is_in_sequence,
            ),
        )
