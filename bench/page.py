"""What of a run is kept: `bench/results/latest.json`, and the tables and plots of the page.

`python -m bench.page` writes the tables and plots again from the kept results.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.contestants import BARE, COMPILED, NCHAN, NGINX, ORIGINAL, OURS, REDIS
from bench.plots import Panel, bars, panels
from bench.report import PER_SECOND, Figure, figure_of_json, is_waiting_noted, quantity

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results" / "latest.json"
PAGE = ROOT / "docs" / "performance.md"
PLOTS = ROOT / "docs" / "plots"
BEGIN, END = "<!-- {} -->", "<!-- end of {} -->"
MOST_HOLDS = 10
SPEED = ("W1", "W2", "R1", "R2", "C1", "X1")
MEMORY = ("M1", "M2", "M3", "M4")
RPC = ("G1", "G2", "G3", "G4")

US, RUST = ("compiled", "interpreted"), "Rust broker"
RATIOS = ("ratio, compiled", "ratio, interpreted")

Row = Sequence[str]


# -- Results


def merged(old: Mapping[str, Any], new: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """Return the new results with those old figures whose scenario was not measured again."""
    measured = {scenario(figure["name"]) for figure in new["figures"]}
    kept = [one for one in old.get("figures", []) if scenario(one["name"]) not in measured]
    figures = sorted([*kept, *new["figures"]], key=lambda one: order.index(scenario(one["name"])))
    return {"machine": new["machine"], "figures": figures}


def scenario(name: str) -> str:
    """Return the name of the scenario of a figure."""
    return name.partition(" ")[0]


def save(new: Mapping[str, Any], order: Sequence[str]) -> None:
    """Keep results, and write the page and the plots."""
    old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    results = merged(old, new, order)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    write_page(results)


def write_page(results: Mapping[str, Any]) -> None:
    PAGE.write_text(rendered(PAGE.read_text(), results))
    PLOTS.mkdir(exist_ok=True)
    for name, drawing in drawings(figures_of(results)).items():
        (PLOTS / f"{name}.svg").write_text(drawing)


def figures_of(results: Mapping[str, Any]) -> list[Figure]:
    return [figure_of_json(one) for one in results["figures"]]


# -- Tables


def rendered(page: str, results: Mapping[str, Any]) -> str:
    """Return the page with its tables written anew between their markers."""
    figures = figures_of(results)
    page = replaced(page, "machine", conditions(results["machine"], figures))
    for name, table in TABLES.items():
        page = replaced(page, name, table(figures))
    return page


def replaced(page: str, name: str, content: str) -> str:
    begin, end = BEGIN.format(name), END.format(name)
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", page)


def conditions(machine: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    """Describe the machine, and what makes the figures less sure."""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("aiohttp", "grpcio", "uvloop"))
    sentences = [f"Measured with {machine['system']}, Python {machine['python']}, {versions}."]
    if counts := [len(one.rounds[OURS]) for one in figures if one.name in SPEED]:
        sentences.append(f"The rates are of at least {min(counts)} rounds.")
    if waiting := [scenario(one.name) for one in figures if is_waiting_noted(one)]:
        sentences.append(
            "Other processes computed on the same cores meanwhile, so that latencies and rates by"
            f" the clock are not to be trusted: {', '.join(dict.fromkeys(waiting))}."
        )
    return "\n".join(sentences)


def markdown(head: Row, rows: Iterable[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def speed_table(figures: Sequence[Figure]) -> str:
    head = ("", "work", *US, RUST, *RATIOS, "nginx, nchan", "by the clock", "busy", "load")
    return markdown(head, [speed_row(one) for one in figures if one.name in SPEED])


def speed_row(figure: Figure) -> Row:
    sides = [name for name in (COMPILED, OURS, ORIGINAL, NGINX, NCHAN) if name in figure.rounds]
    return (
        figure.name,
        figure.what,
        *beside(figure, ORIGINAL),
        ", ".join(f"{name} {number(figure, name)}" for name in sides if name in (NGINX, NCHAN)),
        " · ".join(f"{median(figure.by_clock[name]):,.0f}" for name in sides),
        " · ".join(f"{figure.busy[name]:.0%}" for name in sides),
        " · ".join(f"{figure.load_busy[name]:.0%}" for name in sides),
    )


def number(figure: Figure, side: str) -> str:
    if side not in figure.rounds:
        return ""
    value = figure.value(side)
    return f"{value:,.0f}" if figure.unit == PER_SECOND else quantity(value, figure.unit)


def beside(figure: Figure, other: str) -> Row:
    """Return the figures of both builds of the broker and of another server, and their ratios."""
    return (
        number(figure, COMPILED),
        number(figure, OURS),
        number(figure, other),
        ratio(figure, other, COMPILED),
        ratio(figure, other),
    )


def ratio(figure: Figure, to: str, of: str = OURS) -> str:
    ratios = figure.ratios(to, of) if {to, of} <= figure.rounds.keys() else []
    if not ratios:
        return ""
    text = f"{median(ratios):.2f}"
    return text if len(ratios) == 1 else f"{text} ({min(ratios):.2f} to {max(ratios):.2f})"


def latency_table(figures: Sequence[Figure]) -> str:
    head = ("", *US, RUST, *RATIOS, "nchan")
    rows = [
        (one.name, *beside(one, ORIGINAL), number(one, NCHAN))
        for one in figures
        if scenario(one.name) == "L1"
    ]
    return markdown(head, rows)


def beside_original(names: Sequence[str]) -> Callable[[Sequence[Figure]], str]:
    def table(figures: Sequence[Figure]) -> str:
        rows = [
            (one.name, one.what, *beside(one, ORIGINAL))
            for one in figures
            if scenario(one.name) in names
        ]
        return markdown(("", "what", *US, RUST, *RATIOS), rows)

    return table


def shared_table(figures: Sequence[Figure]) -> str:
    """Return a table of what a node does with its channels in Redis, beside one with memory."""
    rows = [
        (one.name, one.what, number(one, OURS), number(one, REDIS), ratio(one, REDIS))
        for one in figures
        if scenario(one.name) in (*SPEED, "L1", *MEMORY) and REDIS in one.rounds
    ]
    return markdown(("", "what", "memory", "Redis", "ratio"), rows)


def rpc_table(figures: Sequence[Figure]) -> str:
    head = ("", "work", *US, "bare server", *RATIOS, "load")
    rows = [
        (
            one.name,
            one.what,
            *beside(one, BARE),
            f"{one.load_busy[OURS]:.0%}" if one.load_busy else "",
        )
        for one in figures
        if scenario(one.name) in RPC
    ]
    return markdown(head, rows)


def large_table(figures: Sequence[Figure]) -> str:
    rows = [
        (one.what, one.target.text(one.unit) if one.target else "", number(one, OURS))
        for one in figures
        if one.name in ("http-large", "grpc-large")
    ]
    return markdown(("a backlog of 100 events", "goal", "by the clock"), rows)


def longest(name: str, thing: str) -> Callable[[Sequence[Figure]], str]:
    """Return a table of the longest of many figures."""

    def table(figures: Sequence[Figure]) -> str:
        some = [one for one in figures if one.name == name]
        some.sort(key=lambda one: one.ours, reverse=True)
        rows = [(one.what.removeprefix("held by "), f"{one.ours:.1f}") for one in some[:MOST_HOLDS]]
        return markdown((f"the longest {len(rows)} of {len(some)} {thing}", "ms"), rows)

    return table


def capacity_table(figures: Sequence[Figure]) -> str:
    rows = []
    for one in figures:
        if scenario(one.name) == "capacity":
            [usual] = one.others
            rows.append((one.what, number(one, OURS), number(one, usual), ratio(one, usual)))
    return markdown(("calls", "per second", "at a capacity of 100", "ratio"), rows)


def workers_table(figures: Sequence[Figure]) -> str:
    rows = []
    for one in figures:
        if scenario(one.name) == "P1":
            [alone] = one.others
            rows.append((one.what, number(one, OURS), number(one, alone), ratio(one, alone)))
    return markdown(("per second of CPU", "two workers", "one worker", "ratio"), rows)


TABLES: Mapping[str, Callable[[Sequence[Figure]], str]] = {
    "speed": speed_table,
    "latency": latency_table,
    "memory": beside_original(MEMORY),
    "shared": shared_table,
    "workers": workers_table,
    "grpc": rpc_table,
    "growth": beside_original(("S1",)),
    "large": large_table,
    "capacity": capacity_table,
    "hold": longest("hold", "requests"),
    "store": longest("store", "calls"),
}


# -- Plots


def drawings(figures: Sequence[Figure]) -> dict[str, str]:
    """Return the plots for which there are figures, by the names of their files."""
    advantages = {
        label(one): {name: advantage(one, name) for name in (COMPILED, OURS) if name in one.rounds}
        for one in figures
        if scenario(one.name) in (*SPEED, "L1", *MEMORY) and ORIGINAL in one.rounds
    }
    plots = {}
    if advantages:
        title = "How many times as good as the Rust broker (0.10): more is better"
        plots["ratios"] = bars(title, advantages)
    if latencies := [latency_panel(figures, name) for name in ("L1", "G3") if has(figures, name)]:
        plots["latency"] = panels("Latency at 500 writes a second", latencies)
    if has(figures, "S1"):
        plots["growth"] = panels("What more channels do to a node", growth_panels(figures))
    return plots


def label(figure: Figure) -> str:
    """Return the name of a figure, and the beginning of what it is."""
    is_latency = scenario(figure.name) == "L1"
    return f"{figure.name} {'latency' if is_latency else figure.what.partition(', ')[0]}"


def has(figures: Sequence[Figure], name: str) -> bool:
    return any(scenario(one.name) == name for one in figures)


def advantage(figure: Figure, of: str) -> float:
    """Return how many times as good a build of ours is: more work, or less time or memory."""
    value = median(figure.ratios(ORIGINAL, of))
    return 1 / value if figure.less_is_better else value


def latency_panel(figures: Sequence[Figure], name: str) -> Panel:
    some = [one for one in figures if scenario(one.name) == name]
    title = "HTTP, milliseconds" if name == "L1" else "gRPC, milliseconds"
    return panel(title, some, [one.name.split()[1] for one in some])


def growth_panels(figures: Sequence[Figure]) -> list[Panel]:
    """Return one panel for each part of S1, over the number of channels."""
    parts: dict[str, list[Figure]] = {}
    for one in figures:
        if scenario(one.name) == "S1":
            parts.setdefault(one.name.split()[1], []).append(one)
    return [
        panel(
            f"{some[0].what.rpartition(', with')[0]}, {some[0].unit}",
            some,
            [f"{int(one.name.split()[2]):,}" for one in some],
        )
        for some in parts.values()
    ]


def panel(title: str, figures: Sequence[Figure], places: Sequence[str]) -> Panel:
    sides = [side for side in figures[0].rounds if all(side in one.rounds for one in figures)]
    return Panel(title, places, {side: [one.value(side) for one in figures] for side in sides})


if __name__ == "__main__":
    write_page(json.loads(RESULTS.read_text()))
