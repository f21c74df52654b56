"""Log lines arrive whole and in order, and a write never blocks."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from megaphone.observe.logs import JsonFormatter, LineHandler, LineWriter, TextFormatter

LINE = b"x" * 999 + b"\n"
LETTERS = (b"a", b"b")


class Pipe:
    """A pipe whose ends a test opens and closes."""

    def __init__(self) -> None:
        self.reading, self.writing = (
            os.fdopen(end, mode, buffering=0)
            for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True)
        )

    def writer(self, **limits: int) -> LineWriter:
        return LineWriter(self.writing.fileno(), report=report, **limits)

    def read(self) -> bytes:
        return os.read(self.reading.fileno(), 65_536)

    def read_until(self, is_end: Callable[[bytes], bool]) -> bytes:
        received = b""
        while not is_end(received):
            received += self.read()
        return received


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.reading.close()
    pipe.writing.close()


def report(count: int) -> bytes:
    return b"%d missing\n" % count


# -- Writing


def test_lines_of_several_workers_stay_whole_in_one_pipe(pipe: Pipe) -> None:
    lines = {
        letter: [letter * 240 + b"%d" % number for number in range(2_000)] for letter in LETTERS
    }
    writers = {letter: pipe.writer(max_waiting_bytes=10_000_000) for letter in LETTERS}
    for begin in range(0, 2_000, 250):
        for letter, writer in writers.items():
            some = lines[letter][begin : begin + 250]
            writer.write(b"\n".join([*some, b""]), len(some))
    received = b""
    while received.count(b"\n") < 4_000:
        received += os.read(pipe.reading.fileno(), 4_096)
    for writer in writers.values():
        writer.close()
    assert sorted(received.split(b"\n")) == sorted([*lines[b"a"], *lines[b"b"], b""])


def test_a_line_that_is_larger_than_a_piece_comes_whole(pipe: Pipe) -> None:
    writer = pipe.writer()
    lines = [b"short", b"l" * 10_000, b"m" * 4_095, b"n" * 4_096, b"", b"short"]
    writer.write(b"\n".join([*lines, b"without an end"]), len(lines) + 1)
    writer.close()
    pipe.writing.close()
    assert pipe.read().split(b"\n") == [*lines, b"without an end"]


def test_lines_come_in_order(pipe: Pipe) -> None:
    writer = pipe.writer()
    for number in range(1_000):
        writer.write(b"%d\n" % number)
    writer.close()
    pipe.writing.close()
    assert pipe.read().split() == [b"%d" % number for number in range(1_000)]
    assert writer.dropped == 0


def test_lines_beyond_the_limit_are_dropped_and_reported_when_lines_flow_again(pipe: Pipe) -> None:
    writer = pipe.writer(max_waiting_bytes=100_000)
    for _ in range(1_000):  # more than the pipe and the queue hold together
        writer.write(LINE)
    assert writer.dropped > 500
    received = pipe.read_until(lambda received: received.endswith(b"missing\n"))
    lines = received.splitlines(keepends=True)
    assert lines[:-1] == [LINE] * (1_000 - writer.dropped)
    assert lines[-1] == report(writer.dropped)
    writer.write(b"again\n")
    writer.close()
    assert pipe.read() == b"again\n"


def test_the_end_does_not_wait_for_an_absent_reader(pipe: Pipe) -> None:
    writer = pipe.writer()
    for _ in range(200):
        writer.write(LINE)
    writer.close(timeout_s=0.01)
    dropped = writer.dropped
    writer.write(LINE)
    assert writer.dropped == dropped + 1
    pipe.reading.close()
    writer.close()


def test_a_reader_that_has_gone_for_good_costs_lines_and_nothing_else(pipe: Pipe) -> None:
    pipe.reading.close()
    writer = pipe.writer()
    for _ in range(10):
        writer.write(LINE)
    writer.close()
    assert writer.dropped == 10


def test_a_descriptor_that_does_not_block_gets_every_line(pipe: Pipe) -> None:
    os.set_blocking(pipe.writing.fileno(), False)
    writer = pipe.writer()
    for _ in range(500):
        writer.write(LINE)
    assert pipe.read_until(lambda received: len(received) == 500_000) == LINE * 500
    writer.close()
    assert writer.dropped == 0


def test_records_are_lines_and_so_is_the_number_of_those_that_are_missing(pipe: Pipe) -> None:
    handler = LineHandler(pipe.writing.fileno(), JsonFormatter())
    for number in range(20_000):
        handler.emit(record("number %d", number))
    assert handler.writer.dropped > 0
    received = pipe.read_until(lambda received: received.endswith(b'read the log"}\n'))
    handler.writer.close()
    messages = [json.loads(line)["message"] for line in received.splitlines()]
    taken = 20_000 - handler.writer.dropped
    assert messages[:-1] == [f"number {number}" for number in range(taken)]
    assert messages[-1].startswith(f"{handler.writer.dropped} log lines are missing here")


# -- Format


def record(message: str, *args: object, exc_info: Any = None) -> logging.LogRecord:
    return logging.LogRecord("x", logging.ERROR, "", 0, message, args, exc_info)


def text_of(line: logging.LogRecord) -> str:
    time, level, text = TextFormatter().format(line).split(" ", 2)
    assert (len(time), level) == (8, "ERROR")
    return text.removeprefix("  ")


@pytest.mark.parametrize(
    ("foreign", "shown"),
    [
        ("plain: ü, 中 and \\", "plain: ü, 中 and \\"),
        ("a\n12:00:00 ERROR   b", r"a\n12:00:00 ERROR   b"),
        ("\r\t\0\x7f", r"\r\t\x00\x7f"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m\x85", r"\x9b31m\x85"),
        ("\u202eevil\u2028\u200b", r"\u202eevil\u2028\u200b"),
        ("\ud800", r"\ud800"),
    ],
)
def test_text_from_other_machines_stays_in_its_line(foreign: str, shown: str) -> None:
    assert text_of(record("told: %s", foreign)) == f"told: {shown}"
    assert text_of(record(foreign.replace("%", "%%"))) == shown


def test_a_traceback_has_lines_of_its_own_none_of_which_passes_for_a_message() -> None:
    try:
        raise ValueError("a\n12:00:00 ERROR   forged \x1b[2J")
    except ValueError as error:
        line = record("failed", exc_info=(type(error), error, error.__traceback__))
    first, *rest = text_of(line).split("\n")
    assert first == "failed"
    assert rest[0] == "    Traceback (most recent call last):"
    assert rest[-2:] == ["    ValueError: a", r"    12:00:00 ERROR   forged \x1b[2J"]
    assert all(part.startswith("    ") for part in rest)


# -- Fields


def with_fields(**fields: object) -> logging.LogRecord:
    return logging.makeLogRecord(
        {"name": "x", "levelno": logging.ERROR, "levelname": "ERROR", "msg": "it broke"} | fields
    )


def test_fields_are_members_in_json() -> None:
    line = json.loads(JsonFormatter().format(with_fields(agent="node", channels=3, target=None)))
    assert list(line) == ["ts", "level", "logger", "message", "agent", "channels", "target"]
    assert (line["message"], line["agent"], line["channels"]) == ("it broke", "node", 3)


def test_fields_are_behind_the_message_in_text() -> None:
    assert text_of(with_fields(agent="node", channels=3)) == "it broke  agent=node  channels=3"
    assert text_of(with_fields(peer="a\nb")) == r"it broke  peer=a\nb"
