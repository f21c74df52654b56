"""The reader on the original client library, as a process whose lines are collected.

`client/src/main.rs` says what its arguments and its lines mean.
"""

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from tests.compat.original import CLIENT

ARRIVES_WITHIN_S = 15.0


@dataclass(slots=True)
class Reader:
    """What the client has printed so far."""

    lines: list[Any] = field(default_factory=list)

    @property
    def asked(self) -> list[Any]:
        return [line for line in self.lines if "asked" in line]

    def bodies(self, subscription: str) -> list[Any]:
        return [line["body"] for line in self.of(subscription) if "body" in line]

    def of(self, subscription: str) -> list[Any]:
        return [line for line in self.lines if line.get("from") == subscription]

    def wait(self, condition: Callable[[], bool], within_s: float = ARRIVES_WITHIN_S) -> None:
        until = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < until, f"not within {within_s:g} s; printed: {self.lines}"
            time.sleep(0.01)

    def wait_for_bodies(self, subscription: str, amount: int) -> list[Any]:
        self.wait(lambda: len(self.bodies(subscription)) >= amount)
        return self.bodies(subscription)

    def collect(self, output: IO[bytes]) -> None:
        for line in output:
            self.lines.append(json.loads(line))


@contextmanager
def reading(broker_url: str, *subscriptions: str) -> Iterator[Reader]:
    """Read with the client, from when it asked about every subscription; killed at the end."""
    process = subprocess.Popen(
        [CLIENT, f"{broker_url}/read", *subscriptions],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    reader = Reader()
    assert process.stdout is not None
    collecting = threading.Thread(target=reader.collect, args=[process.stdout])
    collecting.start()
    try:
        reader.wait(lambda: len(reader.asked) == len(subscriptions))
        yield reader
    finally:
        process.kill()
        process.wait()
        collecting.join()
        process.stdout.close()
