"""The standard streams of a process, which whoever starts it may have closed."""

import os
import sys


def open_standard_streams() -> None:
    """Open what is closed of standard input, output and error, to nothing.

    Must be called first: otherwise the next file or socket that is opened gets the number of a
    stream, and what is meant for people goes into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
