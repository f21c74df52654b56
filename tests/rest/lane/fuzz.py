"""Looks for requests that the lane answers otherwise than aiohttp, guided by the code they reach.

    .venv/bin/python -m pip install atheris
    .venv/bin/python -m tests.rest.lane.fuzz FOLDER -max_total_time=3600

The fuzzer is libFuzzer, by way of atheris; further arguments are its options. FOLDER collects the
inputs that reach new code. It is filled with the corpus of the tests at the start, so that the
fuzzer need not find the grammar of HTTP by itself. Differences are written to FOLDER-differences,
those that did not come again by themselves to FOLDER-once; then the fuzzer goes on.

An input is what some clients send at the same time, with the made-up addresses of the module
`exchange`, with `PORTION` at each place where a client waits, with `PAUSE` from where on it waits
longer than the broker, and with `CONNECTION` between two clients.
"""

import asyncio
import hashlib
import random
import re
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

atheris: Any = import_module("atheris")

with atheris.instrument_imports(include=["megaphone.rest", "aiohttp.web_protocol"]):
    from tests.rest.lane import corpus
    from tests.rest.lane.exchange import Exchange
    from tests.rest.lane.sides import Pair, both_sides

PORTION = b"<|>"
PAUSE = b"<~>"
PORTIONS = 4
CONNECTION = b"<+>"
CONNECTIONS = 3
MAX_BYTES = 6_000
RUNS_OF_A_BROKER = 2_000
"""After so many inputs the brokers begin anew, so that their channels need not all be kept."""
CHANGES: tuple[dict[str, Any], ...] = ({}, {"buffer_capacity": 3, "write_timeout_millis": 500})
"""The settings of the brokers, in turn. With the last ones, the second write to a channel waits."""
SEEDS_OF_GROUP = 150
GROUPS = (corpus.ordinary, *corpus.ODD, corpus.large)
_LENGTH = re.compile(rb"(?i)(content-length:[ \t]*)[0-9]+")
_HEAD_END = b"\r\n\r\n"


# -- Inputs


def exchanges_of(data: bytes) -> list[Exchange]:
    exchanges = map(exchange_of, data.split(CONNECTION, CONNECTIONS - 1))
    return [exchange for exchange in exchanges if exchange.data]


def exchange_of(data: bytes) -> Exchange:
    portions = data.replace(PAUSE, PORTION).split(PORTION, PORTIONS - 1)
    ends = [sum(map(len, portions[:count])) for count in range(1, len(portions))]
    whole = b"".join(portions)
    cuts = sorted({end for end in ends if 0 < end < len(whole)})
    before, pause, _ = data.partition(PAUSE)
    slow_from = before.count(PORTION) + 1 if pause else None
    return Exchange("fuzzed", whole, tuple(cuts), slow_from=slow_from)


def input_of(exchange: Exchange) -> bytes:
    return PORTION.join(exchange.data[portion] for portion in exchange.steps)


def seeds() -> Iterator[bytes]:
    """Yield some inputs of each group of the corpus."""
    chooser = random.Random(1)
    for group in GROUPS:
        inputs = [input_of(one) for one in group() if len(one.data) <= MAX_BYTES]
        yield from chooser.sample(inputs, min(SEEDS_OF_GROUP, len(inputs)))


