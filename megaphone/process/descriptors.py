"""File descriptors of this process: how many the connections of clients may take."""

import resource
from contextlib import suppress

MOST = 1_048_576
"""As many as anybody needs. Some systems allow a thousand times more."""
RESERVED_PART = 4
LEAST_RESERVED, MOST_RESERVED = 64, 256
"""What is kept for all that is not a client's: a quarter, within these bounds. That is the
management socket, pipes to other nodes, webhooks, the log, and what the libraries open."""


def raise_limit() -> None:
    """Let this process have as many descriptors as the system allows it to take."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    with suppress(ValueError, OSError):  # some systems have a limit beside this one
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def for_clients() -> int:
    """Return how many descriptors the connections of clients may take, both faces together."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MOST if soft == resource.RLIM_INFINITY else min(soft, MOST)
    return max(0, limit - min(max(limit // RESERVED_PART, LEAST_RESERVED), MOST_RESERVED))
