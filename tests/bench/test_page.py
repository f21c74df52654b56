"""The tables and plots that are made of the figures of a run."""

from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from bench.latency import Latencies
from bench.page import drawings, figures_of, merged, rendered
from bench.plots import LogScale, Panel, bars, panels
from bench.report import BYTES, MILLISECONDS, PER_SECOND, Figure, as_json, rate, table
from bench.rounds import Sample

SVG = "{http://www.w3.org/2000/svg}"

WRITES = Figure(
    name="W1",
    what="one write a request, writes",
    unit=PER_SECOND,
    rounds={
        "ours": [900.0, 1_000.0, 1_200.0],
        "compiled": [1_500.0, 1_600.0, 1_700.0],
        "original": [2_000.0, 2_000.0, 2_000.0],
    },
    by_clock={
        "ours": [800.0, 900.0, 1_000.0],
        "compiled": [1_400.0, 1_500.0, 1_600.0],
        "original": [1_000.0, 1_100.0, 1_200.0],
    },
    busy={"ours": 0.9, "compiled": 0.8, "original": 0.55},
    load_busy={"ours": 0.1, "compiled": 0.2, "original": 0.3},
)
READS = Figure(
    name="M2",
    what="idle open read",
    unit=BYTES,
    rounds={"ours": [2_000.0], "original": [16_000.0]},
)
LATENCY = Figure(
    name="L1 p50",
    what="500 writes a second over 100 channels, p50",
    unit=MILLISECONDS,
    rounds={"ours": [0.2, 0.3], "original": [0.1, 0.1], "nchan": [0.05, 0.05]},
)
PAGE = """\
Before.

<!-- speed -->
old
<!-- end of speed -->

Between.

<!-- memory -->
<!-- end of memory -->
"""


def results(*figures: Figure) -> dict[str, Any]:
    return as_json(figures, {})


def test_tables_stand_between_their_markers() -> None:
    page = rendered(PAGE, results(WRITES, READS))
    assert page.splitlines() == [
        "Before.",
        "",
        "<!-- speed -->",
        "|  | work | compiled | interpreted | Rust broker | ratio, compiled | ratio, interpreted"
        " | nginx, nchan | by the clock | busy | load |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| W1 | one write a request, writes | 1,600 | 1,000 | 2,000 | 0.80 (0.75 to 0.85)"
        " | 0.50 (0.45 to 0.60) |  | 1,500 · 900 · 1,100 | 80% · 90% · 55% | 20% · 10% · 30% |",
        "<!-- end of speed -->",
        "",
        "Between.",
        "",
        "<!-- memory -->",
        "|  | what | compiled | interpreted | Rust broker | ratio, compiled | ratio, interpreted |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| M2 | idle open read |  | 2,000 B | 16,000 B |  | 0.12 |",
        "<!-- end of memory -->",
    ]


def test_a_figure_of_zero_has_no_ratio() -> None:
    nothing = replace(READS, rounds={"ours": [300.0], "original": [0.0]})
    assert "| M2 | idle open read |  | 300 B | 0 B |  |  |" in rendered(PAGE, results(nothing))
    assert results(nothing)["figures"][0]["ratios"] == {}
    assert "0 B" in table([nothing])


def test_tables_are_replaced() -> None:
    once = rendered(PAGE, results(WRITES, READS))
    assert rendered(once, results(WRITES, READS)) == once
    faster = replace(WRITES, rounds={"ours": [4_000.0], "original": [2_000.0]})
    assert "|  | 4,000 | 2,000 |  | 2.00 |" in rendered(once, results(faster, READS))


def test_a_page_without_markers_stays_as_it_is() -> None:
    assert rendered("nothing\n", results(WRITES)) == "nothing\n"


def test_figures_are_the_same_after_they_were_kept() -> None:
    assert figures_of(results(WRITES, READS, LATENCY)) == [WRITES, READS, LATENCY]


def test_scenarios_that_were_not_measured_again_are_kept() -> None:
    old = results(WRITES, replace(LATENCY, name="L1 p50"), replace(LATENCY, name="L1 p99"))
    new = results(READS, replace(LATENCY, name="L1 p50", what="new"))
    kept = merged(old, new, ["M2", "L1", "W1"])["figures"]
    assert [(one["name"], one["what"]) for one in kept] == [
        ("M2", READS.what),
        ("L1 p50", "new"),
        ("W1", WRITES.what),
    ]


