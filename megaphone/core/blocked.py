"""The writers of this node that wait for places, by channel: whom a full channel holds up."""

from collections.abc import Iterator
from itertools import count
from typing import NamedTuple


class Blocked(NamedTuple):
    """A channel in which writers of this node wait."""

    channel_id: bytes
    agent: str
    writers: int
    since: float
    """Since when the first of them waits."""


class BlockedChannels:
    """Writers that wait, those of each channel first come, first served."""

    def __init__(self) -> None:
        self._numbers = count()
        self._waiting: dict[bytes, tuple[str, dict[int, float]]] = {}
        """By channel id: the agent, and since when each writer waits, by its number."""

    def begin(self, channel_id: bytes, agent: str, now: float) -> int:
        """A writer begins to wait. Returns: its number."""
        number = next(self._numbers)
        self._waiting.setdefault(channel_id, (agent, {}))[1][number] = now
        return number

    def end(self, channel_id: bytes, number: int) -> None:
        """A writer waits no more."""
        writers = self._waiting[channel_id][1]
        del writers[number]
        if not writers:
            del self._waiting[channel_id]

    def waiting_since(self, time: float) -> Iterator[Blocked]:
        """Yield the channels in which a writer waits since this time or longer. Writers may come
        and go meanwhile."""
        for channel_id in tuple(self._waiting):
            if channel_id not in self._waiting:
                continue
            agent, writers = self._waiting[channel_id]
            since = next(iter(writers.values()))
            if since <= time:
                yield Blocked(channel_id, agent, len(writers), since)
