"""The standard streams of the process, which may be closed when it starts."""

import os
import sys


def open_standard_streams() -> None:
    """Open each closed one of standard input, output and error to the null device.

    Call this first. Otherwise the next file or socket to be opened gets the number of a standard
    stream, and output for people goes into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
