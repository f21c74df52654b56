"""Log lines: text for people, JSON for machines. Never with an address or a key in them.

A thread of its own writes them, because whoever should read the log may be away: then a write to it
can last for ever, and must not hold the event loop.
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
from typing import Literal

log = logging.getLogger(__name__)

STANDARD_ERROR = 2
MAX_WAITING_BYTES = 1_048_576
"""How much may wait for a reader. What comes beyond it is dropped."""
CLOSE_TIMEOUT_S = 1.0
"""How long the end waits for lines that have not been read."""


class LineWriter:
    """Writes lines to a file descriptor without ever holding its caller. May be used by any thread.

    While the descriptor takes nothing, lines wait, up to a number of bytes. Once that is reached,
    all further lines are dropped and counted until those that wait are written. Then the line that
    `report` makes of the number of dropped lines follows.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        report: Callable[[int], bytes],
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        self.dropped = 0
        """Lines that were not written, and will not be."""
        self._descriptor = descriptor
        self._report = report
        self._max_waiting_bytes = max_waiting_bytes
        self._changed = threading.Condition()
        """Guards all that follows."""
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._is_idle = True
        self._is_full = False
        self._is_closed = False
        self._unreported = 0
        # A daemon: its write may never return, and must not keep the process.
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Have a line written soon, or drop it. Returns at once."""
        with self._changed:
            if self._waiting_bytes + len(line) > self._max_waiting_bytes:
                self._is_full = True
            if self._is_full or self._is_closed:
                self._drop()
                return
            self._waiting.append(line)
            self._waiting_bytes += len(line)
            self._is_idle = False
            self._changed.notify_all()

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Wait until all is written, but not longer than `timeout_s`. Later lines are dropped."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._is_idle, timeout_s)

    def _drop(self) -> None:
        self.dropped += 1
        self._unreported += 1

    # -- In the thread

    def _run(self) -> None:
        while (line := self._next()) is not None:
            is_written = self._write(line)
            with self._changed:
                self._waiting_bytes -= len(line)
                if not is_written:
                    self._drop()
            if is_written:
                self._report_dropped()

    def _next(self) -> bytes | None:
        """Return the next line, waiting for one; None at the end."""
        with self._changed:
            if not self._waiting:
                self._is_idle, self._is_full = True, False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
            return self._waiting.popleft() if self._waiting else None

    def _report_dropped(self) -> None:
        """Say how many lines were dropped, once those before them are written."""
        with self._changed:
            count = 0 if self._waiting else self._unreported
        if count and self._write(self._report(count)):
            with self._changed:
                self._unreported -= count

    def _write(self, line: bytes) -> bool:
        """Write a line, for as long as that takes. Returns: whether it could be written."""
        rest = memoryview(line)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another process has made the descriptor so
                select.select([], [self._descriptor], [])
            except OSError:  # nobody will read it, or the disk is full
                return False
        return True


class LineHandler(logging.Handler):
    """Hands log lines to a `LineWriter`."""

    def __init__(self, descriptor: int, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.writer = LineWriter(descriptor, report=lambda count: self._line(dropped(count)))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._line(record)
        except Exception:  # as every handler of the standard library
            self.handleError(record)
        else:
            self.writer.write(line)

    def _line(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(errors="backslashreplace")


def dropped(count: int) -> logging.LogRecord:
    """Return a record which says that lines are missing."""
    message = "%d log lines are missing here, because nobody read the log"
    return log.makeRecord(log.name, logging.WARNING, __file__, 0, message, (count,), None)


class TextFormatter(logging.Formatter):
    """One line for each message. A traceback follows it in lines of their own, each indented.

    Parts of a message may come from other machines. So what is no printable character stands there
    as an escape: it cannot begin a line of its own, nor reach a terminal.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        text = f"{time} {record.levelname:7} {printable(record.getMessage())}"
        if record.exc_info:
            lines = self.formatException(record.exc_info).split("\n")
            text = "\n    ".join([text, *map(printable, lines)])
        return text


def printable(text: str) -> str:
    """Return a text with escapes for control characters and all else that cannot be printed."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class JsonFormatter(logging.Formatter):
    """One object a line: ts, level, logger, message, and exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


@contextmanager
def logging_to_stderr(log_format: Literal["auto", "text", "json"]) -> Iterator[LineWriter]:
    """Within this context send all log lines to standard error; at the end write what waits."""
    as_text = log_format == "text" or (log_format == "auto" and os.isatty(STANDARD_ERROR))
    handler = LineHandler(STANDARD_ERROR, TextFormatter() if as_text else JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # aiohttp logs requests that were refused with a trace each; those are no news of ours.
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
    log_what_python_would_print()
    try:
        yield handler.writer
    finally:
        handler.writer.close()


def log_what_python_would_print() -> None:
    """Log warnings and errors that the interpreter would else write to standard error itself."""

    def unraisable(what: "sys.UnraisableHookArgs") -> None:
        if what.exc_value is not None:
            log.error("an error was raised where nothing can catch it", exc_info=what.exc_value)

    def ended_thread(what: threading.ExceptHookArgs) -> None:
        if what.exc_value is not None:
            log.error("a thread has failed", exc_info=what.exc_value)

    logging.captureWarnings(True)
    sys.unraisablehook = unraisable
    threading.excepthook = ended_thread
