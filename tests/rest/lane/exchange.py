"""What a client sends on one connection, with made-up addresses and event ids.

Each of them is as long as a real one, so that the real ones can take their places.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from tests.support.raw_http import END_OF_HEAD

PRODUCER = b"node." + b"P" * 58 + b"A"
CONSUMER = b"node." + b"C" * 50 + b".1"
"""The channel of an exchange. It has two events, `FIRST` and `SECOND`."""
FIRST = b"E" * 22 + b"1"
SECOND = b"E" * 22 + b"2"
OTHER_PRODUCER = b"node." + b"O" * 58 + b"A"
OTHER_CONSUMER = b"node." + b"D" * 50 + b".1"
"""Another channel of the exchange. It is empty."""
GONE_PRODUCER = b"node." + b"G" * 58 + b"A"
GONE_CONSUMER = b"node." + b"H" * 50 + b".1"
"""A channel that was removed."""

PROBE = b"GET /livez HTTP/1.1\r\nHost: probe\r\n\r\n"
"""Shows whether a connection takes another request behind an exchange."""
MOST_CUTS = 3
"""In how many places `Exchange.in_other_portions` cuts the bytes, at most."""
_LENGTH = re.compile(rb"(?i)\r\ncontent-length:[ \t]*([0-9]{1,6})[ \t]*\r\n")


@dataclass(frozen=True, slots=True)
class Exchange:
    """Bytes that a client sends on one connection."""

    name: str
    data: bytes
    cuts: tuple[int, ...] = ()
    """Where the client waits before it sends more."""
    slow_from: int | None = None
    """Before this portion and each later one, the client waits longer than the broker waits."""
    by_lane: int | None = None
    """How many requests the lane must answer, if that is known."""
    answers: int = 0
    """How many answers must come. It is needed only if a broker works long without a byte."""
    with_probe: bool = True
    """Whether the client sends `PROBE` behind the bytes, when nothing more comes."""

    @property
    def steps(self) -> list[slice]:
        ends = (*self.cuts, len(self.data))
        return [slice(start, end) for start, end in zip((0, *self.cuts), ends, strict=True)]

    def is_slow(self, number: int) -> bool:
        """Whether the client waits long before a portion."""
        return self.slow_from is not None and number >= self.slow_from

    def in_other_portions(self) -> Iterator["Exchange"]:
        """Yield the same bytes in other portions, which may end where the client waits, and where a
        request ends."""
        data = self.data + PROBE if self.with_probe else self.data
        ends = {*self.cuts, len(self.data), *ends_of_requests(data)} - {len(data)}
        for count in range(MOST_CUTS + 1):
            for cuts in combinations(sorted(ends), count):
                yield replace(self, data=data, cuts=cuts, with_probe=False)


def ends_of_requests(data: bytes) -> set[int]:
    """Return where requests with a simple head may end."""
    ends = set()
    start = 0
    while (end_of_head := data.find(END_OF_HEAD, start)) >= 0:
        length = _LENGTH.search(data, start, end_of_head + 2)
        start = end_of_head + len(END_OF_HEAD)
        ends |= {start, start + (0 if length is None else int(length[1]))}
    return {end for end in ends if end < len(data)}
