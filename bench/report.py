"""The figures, as a table for people and as JSON for machines."""

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from statistics import median
from typing import Any

from bench.contestants import OURS
from bench.processes import cores_at_start
from bench.rounds import Sample

PER_SECOND = "/s"
BYTES = "B"
MILLISECONDS = "ms"
MICROSECONDS = "µs"
MEGABYTES_PER_SECOND = "MB/s"
MUCH_WAITING = 0.05
WAITING = "a server waited for its core, where others computed"
STACK = ("aiohttp", "grpcio", "uvloop", "protobuf")


@dataclass(frozen=True, slots=True)
class Target:
    """The goal for a figure. If the goal is missed, the report says so, but nothing fails."""

    limit: float
    at_most: bool = False

    def is_met(self, value: float) -> bool:
        return value < self.limit if self.at_most else value >= self.limit

    def text(self, unit: str) -> str:
        return f"{'<' if self.at_most else '>='} {quantity(self.limit, unit)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One thing that was measured, for each contestant, round by round."""

    name: str
    what: str
    unit: str
    rounds: Mapping[str, Sequence[float]]
    """For each contestant one value a round. The rounds of all belong together in order."""
    by_clock: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """For rates: the same per second of wall time, where `rounds` has it per second of CPU time."""
    busy: Mapping[str, float] = field(default_factory=dict)
    """The share of the wall time in which the server was computing."""
    load_busy: Mapping[str, float] = field(default_factory=dict)
    """The same of the load."""
    target: Target | None = None
    notes: Sequence[str] = ()

    @property
    def less_is_better(self) -> bool:
        return self.unit in (BYTES, MILLISECONDS, MICROSECONDS)

    @property
    def others(self) -> list[str]:
        return [name for name in self.rounds if name != OURS]

    @property
    def ours(self) -> float:
        return self.value(OURS)

    def value(self, of: str) -> float:
        return median(self.rounds[of])

    def ratios(self, to: str, of: str = OURS) -> list[float]:
        """Return the ratio of one to another for each round in which the other is not zero."""
        pairs = zip(self.rounds[of], self.rounds[to], strict=True)
        return [one / theirs for one, theirs in pairs if theirs]

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        return "ok" if self.target.is_met(self.ours) else "short"


def rate(
    name: str, what: str, samples: Mapping[str, Sequence[Sample]], notes: Sequence[str] = ()
) -> Figure:
    """Sum up rates: per second of the server's CPU time, and per second of wall time."""
    return Figure(
        name=name,
        what=what,
        unit=PER_SECOND,
        rounds={side: [one.per_core_second for one in all_] for side, all_ in samples.items()},
        by_clock={side: [one.per_second for one in all_] for side, all_ in samples.items()},
        busy=medians(samples, "busy"),
        load_busy=medians(samples, "load_busy"),
        notes=(*notes, *waiting_notes(samples)),
    )


def medians(samples: Mapping[str, Sequence[Sample]], of: str) -> dict[str, float]:
    """Return the median of one attribute of the samples, for each contestant."""
    return {side: median(getattr(one, of) for one in all_) for side, all_ in samples.items()}


def waiting_notes(samples: Mapping[str, Sequence[Sample]]) -> list[str]:
    """Return a note if the servers had to share their core, which makes times longer."""
    most = max(one.waiting for all_ in samples.values() for one in all_)
    if most < MUCH_WAITING:
        return []
    return [f"up to {most:.0%} of the time {WAITING}"]


def is_waiting_noted(figure: Figure) -> bool:
    return any(note.endswith(WAITING) for note in figure.notes)


# -- For people

COLUMNS = ("", "what", "ours", "against", "theirs", "ratio", "spread", "by the clock", "busy, load")


def table(figures: Iterable[Figure]) -> str:
    """Return one line for each figure and contestant, in columns."""
    rows = [COLUMNS, *(row for figure in figures for row in rows_of(figure))]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(COLUMNS))]
    lines = [aligned(cells, widths) for cells in rows]
    return "\n".join([lines[0], "-" * sum(widths, 2 * len(widths) - 2), *lines[1:]])


