"""File descriptors of this process, and how many the connections of clients may take."""

import resource
from contextlib import suppress

MOST = 1_048_576
"""More than any node needs. Some systems allow a thousand times as many."""
RESERVED_PART = 4
LEAST_RESERVED, MOST_RESERVED = 64, 256
"""A quarter of the descriptors, within these bounds, is reserved for everything that is not a
client: the admin socket, pipes, webhooks, the log, and the files that libraries open."""


def raise_limit() -> None:
    """Raise the limit of descriptors as far as the system allows, up to MOST."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with suppress(ValueError, OSError):  # some systems have a second, lower limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def for_clients() -> int:
    """Return how many descriptors the connections of clients may take, both faces together."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MOST if soft == resource.RLIM_INFINITY else min(soft, MOST)
    return max(0, limit - min(max(limit // RESERVED_PART, LEAST_RESERVED), MOST_RESERVED))
