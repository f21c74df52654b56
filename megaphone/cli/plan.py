"""What `megaphone bench` is asked to do."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Where the weight of a load is."""

    WRITE = "write"
    READ = "read"
    LATENCY = "latency"
    FANOUT = "fanout"


@dataclass(frozen=True, slots=True)
class Plan:
    """A load."""

    kind: Kind
    channels: int
    batch: int
    """How many events a call writes to each channel."""
    size: int
    """The bytes of a payload."""
    rate: float | None
    """How many events all writers together write in a second; None: as many as are taken."""
    warm_up_s: float
    duration_s: float
