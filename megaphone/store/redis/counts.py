"""What a node counts of its calls to the store, over all its connections."""

from typing import Final

from megaphone.core.histogram import Histogram
from megaphone.errors import StoreUnavailable
from megaphone.store.redis.errors import NoAnswer, NotServing, OutOfMemory

FULL: Final = "full"
NOT_SERVING: Final = "not_serving"
REFUSED: Final = "refused"
UNCONFIRMED: Final = "unconfirmed"
KINDS: Final = (*NoAnswer.KINDS, NOT_SERVING, FULL, UNCONFIRMED, REFUSED)


class StoreCounts:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self.seconds = Histogram()
        """How long the answers to the calls of one write took, up to the last."""
        # They are 0 from the start, because Prometheus would miss the first of each.
        self.errors: dict[str, int] = dict.fromkeys(KINDS, 0)
        """How many calls of functions have failed, by their kinds."""
        self.reconnects = 0
        """How many connections have replaced one that had ended."""

    def note_failure(self, error: Exception) -> None:
        """Count a call that has failed for good."""
        kind = kind_of(error)
        if kind is not None:
            self.errors[kind] += 1


def kind_of(error: Exception) -> str | None:
    """Return the kind of an error; None if this node has ended the call itself."""
    match error:
        case NoAnswer():
            return error.kind
        case OutOfMemory():
            return FULL
        case NotServing() | StoreUnavailable():
            return NOT_SERVING
        case _:
            return REFUSED
