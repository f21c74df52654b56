"""A channel in Redis with the calls of `core.channel.Channel`, for the model test.

It uses the functions directly, through a client that waits for each answer, and tells them the
time. It hands over no events in messages: whoever reads takes.
"""

import itertools
import socket
from collections.abc import Callable
from typing import Any

import hiredis

from megaphone.core.channel import Waiter
from megaphone.core.log import Batch
from megaphone.core.sendings import Sendings
from megaphone.errors import ReaderBusy
from megaphone.model import ChannelLimits, Event, ReadOptions
from megaphone.store.redis.encoding import decoded, encoded
from megaphone.store.redis.functions import name_of
from megaphone.store.redis.keys import Names

NODE = "inbox"
NO_TIME_LIMIT_MS = 10**9
CREDIT = 0
"""The functions send no events unasked, because the model knows of no such thing."""
DEADLINE, SENT, END, WAITING, LEASES, LEASE = 4, 9, 10, 12, 14, 15
"""Where the function `look` says that, if the time is 0."""
NO_DEADLINE = -1
WITHDRAWN = -1
GONE = (0,) * 16
"""Stands for what the function says of a channel that is gone."""
NUMBERS = itertools.count()
"""Each channel is new, because a server takes longer to remove all keys than to make some."""


class BlockingClient:
    """One connection to a server, which also gets the messages to an inbox.

    Each call waits for its answer.
    """

    def __init__(self, path: str, inbox: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(path)
        self._reader = hiredis.Reader()
        self._messages: list[bytes] = []
        self.call("HELLO", 3)  # with which messages and answers share a connection
        self._send(("SUBSCRIBE", inbox))
        self._next()

    def call(self, *arguments: Any) -> Any:
        [answer] = self.calls(arguments)
        return answer

    def calls(self, *calls: tuple[Any, ...]) -> list[Any]:
        """Make calls in one write. Returns: their answers. Raises: hiredis.ReplyError."""
        self._send(*calls)
        answers: list[Any] = []
        while len(answers) < len(calls):
            answer = self._next()
            if isinstance(answer, hiredis.PushNotification):
                self._messages.append(answer[2])
            else:
                answers.append(answer)
        for answer in answers:
            if isinstance(answer, hiredis.ReplyError):
                raise answer
        return answers

    def messages(self) -> list[bytes]:
        """Return the messages that came with the answers since the last time."""
        messages, self._messages = self._messages, []
        return messages

    def _send(self, *calls: tuple[Any, ...]) -> None:
        self._socket.sendall(b"".join(map(hiredis.pack_command, calls)))

    def _next(self) -> Any:
        while (answer := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(65_536))
        return answer

    def close(self) -> None:
        self._socket.close()


class RemoteLease:
    """Has the calls of `core.channel.Lease` that the model test makes."""

    def __init__(self, channel: "RemoteChannel", options: ReadOptions, answer: Any) -> None:
        self._channel = channel
        self.acknowledging = options.acknowledge
        self.is_open = True
        self.on_ready: Callable[[], None] | None = None
        _, self.number, recovered, cursor, position, _, self._sent_before, _ = answer
        self.recovered = {1: True, 0: False, -1: None}[recovered]
        self.cursor = cursor.decode()
        self._have = self._confirmed = position
        self._sendings = Sendings(channel.limits.redelivery_window_s)
        self._taken: tuple[int, int] | None = None
        self._given = self._sent_before

    def take(self, limit: int, max_bytes: int, now: float) -> Batch | None:
        if not self.is_open:
            return None
        self.confirm(now)
        answer = self._channel.call(
            "take", now, self.number, self._have, self._resend_after(now), limit, max_bytes, CREDIT
        )
        if answer in (None, -1):
            return None
        first, _, payloads = answer
        self._channel.hear()
        events = [decoded(payload) for payload in payloads]
        if not events:
            return None
        self._have = first + len(events) - 1
        self._taken = (first, self._have)
        self._given = max(self._given, self._have)
        redelivered = max(0, min(self._have, self._sent_before) - first + 1)
        return Batch(0, first, events, redelivered)

    def confirm(self, now: float) -> None:
        if self._taken is not None:
            self._sendings.confirm(*self._taken, now)
            self._taken = None
        self._confirmed = self._have

    def _resend_after(self, now: float) -> int:
        return self._sendings.resend_after(0, self._confirmed, now)

    def release(self, *, clean: bool, now: float) -> None:
        if self.is_open:
            self.is_open = False
            upto = self._have if clean else self._resend_after(now)
            self._channel.call("release", now, self.number, int(clean), upto, self._given)
            self._channel.lease_is_over()
            self._channel.hear()


class RemoteWaiter(Waiter):
    """A waiter that knows under which token each of its writers waits."""

    def __init__(self, event: Event, request_id: str | None) -> None:
        super().__init__(event, request_id, 0.0)
        self.next_writer = ""
        self.writers: list[tuple[Callable[[], None], str]] = []
        self.told: list[tuple[str, bytes]] = []
        """The tokens of the writers to whom messages have come, and what the messages say."""

    def join(self, on_resolved: Callable[[], None]) -> None:
        super().join(on_resolved)
        self.writers.append((on_resolved, self.next_writer))


class RemoteChannel:
    """Has the calls of `core.channel.Channel` that the model test makes."""

    def __init__(self, server: BlockingClient, limits: ChannelLimits) -> None:
        self._server = server
        self.limits = limits
        self._keys = Names("mp").channel(b"model %d" % next(NUMBERS))
        self._tokens = itertools.count()
        self._waiters: dict[str, RemoteWaiter] = {}
        """By the tokens of their writers, and by the ids of their events."""
        self._lease: RemoteLease | None = None
        server.messages()  # to an earlier channel
        self._seen: Any = None
        """What the function `look` said of the channel after the last call."""
        self.call("create", 0.0, "agent.model.1", limits.capacity, round(limits.ttl_s * 1000), 1)

    def call(self, name: str, now: float, *arguments: Any) -> Any:
        """Call a function, and see what the channel is like afterwards."""
        time = f"={round(now * 1000)}"
        answer, seen = self._server.calls(
            ("FCALL", name_of(name), 7, *self._keys, time, *arguments),
            ("FCALL", name_of("look"), 7, *self._keys, "=0", 0),
        )
        self._seen = GONE if seen is None else seen
        return answer

    def hear(self) -> None:
        """Do what the messages say that have come until now."""
        resolved: list[RemoteWaiter] = []
        for message in map(bytes.split, self._server.messages()):
            kind, subject = message[0], message[1].decode()
            if kind == b"W":
                waiter = self._waiters.pop(subject)
                waiter.told.append((subject, message[2]))
                if waiter.accepted is None:
                    waiter.resolve(accepted=message[2] != b"-1")
                    resolved.append(waiter)
            elif self._lease is not None:
                assert subject == str(self._lease.number)
                if self._lease.on_ready is not None:
                    self._lease.on_ready()
                if kind == b"X":
                    self._lease.is_open = False
                    self._lease = None
        for waiter in resolved:  # each writer may be on another node
            tokens, said = zip(*sorted(waiter.told), strict=True)
            assert tokens == tuple(sorted(token for _, token in waiter.writers))
            if waiter.accepted:  # one of their nodes counts it
                assert sorted(said) == [b"0"] * (len(said) - 1) + [b"1"]
            else:
                assert set(said) == {b"-1"}

    def offer(self, event: Event, *, now: float, request_id: str | None) -> str | Waiter:
        one = (event.id, request_id or "", encoded(event))
        result = self.call("append", now, 1, "other", "", *one)[0]
        self.hear()
        if result == b"F":
            token = f"t{next(self._tokens)}"
            answer = self.call(
                "wait", now, 1, NODE, token, NO_TIME_LIMIT_MS, self.limits.max_waiting_writers, *one
            )
            kind, event_id = answer[0][0], answer[0][1].decode()
            assert kind == b"W"
            waiter = self._waiters.get(event_id)
            if waiter is None:
                assert event_id == event.id
                waiter = self._waiters[event_id] = RemoteWaiter(event, request_id)
            waiter.next_writer = token
            self._waiters[token] = waiter
            return waiter
        return event.id if result == b"A" else str(result[1:].decode())

    def withdraw(self, waiter: RemoteWaiter, on_resolved: Callable[[], None]) -> None:
        assert waiter.leave(on_resolved) == (len(waiter.writers) == 1)
        [token] = [token for callback, token in waiter.writers if callback is on_resolved]
        waiter.writers.remove((on_resolved, token))
        assert self.call("withdraw", 0.0, token, waiter.request_id or "") == WITHDRAWN

    def lease(self, options: ReadOptions, now: float) -> RemoteLease:
        if (old := self._lease) is not None and options.take_over:
            old.release(clean=False, now=now)  # its node knows best what was sent
            if old.on_ready is not None:
                old.on_ready()
        has_cursor, cursor = int(options.cursor is not None), options.cursor or ""
        handle = self._seen[LEASES] + 1
        answer = self.call(
            "lease", now, 1, NODE, handle, "agent.model.1", has_cursor, cursor,
            int(options.acknowledge), options.in_flight, int(options.take_over), "", 0, 0, CREDIT,
            "", "",
        )  # fmt: skip
        if answer[0] == b"B":
            raise ReaderBusy
        self.hear()
        self._lease = RemoteLease(self, options, answer)
        return self._lease

    def lease_is_over(self) -> None:
        self._lease = None

    def acknowledge(self, event_id: str, now: float) -> int:
        count = self.call("acknowledge", now, "agent.model.1", event_id)
        self.hear()
        return int(count)

    def close(self) -> int:
        lost = self.call("remove", 0.0)[3]
        self.hear()
        return int(lost)

    @property
    def is_read(self) -> bool:
        return bool(self._seen[LEASE])

    @property
    def waiting_writers(self) -> int:
        return int(self._seen[WAITING])

    @property
    def unsent(self) -> int:
        return int(self._seen[END] - self._seen[SENT])

    @property
    def deadline(self) -> float | None:
        deadline = self._seen[DEADLINE]
        return None if deadline == NO_DEADLINE else deadline / 1000
