"""Waits until replicas have what this node has written, before the writer gets its answer."""

import asyncio

from megaphone.errors import StoreUnavailable
from megaphone.store.redis.keys import Names
from megaphone.store.redis.link import Link

WAIT_MS = 1_000
"""How long Redis waits for the replicas."""


class Confirmation:
    """Asks the master which replicas have the writes of this node, once for all that leave in one
    turn of the event loop."""

    def __init__(self, link: Link, names: Names, replicas: int) -> None:
        """With 0 replicas every write is confirmed at once."""
        self._link = link
        self._key = names.confirmed
        self._replicas = replicas
        self._asked: asyncio.Future[None] | None = None
        """The answer for the calls of this turn."""

    def ask(self) -> asyncio.Future[None] | None:
        """Ask about the calls that leave in this turn. Returns: a future that fails with
        StoreUnavailable if too few replicas have them in time; None if there is nothing to wait
        for. All calls of the turn share the future, so one that waits must shield it."""
        if not self._replicas:
            return None
        if self._asked is None:
            loop = asyncio.get_running_loop()
            self._asked = loop.create_future()
            loop.call_soon(self._send, self._asked, self._link.connections)
        return self._asked

    def _send(self, asked: asyncio.Future[None], connections: int) -> None:
        self._asked = None
        # The master answers for the latest write of the connection. A call that has repeated an
        # earlier one may have written nothing itself.
        self._link.call("SET", self._key, "1").add_done_callback(lambda done: done.exception())
        waiting = self._link.call("WAIT", self._replicas, WAIT_MS)

        def answered(done: asyncio.Future[int]) -> None:
            if done.exception() is not None:
                asked.set_exception(self._error("the store did not say how many replicas have it"))
            elif self._link.connections != connections:
                # Another connection may be to another master, which has not got the write.
                asked.set_exception(self._error("the connection to the store broke meanwhile"))
            elif done.result() < self._replicas:
                text = f"only {done.result()} of {self._replicas} replicas have it"
                asked.set_exception(self._error(text))
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
