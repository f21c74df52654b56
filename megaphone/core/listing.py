"""The first of many channels by what an operator asks for: all are looked through, in slices."""

import asyncio
import heapq
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from operator import itemgetter
from typing import NamedTuple

from megaphone.core.ports import Store, Surveyed
from megaphone.errors import BadRequest, ChannelNotFound
from megaphone.model import SHORT_ID_DIGITS, ChannelInfo

MOST_SHOWN = 1_000
"""How many channels a list with details has at most."""
DEFAULT_SHOWN = 50
SORTS = ("age", "bytes", "unsent", "waiting")
SHOWN_AT_ONCE = 20
"""How many channels are described together. With a shared store each may take half a second, if the
node of its reader does not answer."""
ID_DIGITS = 32
_BEGINNING = re.compile(rf"[0-9A-Fa-f]{{{SHORT_ID_DIGITS},{ID_DIGITS}}}")


class Asked(NamedTuple):
    """Which channels an operator asks for."""

    skip: int = 0
    limit: int | None = None
    agent: str | None = None
    sort: str | None = None
    """By what they are sorted, one of SORTS: the oldest first, or those with the most bytes,
    unsent events or waiting writers. None means the first one."""
    blocked: bool = False
    """Whether only channels are wanted in which writers wait."""

    def check(self) -> None:
        """Raises: BadRequest."""
        if self.sort is not None and self.sort not in SORTS:
            raise BadRequest(f"channels can be sorted by {', '.join(SORTS)}")
        if self.limit is not None and self.limit > MOST_SHOWN:
            raise BadRequest(
                f"at most {MOST_SHOWN} channels are shown at once, not {self.limit}: use `skip`"
            )


class Listing:
    """Looks through the channels of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def first(self, asked: Asked) -> Sequence[ChannelInfo]:
        """Return the first channels by what is asked for. Raises: StoreUnavailable."""
        sort = asked.sort or SORTS[0]
        limit = DEFAULT_SHOWN if asked.limit is None else asked.limit
        first = Heaviest(asked.skip + limit)
        async for some in self._store.survey(asked.agent, with_size=sort == "bytes"):
            wanted = [one for one in some if one.waiting_writers] if asked.blocked else some
            first.add(wanted, lambda one: weight_by(sort, one))
            await asyncio.sleep(0)
        members = first.members()[asked.skip :]
        shown: list[ChannelInfo] = []
        for start in range(0, len(members), SHOWN_AT_ONCE):
            some = members[start : start + SHOWN_AT_ONCE]
            infos = await asyncio.gather(*(self._info(one.channel_id) for one in some))
            shown += [one for one in infos if one is not None]
        return shown

    async def _info(self, channel_id: bytes) -> ChannelInfo | None:
        """Return how a channel is now; None if it is not there any more."""
        with suppress(ChannelNotFound):
            return await self._store.info(channel_id)
        return None


def is_beginning_of_id(name: str) -> bool:
    """Return whether a name is the beginning of the id of a channel, and not an address."""
    return _BEGINNING.fullmatch(name) is not None


def weight_by(sort: str, one: Surveyed) -> float:
    """Return by what a channel is chosen: the largest comes first."""
    match sort:
        case "unsent":
            return one.unsent
        case "bytes":
            return one.size
        case "waiting":
            return one.waiting_writers
        case "age":
            return -one.created_at
    return one.depth


class Heaviest:
    """The heaviest channels so far. Of those that weigh the same, those that came first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._added = 0
        self._heap: list[tuple[float, int, Surveyed]] = []
        """The lightest one first. The number is unique, so that no channels are compared."""

    def add(self, some: Sequence[Surveyed], weigh: Callable[[Surveyed], float]) -> None:
        heap, limit = self._heap, self._limit
        for one in some:
            weight = weigh(one)
            if len(heap) < limit:
                self._added += 1
                heapq.heappush(heap, (weight, -self._added, one))
            elif heap and weight > heap[0][0]:
                self._added += 1
                heapq.heapreplace(heap, (weight, -self._added, one))

    def members(self) -> list[Surveyed]:
        """Return them, the heaviest one first. A remote store may have yielded some twice."""
        heaviest = sorted(self._heap, key=itemgetter(0, 1), reverse=True)
        return list({one.channel_id: one for _, _, one in heaviest}.values())
