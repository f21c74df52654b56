"""What all connections do together in one turn of the event loop, phase by phase.

The requests that have arrived in a turn are answered first, all of them; then the events that they
have written go out, then their answers. So the same code runs many times in a row while it is in
the caches of the processor, which takes half as long as one request after the other. And a reader
gets in one piece what many writes of a turn have brought.

While no turn has more than one request, that gains nothing. Then a request is answered as soon as
it arrives.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

SMALL_BYTES: Final = 2_048
"""After requests up to this size, events go out before the answers, because their readers wait for
them. After a larger one, which writes many events, first the answers and then the events: so an
open read gets all of them in one piece."""
STREAMS_AT_ONCE: Final = 100
"""To how many readers a turn sends before other work of the event loop goes on."""


class Asking(Protocol):
    """A connection that has received a request."""

    def answer(self, outcome: Any, data: bytes) -> None:
        """Send the answer to the request `data`. Must not raise."""

    def answer_late(self, outcome: Any, data: bytes) -> None:
        """Do the same in a later turn than that of the request. Must not raise."""


class Sending(Protocol):
    """An open read for which something is ready."""

    def take(self) -> None:
        """Take the first batch that is ready. Must not raise."""

    def prepare(self) -> None:
        """Make the bytes of that batch. Must not raise."""

    def send_ready(self) -> None:
        """Send what is ready. Must not raise."""


class Turn:
    """The work of the present turn of an event loop."""

    __slots__ = (
        "_answers",
        "_ask",
        "_connections",
        "_is_quiet",
        "_is_scheduled",
        "_loop",
        "_requests",
        "_streams",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ask: Callable[[list[Any], list[bytes]], list[Any]],
    ) -> None:
        """`ask` gets some connections and a request of each, and does what they say. It must not
        raise. It returns for each request the argument of `Asking.answer`."""
        self._loop = loop
        self._ask = ask
        self._connections: list[Asking] = []
        """Those of `_requests`."""
        self._requests: list[bytes] = []
        self._answers: list[tuple[Asking, Any, bytes]] = []
        """To requests of earlier turns."""
        self._streams: deque[Sending] = deque()
        self._is_scheduled = False
        """Whether the work will be done without another call."""
        self._is_quiet = True
        """Whether the last turn had one request at most."""

    def add_request(self, connection: Asking, data: bytes) -> None:
        """Answer a request in this turn, or at once."""
        self._connections.append(connection)
        self._requests.append(data)
        if not self._is_scheduled:
            self._schedule()
            if self._is_quiet:
                self.answer_requests()

    def add_stream(self, stream: Sending) -> None:
        """Send what is ready for an open read, in this turn."""
        self._streams.append(stream)
        if not self._is_scheduled:
            self._schedule()

    def add_answer(self, connection: Asking, data: bytes, outcome: Any) -> None:
        """Answer a request of an earlier turn in this one, behind the events that go out."""
        self._answers.append((connection, outcome, data))
        if not self._is_scheduled:
            self._schedule()

    def answer_requests(self) -> None:
        """Answer the requests that have arrived now, because something else has happened to one of
        their connections."""
        if not self._requests:
            return
        connections, self._connections = self._connections, []
        requests, self._requests = self._requests, []
        outcomes = self._ask(connections, requests)
        if max(map(len, requests)) <= SMALL_BYTES:
            self._send()
        for number, connection in enumerate(connections):
            connection.answer(outcomes[number], requests[number])

    def _schedule(self) -> None:
        self._is_scheduled = True
        self._loop.call_soon(self._run)

    def _run(self) -> None:
        # After a quiet turn the first request of this one has been answered already.
        self._is_quiet = len(self._requests) <= (0 if self._is_quiet else 1)
        # Requests that are added during this call need no second one, unless they are left.
        self.answer_requests()
        self._send()
        if self._answers:
            answers, self._answers = self._answers, []
            for connection, outcome, data in answers:
                connection.answer_late(outcome, data)
        self._is_scheduled = False
        if self._streams or self._requests or self._answers:
            self._schedule()

    def _send(self) -> None:
        streams = self._streams
        some = [streams.popleft() for _ in range(min(len(streams), STREAMS_AT_ONCE))]
        for stream in some:
            stream.take()
        for stream in some:
            stream.prepare()
        for stream in some:
            stream.send_ready()
