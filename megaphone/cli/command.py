"""How the process of a command begins and ends: its arguments, and an output that fails."""

import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from megaphone.cli.exits import Exit, say
from megaphone.cli.output import open_standard_streams


class NotPrinted(Exception):
    """Standard output takes nothing more. The text says why."""


class StandardOutput(io.FileIO):
    """Raises NotPrinted where it cannot write, so that nobody takes that for another error. A pipe
    that nobody reads any more is no such case."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise NotPrinted(error.strerror) from None


def run_command(app: Callable[[], object], name: str) -> NoReturn:
    """Run the command of this process, and exit with its code. `name` begins the line that says
    why it failed."""
    open_standard_streams()
    stream = io.BufferedWriter(StandardOutput(1, "w", closefd=False))
    sys.stdout = io.TextIOWrapper(
        stream, sys.stdout.encoding, sys.stdout.errors, line_buffering=os.isatty(1)
    )
    for number, argument in enumerate(sys.argv[1:], 1):
        if not is_text(argument):
            say(f"{name}: argument {number} is not UTF-8")
            sys.exit(Exit.WRONG_USAGE)
    try:
        app()
    except NotPrinted as error:
        say(f"{name}: the output cannot be written: {error}")
        # The interpreter flushes the stream when it ends, and would complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(Exit.FAILED)


def is_text(argument: str) -> bool:
    """Return whether an argument is what its bytes say. Python has stand-ins for wrong bytes."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True
