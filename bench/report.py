"""The results, as a table for people and as JSON for machines."""

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from statistics import median
from typing import Any

from bench.processes import cores_at_start
from bench.rounds import Round, Sample

PER_SECOND = "/s"
BYTES = "B"
MEGABYTES_PER_SECOND = "MB/s"
"""The unit in which bytes per second are printed."""
STACK = ("aiohttp", "grpcio", "uvloop", "protobuf")


@dataclass(frozen=True, slots=True)
class Target:
    """The goal for a figure. If the goal is missed, the report says so, but nothing fails."""

    limit: float
    at_most: bool = False

    def is_met(self, value: float) -> bool:
        return value < self.limit if self.at_most else value >= self.limit

    def text(self, unit: str) -> str:
        if self.at_most:
            return f"< {quantity(self.limit, unit)}"
        is_rate = unit == MEGABYTES_PER_SECOND
        return f">= {quantity(self.limit, unit) if is_rate else f'{self.limit:.2f}'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    name: str
    what: str
    unit: str
    ours: float
    rounds: Sequence[Round] = ()
    baseline: float | None = None
    against: str = ""
    """A description of the baseline."""
    target: Target | None = None
    notes: Sequence[str] = field(default=())

    @property
    def ratio(self) -> float | None:
        return median(one.ratio for one in self.rounds) if self.rounds else None

    @property
    def spread(self) -> tuple[float, float] | None:
        ratios = [one.ratio for one in self.rounds]
        return (min(ratios), max(ratios)) if ratios else None

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        value = self.ours if self.ratio is None else self.ratio
        return "ok" if self.target.is_met(value) else "short"


def compared(
    name: str,
    what: str,
    rounds: Sequence[Round],
    *,
    against: str,
    target: Target | None = None,
    notes: Sequence[str] = (),
) -> Result:
    """Sum up a comparison: the median of each side, and of the ratios of the rounds."""
    return Result(
        name=name,
        what=what,
        unit=PER_SECOND,
        ours=median(one.ours.per_core_second for one in rounds),
        baseline=median(one.baseline.per_core_second for one in rounds),
        rounds=tuple(rounds),
        against=against,
        target=target,
        notes=(*notes, clock_note(rounds)),
    )


def clock_note(rounds: Sequence[Round]) -> str:
    """Describe the wall-time results. They mean less if a server was not busy all the time."""
    sides = ([one.ours for one in rounds], [one.baseline for one in rounds])
    rates = [median(sample.per_second for sample in side) for side in sides]
    busy = [median(sample.busy for sample in side) for side in sides]
    ratio = median(one.ratio_by_clock for one in rounds)
    return (
        f"by the clock: ours {rates[0]:,.0f} /s (busy {busy[0]:.0%}),"
        f" baseline {rates[1]:,.0f} /s (busy {busy[1]:.0%}), ratio {ratio:.2f}"
    )


# -- For people

COLUMNS = ("what", "ours", "baseline", "ratio", "spread", "target", "")


def table(results: Iterable[Result]) -> str:
    """Return one line for each result, in columns."""
    results = list(results)
    rows = [COLUMNS, *map(row, results)]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(COLUMNS))]
    lines = [aligned(cells, widths) for cells in rows]
    return "\n".join([lines[0], "-" * sum(widths, 2 * len(widths) - 2), *lines[1:]])


def row(result: Result) -> tuple[str, ...]:
    spread = result.spread
    return (
        result.what,
        quantity(result.ours, result.unit),
        "" if result.baseline is None else quantity(result.baseline, result.unit),
        "" if result.ratio is None else f"{result.ratio:.2f}",
        "" if spread is None else f"{spread[0]:.2f} - {spread[1]:.2f}",
        "" if result.target is None else result.target.text(result.unit),
        result.verdict,
    )


def aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first, *figures = (
        cell.ljust(width) if i in (0, len(cells) - 1) else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    )
    return "  ".join([first, *figures]).rstrip()


def legend(results: Iterable[Result]) -> str:
    """Return the explanation of each line, for below the table."""
    lines = [
        "Rates are per second that the server computed; ratio is the median of all rounds,",
        "spread the lowest and the highest.",
        "",
    ]
    for result in results:
        notes = ([f"baseline: {result.against}"] if result.against else []) + list(result.notes)
        if notes:
            lines.append(result.what)
            lines += [f"  {note}" for note in notes]
    return "\n".join(lines)


def quantity(value: float, unit: str) -> str:
    if unit == BYTES:
        return f"{value / 1000:,.2f} KB"
    if unit == MEGABYTES_PER_SECOND:
        return f"{value / 1_000_000:,.0f} {unit}"
    return f"{value:,.0f} {unit}"


# -- For machines


def as_json(results: Iterable[Result], failures: dict[str, str]) -> dict[str, Any]:
    return {
        "machine": machine(),
        "results": [result_as_json(result) for result in results],
        "failures": failures,
    }


def machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "server_cores": len(cores_at_start[0]) if cores_at_start else None,
        "load_cores": len(cores_at_start[1]) if cores_at_start else None,
        **{name: version(name) for name in STACK},
    }


def result_as_json(result: Result) -> dict[str, Any]:
    return {
        "name": result.name,
        "what": result.what,
        "unit": result.unit,
        "ours": result.ours,
        "baseline": result.baseline,
        "against": result.against,
        "ratio": result.ratio,
        "spread": result.spread,
        "rounds": [
            {
                "ratio": one.ratio,
                "ratio_by_clock": one.ratio_by_clock,
                "ours": sample_as_json(one.ours),
                "baseline": sample_as_json(one.baseline),
            }
            for one in result.rounds
        ],
        "target": result.target and result.target.text(result.unit),
        "verdict": result.verdict,
        "notes": list(result.notes),
    }


def sample_as_json(sample: Sample) -> dict[str, float]:
    return {
        "count": sample.count,
        "seconds": sample.seconds,
        "core_seconds": sample.core_seconds,
    }