def write_seeds(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds():
        (folder / f"seed-{hashlib.sha256(seed).hexdigest()[:16]}").write_bytes(seed)


# -- Mutations that know a little of HTTP

LINES = [line for lines in (*corpus.ODD_LINES, *corpus.LENGTHS) for line in lines]
WHOLE = [*corpus.ALL.values(), *corpus.EACH_BYTE.values()]


def mutated(data: bytes, max_size: int, seed: int) -> bytes:
    """Change an input in one or two places. A custom mutator of libFuzzer."""
    chooser = random.Random(seed)
    for _ in range(chooser.choice((1, 1, 2))):
        data = chooser.choice(MUTATIONS)(data, chooser)
    if chooser.random() < 0.5:
        data = with_right_length(data)
    return data[: min(max_size, MAX_BYTES)]


def by_fuzzer(data: bytes, chooser: random.Random) -> bytes:
    return bytes(atheris.Mutate(data or b"x", MAX_BYTES))


def with_line(data: bytes, chooser: random.Random) -> bytes:
    lines = data.split(b"\r\n")
    lines.insert(chooser.randint(1, max(1, len(lines) - 2)), chooser.choice(LINES))
    return b"\r\n".join(lines)


def without_line(data: bytes, chooser: random.Random) -> bytes:
    lines = data.split(b"\r\n")
    del lines[chooser.randrange(len(lines))]
    return b"\r\n".join(lines)


def with_line_moved(data: bytes, chooser: random.Random) -> bytes:
    lines = data.split(b"\r\n")
    lines.insert(chooser.randrange(len(lines)), lines.pop(chooser.randrange(len(lines))))
    return b"\r\n".join(lines)


def with_request(data: bytes, chooser: random.Random) -> bytes:
    other = chooser.choice(WHOLE)
    between = chooser.choice((b"", PORTION, PAUSE, CONNECTION))
    return data + between + other if chooser.random() < 0.5 else other + between + data


def with_portion(data: bytes, chooser: random.Random) -> bytes:
    at = chooser.randint(0, len(data))
    return data[:at] + chooser.choice((PORTION, PORTION, PAUSE)) + data[at:]


def with_target(data: bytes, chooser: random.Random) -> bytes:
    words = data.split(b" ", 2)
    if len(words) > 1:
        words[1] = chooser.choice((*corpus.TARGETS, *corpus.ROUTES))
    return b" ".join(words)


def with_body(data: bytes, chooser: random.Random) -> bytes:
    head, end, _ = data.partition(_HEAD_END)
    return head + end + chooser.choice((*corpus.BODIES, *corpus.CHUNKS))


def with_right_length(data: bytes) -> bytes:
    """Return an input whose last head gives the true length of what follows."""
    at = data.rfind(_HEAD_END)
    body = data[at + len(_HEAD_END) :].replace(PORTION, b"").replace(PAUSE, b"")
    return _LENGTH.sub(rb"\g<1>%d" % len(body), data[:at]) + data[at:] if at >= 0 else data


MUTATIONS = (
    by_fuzzer,
    by_fuzzer,
    with_line,
    without_line,
    with_line_moved,
    with_request,
    with_portion,
    with_target,
    with_body,
)


# -- Runs


class Fuzzing:
    """Runs inputs on both sides, and writes down what differs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._pair: Pair | None = None
        self._runs = 0

    def run(self, data: bytes) -> None:
        """Run one input."""
        self._runner.run(self._run(exchanges_of(data)))

    async def _run(self, exchanges: list[Exchange]) -> None:
        pair = await self._ready()
        if not exchanges or not (once := await pair.differences(exchanges, thoroughly=False)):
            return
        if again := await pair.differences(exchanges):
            self._write("differences", again)
        else:
            self._write("once", once)

    async def _ready(self) -> Pair:
        epoch, number = divmod(self._runs, RUNS_OF_A_BROKER)
        self._runs += 1
        if self._pair is None or number == 0:
            await self._stack.aclose()
            self._stack = AsyncExitStack()
            self._pair = await self._stack.enter_async_context(
                both_sides(**CHANGES[epoch % len(CHANGES)])
            )
        return self._pair

    def _write(self, kind: str, found: list[str]) -> None:
        folder = self._folder.with_name(f"{self._folder.name}-{kind}")
        folder.mkdir(parents=True, exist_ok=True)
        text = "\n".join(found)
        path = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        path.write_text(text)
        print(f"{kind}: {path}", flush=True)


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    write_seeds(folder)
    fuzzing = Fuzzing(folder)
    options = [f"-max_len={MAX_BYTES}", "-timeout=60", "-len_control=0"]
    arguments = list(chain(sys.argv[:2], options, sys.argv[2:]))
    atheris.Setup(arguments, fuzzing.run, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
