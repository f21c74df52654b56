"""Log lines: text for people, JSON for machines, and never an address or a key in them.

A thread of its own writes them. If nobody reads the log, a write can block for ever, and it must
not hold the event loop.
"""

import json
import logging
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

log = logging.getLogger(__name__)

STANDARD_ERROR = 2
MAX_WAITING_BYTES = 1_048_576
"""How many bytes of lines may wait to be written. Further lines are dropped."""
CLOSE_TIMEOUT_S = 1.0
"""How long `close` waits for lines that are not written yet."""


class LineWriter:
    """Writes lines to a file descriptor, and never blocks its caller. Any thread may use it.

    While the descriptor takes nothing, lines wait, up to a number of bytes. Beyond that number,
    lines are dropped and counted until all waiting lines are written. Then one more line says how
    many are missing; `report` makes it.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        report: Callable[[int], bytes],
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        self.dropped = 0
        """How many lines were dropped."""
        self._descriptor = descriptor
        self._report = report
        self._max_waiting_bytes = max_waiting_bytes
        self._changed = threading.Condition()
        """Guards all attributes below."""
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._waiting_bytes = 0
        self._is_idle = True
        self._is_full = False
        self._is_closed = False
        self._unreported = 0
        # A daemon, because its write may never return and must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: bytes, count: int = 1) -> None:
        """Queue a line, or `count` lines at once, or drop them if too many bytes wait. Returns at
        once."""
        with self._changed:
            if self._waiting_bytes + len(line) > self._max_waiting_bytes:
                self._is_full = True
            if self._is_full or self._is_closed:
                self._drop(count)
                return
            self._waiting.append((line, count))
            self._waiting_bytes += len(line)
            self._is_idle = False
            self._changed.notify_all()

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Wait until all lines are written, at most `timeout_s`. Later lines are dropped."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_idle, timeout_s)

    def _drop(self, count: int) -> None:
        self.dropped += count
        self._unreported += count

    # -- In the thread

    def _run(self) -> None:
        while (queued := self._next()) is not None:
            line, count = queued
            is_written = self._write(line)
            with self._changed:
                self._waiting_bytes -= len(line)
                if not is_written:
                    self._drop(count)
            if is_written:
                self._report_dropped()

    def _next(self) -> tuple[bytes, int] | None:
        """Return the next line or lines, and how many. Waits for them; None after `close`."""
        with self._changed:
            if not self._waiting:
                self._is_idle, self._is_full = True, False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
            return self._waiting.popleft() if self._waiting else None

    def _report_dropped(self) -> None:
        """Write how many lines were dropped, after the lines before them."""
        with self._changed:
            count = 0 if self._waiting else self._unreported
        if count and self._write(self._report(count)):
            with self._changed:
                self._unreported -= count

    def _write(self, lines: bytes) -> bool:
        """Write a line, or several, however long that takes. Returns: whether that was done.

        Other workers may write to the same pipe.
        """
        return all(self._write_piece(piece) for piece in pieces_of(lines))

    def _write_piece(self, piece: bytes) -> bool:
        rest = memoryview(piece)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another process has made the descriptor non-blocking
                select.select([], [self._descriptor], [])
            except OSError:  # nobody reads the log any more, or the disk is full
                return False
        return True


def pieces_of(lines: bytes) -> Iterator[bytes]:
    """Cut lines into pieces of whole lines, each so small that a pipe takes it at once, unless one
    line alone is larger."""
    begin = 0
    while len(lines) - begin > select.PIPE_BUF:
        end = lines.rfind(b"\n", begin, begin + select.PIPE_BUF)
        if end < 0:
            end = lines.find(b"\n", begin + select.PIPE_BUF)
        if end < 0:
            break
        yield lines[begin : end + 1]
        begin = end + 1
    yield lines[begin:]


class LineHandler(logging.Handler):
    """Passes log lines to a `LineWriter`."""

    def __init__(self, descriptor: int, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.writer = LineWriter(descriptor, report=lambda count: self._line(dropped(count)))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._line(record)
        except Exception:  # as the handlers of the standard library do
            self.handleError(record)
        else:
            self.writer.write(line)

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(errors="backslashreplace")


def dropped(count: int) -> logging.LogRecord:
    """Return a record which says that lines are missing."""
    message = "%d log lines are missing here, because nobody read the log"
    return log.makeRecord(log.name, logging.WARNING, __file__, 0, message, (count,), None)


STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
"""The attributes that every record has."""


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of a record: what its `extra` says beside the message."""
    return {name: value for name, value in record.__dict__.items() if name not in STANDARD}


class TextFormatter(logging.Formatter):
    """Formats a message and its fields as one line, followed by the lines of a traceback, each
    indented.

    Parts of a message may come from other machines. So characters that are not printable are
    escaped: no message can begin a line of its own, or control a terminal.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        said = [record.getMessage(), *(f"{k}={v}" for k, v in fields_of(record).items())]
        text = f"{time} {record.levelname:7} {'  '.join(map(printable, said))}"
        if record.exc_info:
            lines = self.formatException(record.exc_info).split("\n")
            text = "\n    ".join([text, *map(printable, lines)])
        return text


def printable(text: str) -> str:
    """Return a text with escapes for all characters that are not printable."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class JsonFormatter(logging.Formatter):
    """Formats a message as one JSON object: ts, level, logger, message, then the fields, and
    exception if any."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


@contextmanager
def logging_to_stderr(
    log_format: Literal["auto", "text", "json"], log_level: str = "info"
) -> Iterator[LineWriter]:
    """Return a context in which all log lines of a level and above it go to standard error. Its end
    waits for them."""
    handler = LineHandler(
        STANDARD_ERROR, TextFormatter() if is_text(log_format) else JsonFormatter()
    )
    logging.basicConfig(level=log_level.upper(), handlers=[handler], force=True)
    # aiohttp would log each refused request with a traceback.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    log_what_python_would_print()
    try:
        yield handler.writer
    finally:
        handler.writer.close()


def is_text(log_format: Literal["auto", "text", "json"]) -> bool:
    """Return whether lines are for people."""
    return log_format == "text" or (log_format == "auto" and os.isatty(STANDARD_ERROR))


def log_what_python_would_print() -> None:
    """Log the warnings and errors that the interpreter would write to standard error itself."""

    def unraisable(what: "sys.UnraisableHookArgs") -> None:
        if what.exc_value is not None:
            log.error("an error was raised where nothing can catch it", exc_info=what.exc_value)

    def ended_thread(what: threading.ExceptHookArgs) -> None:
        if what.exc_value is not None:
            log.error("a thread has failed", exc_info=what.exc_value)

    logging.captureWarnings(True)
    sys.unraisablehook = unraisable
    threading.excepthook = ended_thread
