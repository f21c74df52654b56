"""The cores that this process may use."""

import os


def workers_for(wanted: int) -> int:
    """Return how many workers a setting means: 0 means one for each core."""
    return wanted or len(os.sched_getaffinity(0))
