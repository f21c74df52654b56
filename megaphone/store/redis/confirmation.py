"""Waits until replicas have what this node has written, before the writer gets its answer."""

import asyncio

from megaphone.errors import StoreUnavailable
from megaphone.store.redis.counts import UNCONFIRMED
from megaphone.store.redis.errors import Redirected
from megaphone.store.redis.keys import Names
from megaphone.store.redis.link import Link

WAIT_MS = 1_000
"""How long Redis waits for the replicas."""
MARK_MS = 60_000
"""For how long the key stays that is written for it."""


class Confirmation:
    """Asks a master which replicas have the writes of this node, once for all that leave in one
    turn of the event loop."""

    def __init__(self, names: Names, replicas: int) -> None:
        """With 0 replicas every write is confirmed at once."""
        self._names = names
        self._replicas = replicas
        self._asked: dict[Link, asyncio.Future[None]] = {}
        """The answers of the masters for the calls of this turn."""

    @property
    def is_needed(self) -> bool:
        return self._replicas > 0

    def ask(self, link: Link) -> asyncio.Future[None]:
        """Ask a master about the calls that leave in this turn. Returns: a future that fails with
        StoreUnavailable if too few replicas have them in time. All calls of the turn share the
        future, so one that waits must shield it."""
        asked = self._asked.get(link)
        if asked is None:
            loop = asyncio.get_running_loop()
            asked = self._asked[link] = loop.create_future()
            loop.call_soon(self._send, asked, link, link.connections)
        return asked

    def _send(self, asked: asyncio.Future[None], link: Link, connections: int) -> None:
        del self._asked[link]
        # The master answers for the latest write of the connection. A call that has repeated an
        # earlier one may have written nothing itself.
        marked = link.call("SET", self._names.confirmed(link.tag), "1", "PX", MARK_MS)
        marked.add_done_callback(lambda done: done.exception())
        waiting = link.call("WAIT", self._replicas, WAIT_MS)

        def fail(why: str) -> None:
            link.counts.errors[UNCONFIRMED] += 1
            asked.set_exception(self._error(why))

        def answered(done: asyncio.Future[int]) -> None:
            if done.exception() is not None:
                fail("the store did not say how many replicas have it")
            elif link.connections != connections:
                # Another connection may be to another master, which has not got the write.
                fail("the connection to the store broke meanwhile")
            elif isinstance(marked.exception(), Redirected):
                link.on_tag_moved()
                fail("the slots of its master have moved meanwhile")
            elif done.result() < self._replicas:
                fail(f"only {done.result()} of {self._replicas} replicas have it")
            else:
                asked.set_result(None)

        waiting.add_done_callback(answered)
        asked.add_done_callback(lambda done: done.exception())  # even if nobody waits any more

    @staticmethod
    def _error(why: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"the event may be stored, but {why} (store_wait_replicas);"
            " repeat the write with the same Idempotency-Key",
            may_have_happened=True,
        )
