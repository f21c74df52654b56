"""What may happen to a call on its way, over either protocol, and when it happens."""

import random
import time
from collections import defaultdict, deque
from dataclasses import dataclass, field

from megaphone.errors import (
    AgentMoved,
    LimitExceeded,
    MegaphoneError,
    NoAgentAvailable,
    ReaderBusy,
    ShuttingDown,
    StoreUnavailable,
)
from megaphone.wire.errors import row_of

CALLS = ("create", "write", "batch", "publish", "read", "ack", "exists")
"""The names of the calls, the same over HTTP and over gRPC."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The call does not reach the broker, and gets an error as the broker sends it."""

    code: str | None
    """None for a refusal by a proxy, which knows no codes and answers with a web page."""
    http_status: int
    grpc_status: str
    retry_after_s: float | None = None

    @classmethod
    def by(cls, error: MegaphoneError, retry_after_s: float | None = None) -> "Refusal":
        row = row_of(error)
        return cls(error.code, row.http_status, row.grpc_status, retry_after_s)


@dataclass(frozen=True, slots=True)
class Garbage:
    """The call does not reach the broker, and gets bytes that no broker sends."""

    http: bytes
    """The whole answer over HTTP, after which the connection is closed."""
    grpc: bytes
    """One message over gRPC."""


@dataclass(frozen=True, slots=True)
class LostAnswer:
    """The broker carries the call out, and the connection breaks before the answer."""


@dataclass(frozen=True, slots=True)
class Late:
    """The call reaches the broker late."""

    by_s: float


Trouble = Refusal | Garbage | LostAnswer | Late

NO_EVENT = Garbage(
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nContent-Length: 21\r\n\r\n"
    b'{"secret":"garbage"}\n',
    b"\xff\xff\xffsecret garbage",
)
"""A whole line, or message, that is no event."""
WEB_PAGE = Garbage(
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 37\r\n\r\n"
    b"<html>\n<b>Log in to the hotel</b>\n\n\n\n",
    b"<html>",
)
"""What a captive portal answers to everything."""
BAD_GATEWAY = Refusal(None, 502, "UNAVAILABLE")
"""What a proxy answers whose broker is not there. It says nothing about any channel."""
CANCELLED = Refusal(None, 504, "CANCELLED")
"""What a proxy answers that has given up."""


PASSING = (
    Refusal.by(AgentMoved("moved")),
    Refusal.by(ShuttingDown()),
    Refusal.by(NoAgentAvailable()),
    Refusal.by(StoreUnavailable()),
    Refusal.by(LimitExceeded("full")),
    Refusal("A_CODE_OF_TOMORROW", 503, "UNAVAILABLE"),
    BAD_GATEWAY,
    CANCELLED,
)
"""Refusals that another try heals. They do not say when, so that runs are short."""


def refusals_of(call: str) -> tuple[Refusal, ...]:
    busy = (Refusal.by(ReaderBusy()),) if call == "read" else ()
    return PASSING + busy


@dataclass(slots=True)
class Plan:
    """Decides what happens to each call: what was planned for it, or at random something of what
    is left."""

    rng: random.Random = field(default_factory=random.Random)
    chance: float = 0.0
    """The share of calls in trouble."""
    left: int = 0
    """How many calls will still be in trouble at random."""
    longest_delay_s: float = 0.1
    seen: list[tuple[str, float]] = field(default_factory=list)
    """The calls in the order in which they came, and when, in seconds."""
    happened: list[tuple[str, Trouble]] = field(default_factory=list)
    _planned: dict[str, deque[Trouble]] = field(default_factory=lambda: defaultdict(deque))

    def next(self, call: str, *troubles: Trouble) -> None:
        """Plan troubles for the next calls of this name."""
        self._planned[call].extend(troubles)

    def times_of(self, call: str) -> list[float]:
        return [at for name, at in self.seen if name == call]

    def clear(self) -> None:
        self._planned.clear()
        self.left = 0

    def decide(self, call: str) -> Trouble | None:
        """Return what happens to a call that comes now."""
        self.seen.append((call, time.monotonic()))
        if self._planned[call]:
            trouble = self._planned[call].popleft()
        elif self.left and self.rng.random() < self.chance:
            self.left -= 1
            trouble = self._any(call)
        else:
            return None
        self.happened.append((call, trouble))
        return trouble

    def _any(self, call: str) -> Trouble:
        match self.rng.randrange(4):
            case 0:
                return LostAnswer()
            case 1:
                return Late(self.rng.uniform(0, self.longest_delay_s))
            case _:
                return self.rng.choice(refusals_of(call))