def test_the_table_for_people_has_a_line_for_each_other_contestant() -> None:
    _, _, first, second = table([LATENCY]).splitlines()
    assert first.split()[0:2] == ["L1", "p50"]
    assert "original" in first
    assert second.split()[2:5] == ["nchan", "0.05", "ms"]


# -- Samples


def test_rates_are_of_the_computing_of_the_server() -> None:
    sample = Sample(count=100, seconds=4.0, core_seconds=2.0, load_seconds=1.0)
    figure = rate("W1", "writes", {"ours": [sample]})
    assert figure.rounds == {"ours": [50.0]}
    assert figure.by_clock == {"ours": [25.0]}
    assert figure.busy == {"ours": 0.5}
    assert figure.load_busy == {"ours": 0.25}
    assert figure.notes == ()


def test_a_server_that_had_to_share_its_core_is_noted() -> None:
    alone, shared = (Sample(1, 1.0, 0.5, waiting_seconds=waited) for waited in (0.01, 0.4))
    assert rate("W1", "writes", {"ours": [alone, alone]}).notes == ()
    figure = rate("W1", "writes", {"ours": [alone, shared]})
    assert "40%" in figure.notes[0]
    page = "<!-- machine --><!-- end of machine -->"
    assert "not to be trusted: W1." in rendered(page, results(figure))
    assert "not to be trusted" not in rendered(page, results(WRITES))


def test_a_percentile_is_not_exceeded_by_that_share() -> None:
    latencies = Latencies([number / 1000 for number in range(1_000, 0, -1)], Sample(1, 1.0, 1.0))
    shares = (0.0, 0.5, 0.99, 0.999)
    assert [latencies.percentile_ms(share) for share in shares] == [1, 501, 991, 1000]


# -- Plots


def bars_of(drawing: str) -> list[tuple[float, float]]:
    """Return where each bar begins, and how long it is."""
    found = ElementTree.fromstring(drawing).findall(f".//{SVG}rect")
    return [(float(one.get("x", "")), float(one.get("width", ""))) for one in found]


def test_twice_and_half_are_bars_of_the_same_length_on_both_sides_of_one() -> None:
    (left, length), (right, other_length) = bars_of(
        bars("t", {"half": {"ours": 0.5}, "twice": {"ours": 2.0}})
    )
    assert length == pytest.approx(other_length, abs=0.2)
    assert left + length == pytest.approx(right, abs=0.2)


def test_less_memory_and_more_work_are_both_an_advantage() -> None:
    drawing = drawings([replace(WRITES, rounds={"ours": [8.0], "original": [1.0]}), READS])[
        "ratios"
    ]
    (_, work), (_, memory) = bars_of(drawing)
    assert work == pytest.approx(memory, abs=0.2)


def test_each_build_has_a_bar_of_its_own() -> None:
    drawing = bars("t", {"work": {"compiled": 4.0, "ours": 2.0}, "memory": {"ours": 2.0}})
    (_, compiled), (_, ours), (_, memory) = bars_of(drawing)
    assert compiled == pytest.approx(2 * ours, abs=0.2)
    assert ours == pytest.approx(memory, abs=0.2)


def test_every_value_is_a_point_and_more_is_higher() -> None:
    drawing = panels("t", [Panel("p", ["1", "2", "3"], {"ours": [1, 10, 100], "nchan": [5, 5, 5]})])
    ours, nchan = (
        [tuple(map(float, point.split(","))) for point in line.get("points", "").split()]
        for line in ElementTree.fromstring(drawing).findall(f".//{SVG}polyline")
    )
    assert [x for x, _ in ours] == [x for x, _ in nchan]
    first, second, third = (y for _, y in ours)
    assert first - second == pytest.approx(second - third, abs=0.2)
    assert first > third


def test_a_plot_escapes_its_texts() -> None:
    ElementTree.fromstring(bars("a < b & c", {"<": {"ours": 2.0}}))


def test_plots_are_drawn_only_of_what_was_measured() -> None:
    assert set(drawings([WRITES])) == {"ratios"}
    assert set(drawings([LATENCY])) == {"ratios", "latency"}
    assert drawings([]) == {}


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.4, 6.0, [0.5, 1, 2, 5]), (1.0, 1_000_000.0, [10.0**n for n in range(7)])],
)
def test_a_scale_has_few_round_ticks(low: float, high: float, ticks: list[float]) -> None:
    assert LogScale(low, high, 0, 1).ticks == pytest.approx(ticks)