def rows_of(figure: Figure) -> list[tuple[str, ...]]:
    if not figure.others:
        target = figure.target and f"goal {figure.target.text(figure.unit)} {figure.verdict}"
        by_clock = clock_text(figure, OURS)
        return [
            (
                figure.name,
                figure.what,
                quantity(figure.ours, figure.unit),
                target or "",
                "",
                "",
                "",
                by_clock,
                shares(figure, [OURS]),
            )
        ]
    return [row(figure, other, is_first=not number) for number, other in enumerate(figure.others)]


def row(figure: Figure, other: str, *, is_first: bool) -> tuple[str, ...]:
    ratios = figure.ratios(other)
    return (
        figure.name if is_first else "",
        figure.what if is_first else "",
        quantity(figure.ours, figure.unit) if OURS in figure.rounds else "",
        other,
        quantity(figure.value(other), figure.unit),
        f"{median(ratios):.2f}" if ratios else "",
        f"{min(ratios):.2f} - {max(ratios):.2f}" if ratios else "",
        f"{clock_text(figure, OURS)} : {clock_text(figure, other)}" if figure.by_clock else "",
        shares(figure, [OURS, other]),
    )


def clock_text(figure: Figure, side: str) -> str:
    rates = figure.by_clock.get(side)
    return f"{median(rates):,.0f}" if rates else ""


def shares(figure: Figure, sides: Sequence[str]) -> str:
    if not figure.busy:
        return ""
    return " : ".join(f"{figure.busy[side]:.0%}, {figure.load_busy[side]:.0%}" for side in sides)


def aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    texts = [
        cell.ljust(width) if i in (0, 1, 3) else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(texts).rstrip()


LEGEND = """\
Rates are per second of CPU time of the server; every figure is the median of its rounds.
Ratio: ours to theirs, the median of the rounds; spread: the lowest and the highest.
By the clock: the same per second of wall time, ours : theirs.
Busy, load: the share of that time in which the server computed, and the load; ours : theirs."""


def legend(figures: Iterable[Figure]) -> str:
    """Return the explanation of the table and of each figure, for below the table."""
    names: dict[str, list[str]] = {}
    for figure in figures:
        for note in figure.notes:
            names.setdefault(note, []).append(figure.name)
    return "\n".join([LEGEND, "", *(f"{', '.join(of)}: {note}" for note, of in names.items())])


def quantity(value: float, unit: str) -> str:
    if unit == MEGABYTES_PER_SECOND:
        return f"{value / 1_000_000:,.0f} {unit}"
    if unit == BYTES and value >= 1_000_000:
        return f"{value / 1_000_000:,.1f} MB"
    return (
        f"{value:,.2f} {unit}" if unit in (MILLISECONDS, MICROSECONDS) else f"{value:,.0f} {unit}"
    )


# -- For machines


def as_json(figures: Iterable[Figure], failures: Mapping[str, str]) -> dict[str, Any]:
    return {
        "machine": machine(),
        "figures": [figure_as_json(figure) for figure in figures],
        "failures": dict(failures),
    }


def machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "server_cores": len(cores_at_start[0]) if cores_at_start else None,
        "load_cores": len(cores_at_start[1]) if cores_at_start else None,
        **{name: version(name) for name in STACK},
    }


def figure_as_json(figure: Figure) -> dict[str, Any]:
    return {
        "name": figure.name,
        "what": figure.what,
        "unit": figure.unit,
        "medians": {name: figure.value(name) for name in figure.rounds},
        "ratios": {
            other: median(ratios) for other in figure.others if (ratios := figure.ratios(other))
        },
        "rounds": {name: list(values) for name, values in figure.rounds.items()},
        "by_clock": {name: list(values) for name, values in figure.by_clock.items()},
        "busy": dict(figure.busy),
        "load_busy": dict(figure.load_busy),
        "target": figure.target and asdict(figure.target),
        "verdict": figure.verdict,
        "notes": list(figure.notes),
    }


def figure_of_json(value: Mapping[str, Any]) -> Figure:
    limit = value["target"]
    return Figure(
        name=value["name"],
        what=value["what"],
        unit=value["unit"],
        rounds=value["rounds"],
        by_clock=value["by_clock"],
        busy=value["busy"],
        load_busy=value["load_busy"],
        target=Target(limit["limit"], limit["at_most"]) if limit else None,
        notes=tuple(value["notes"]),
    )
