"""The standard streams of the process, which may be closed when it starts."""

import os
import sys


def open_standard_streams() -> None:
    """Open the null device for each standard stream (input, output or error) that is closed.

    Call this before the process opens anything. Otherwise the next file or socket gets the number
    of the closed stream, and text that is meant for people goes into that file or socket.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
