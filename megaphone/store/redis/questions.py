"""Questions of this node to other nodes about their reads, by messages to their inboxes."""

import asyncio
import itertools
from typing import Any

from megaphone.store.redis.cluster_link import AnyLink
from megaphone.store.redis.membership import Membership

ANSWERED_WITHIN_S = 0.5
"""How long another node may take to answer."""


class Questions:
    """What this node has asked, and how it answers others."""

    def __init__(self, link: AnyLink, membership: Membership) -> None:
        self._link = link
        self._membership = membership
        self._numbers = itertools.count(1)
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        """Those who wait for answers, by number."""

    async def ask(self, kind: str, inbox: str, handle: str) -> bytes | None:
        """Ask the node that has an inbox about the lease that has a handle there.

        Returns: its answer; None, if there is none.
        Raises: StoreUnavailable.
        """
        number = str(next(self._numbers))
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            message = f"{kind} {handle} {self._membership.inbox} {number}\n"
            hearers = await self._link.call("PUBLISH", inbox, message)
            if not hearers and not self._link.has_slots:  # a cluster counts only some of them
                return None
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._waiting[number]

    def answer(self, inbox: str, number: str, answer: bytes) -> None:
        """Answer the question of another node."""
        sent = self._link.call("PUBLISH", inbox, b"I %b\n%b" % (number.encode(), answer))
        sent.add_done_callback(ignore)

    def answered(self, number: str, answer: bytes) -> None:
        """Note the answer of another node."""
        waiting = self._waiting.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)


def ignore(sent: "asyncio.Future[Any]") -> None:
    """Do nothing if a message could not be sent: the node that has asked does not wait for long."""
    if not sent.cancelled():
        sent.exception()
