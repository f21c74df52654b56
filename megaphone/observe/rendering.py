"""Renders values as Prometheus text, format 0.0.4, with what the catalogue says of them.

prometheus-client would add `_total` to the names of counters that have none, and takes ten times as
long to count. So we count ourselves, and render our own metrics.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TypeAlias

from megaphone.core.histogram import Histogram
from megaphone.observe.catalogue import METRICS, PREFIX, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Source: TypeAlias = Callable[[], object]
"""Returns the value of a metric, which is a number or a `Histogram`. If the metric has labels, it
returns a list of all values, each in a tuple behind its labels. The type is as wide as it can be,
because compiled code makes a `float` of what is `int | float`."""


def render(sources: Mapping[str, Source]) -> bytes:
    """Return the metrics that have a source, by their names without `PREFIX`."""
    lines = [
        line
        for name, metric in METRICS.items()
        if name in sources
        for line in family(metric, sources[name]())
    ]
    return "\n".join([*lines, ""]).encode() if lines else b""


def family(metric: Metric, values: object) -> Iterator[str]:
    name = PREFIX + metric.name
    yield f"# HELP {name} {metric.meaning}"
    yield f"# TYPE {name} {metric.kind}"
    for labels, value in values if isinstance(values, Sequence) else [({}, values)]:
        if isinstance(value, Histogram):
            yield from buckets(name, labels, value)
        else:
            yield f"{name}{braced(labels)} {value}"


def buckets(name: str, labels: Mapping[str, object], histogram: Histogram) -> Iterator[str]:
    cumulated = list(accumulate(histogram.counts))
    bounds = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
    for bound, count in zip(bounds, cumulated, strict=True):
        yield f"{name}_bucket{braced({**labels, 'le': bound})} {count}"
    yield f"{name}_sum{braced(labels)} {histogram.total}"
    yield f"{name}_count{braced(labels)} {cumulated[-1]}"


def braced(labels: Mapping[str, object]) -> str:
    if not labels:
        return ""
    pairs = (f'{label}="{escaped(str(value))}"' for label, value in labels.items())
    return "{" + ",".join(pairs) + "}"


def escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
