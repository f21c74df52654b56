"""The metrics of several processes as those of one: Prometheus text in, Prometheus text out."""

from collections.abc import Iterable
from dataclasses import dataclass, field

COUNTING = ("counter", "histogram")
"""The types of metrics that only grow, so that they must not shrink when a process ends."""
CHANNELS = "megaphone_channels"
"""A gauge that is a difference of counters: one process may remove a channel of another one."""
EARLIEST = (
    "process_start_time_seconds",
    "megaphone_certificate_not_after_timestamp_seconds",
    "megaphone_jwks_fetched_timestamp_seconds",
)
OF_ALL = ("megaphone_channels_limit", "megaphone_store_channels")
"""Gauges of what processes share, so that each of them says the same."""
INFO = "_info"
"""How the name of a metric ends whose labels are what it says."""


@dataclass(slots=True)
class Family:
    """A metric: its comments, and the value of each of its samples by name and labels."""

    comments: list[str] = field(default_factory=list)
    kind: str = "untyped"
    samples: dict[str, float] = field(default_factory=dict)


def summed(texts: Iterable[bytes]) -> bytes:
    """Return the sum of the metrics of several processes.

    Counters, gauges and histograms are added up. Of times the earliest is kept, and of what all
    processes share the largest value. Metrics that say something by their labels stay as they are.
    """
    families: dict[str, Family] = {}
    for text in texts:
        for name, other in parsed(text).items():
            if name not in families:
                families[name] = other
                continue
            samples = families[name].samples
            for sample, value in other.samples.items():
                samples[sample] = merged(name, samples.get(sample), value)
    return rendered(families)


def merged(name: str, one: float | None, other: float) -> float:
    if one is None:
        return other
    if name in EARLIEST:
        return min(one, other)
    return max(one, other) if name in OF_ALL or name.endswith(INFO) else one + other


def lasting(text: bytes) -> bytes:
    """Return what must still count when the process with these metrics has ended."""
    families = parsed(text)
    return rendered(
        {
            name: family
            for name, family in families.items()
            if family.kind in COUNTING or name == CHANNELS
        }
    )


def parsed(text: bytes) -> dict[str, Family]:
    """Parse text in which the comments of a metric stand before its samples, as ours do."""
    families: dict[str, Family] = {}
    family = Family()
    for line in text.decode().splitlines():
        if line.startswith("#"):
            _, word, name, rest = [*line.split(" ", 3), ""][:4]
            family = families.setdefault(name, Family())
            family.comments.append(line)
            if word == "TYPE":
                family.kind = rest
        elif line:
            sample, _, value = line.rpartition(" ")
            family.samples[sample] = int(value) if value.isdecimal() else float(value)
    return families


def rendered(families: dict[str, Family]) -> bytes:
    lines = [
        line
        for family in families.values()
        for line in (
            *family.comments,
            *(f"{sample} {value}" for sample, value in family.samples.items()),
        )
    ]
    return "\n".join([*lines, ""]).encode()
