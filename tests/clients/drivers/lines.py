"""What the drivers in Python share: the form of commands and reports, as the README has it."""

import json
import logging
import sys
import threading
from typing import Any

from megaphone_client import MegaphoneError

Command = dict[str, Any]

_writing = threading.Lock()

# Warnings of the client library, and the messages that grpc cannot decode, are no faults.
for name in ("megaphone_client", "grpc"):
    logging.getLogger(name).setLevel(logging.CRITICAL)


def report(**members: Any) -> None:
    """Write one report. Any thread may call this."""
    line = json.dumps(members, ensure_ascii=False, separators=(",", ":")) + "\n"
    with _writing:
        sys.stdout.buffer.write(line.encode())
        sys.stdout.buffer.flush()


def described(error: BaseException) -> dict[str, Any]:
    """Return the members of a report that describe an exception."""
    code = error.code if isinstance(error, MegaphoneError) else None
    return {"class": type(error).__name__, "code": code, "message": str(error)}


def read_options(command: Command) -> dict[str, Any]:
    """Return the options of a read, as the client library names them."""
    names = ("ack", "after", "limit", "streams", "heartbeat_s")
    return {name: command[name] for name in names if command.get(name) is not None}


def acknowledges_after(command: Command, number: int) -> bool:
    """Return whether the application acknowledges an event of a read itself."""
    return command.get("ack") == "manual" and number % command.get("ack_every", 1) == 0


def pause_after(command: Command, number: int) -> float:
    """Return for how many seconds the application is busy with an event of a read."""
    pauses: dict[str, float] = command.get("pauses") or {}
    return pauses.get(str(number), pauses.get("*", 0.0))
