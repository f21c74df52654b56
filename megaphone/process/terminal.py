"""The terminal from which this process was started, if it was started from one."""

import os


def has_terminal() -> bool:
    """Return whether this process belongs to a terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
