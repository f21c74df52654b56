"""Plots as SVG, readable on light and on dark pages. They are written by hand: they are simple."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH = 720
ROW = 26
BAR = 15
GAP = 8
LABEL = 330
PANEL = 340
PANEL_HEIGHT = 220
MARGIN = 48
SERIES = {
    "ours": "this broker, interpreted",
    "original": "Rust broker (0.10)",
    "before": "this broker before",
    "nchan": "nchan",
    "nginx": "nginx",
    "grpc.aio": "bare server",
    "redis": "with Redis",
    "compiled": "this broker, compiled",
}
"""The contestants in the order of the colours `.s0`, `.s1`, … of the style, and their titles."""

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .value { font-size: 22px }
.end { text-anchor: end } .middle { text-anchor: middle }
.grid { stroke: #d1d9e0 } .one { stroke: #59636e; stroke-width: 1.5 }
.line { fill: none; stroke-width: 2 }
.s0 { --colour: #0969da } .s1 { --colour: #bc4c00 } .s2 { --colour: #8250df }
.s3 { --colour: #1a7f37 } .s4 { --colour: #9a6700 } .s5 { --colour: #59636e }
.s6 { --colour: #bf3989 } .s7 { --colour: #0550ae }
rect, circle { fill: var(--colour) } .line { stroke: var(--colour) }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc }
  .grid { stroke: #3d444d } .one { stroke: #9198a1 }
  .s0 { --colour: #4493f8 } .s1 { --colour: #f0883e } .s2 { --colour: #ab7df8 }
  .s3 { --colour: #3fb950 } .s4 { --colour: #d29922 } .s5 { --colour: #9198a1 }
  .s6 { --colour: #db61a2 } .s7 { --colour: #a5d6ff }
}
"""


def svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}"'
    described = (f'{head} role="img">', f"<title>{escape(title)}</title>")
    return "\n".join([*described, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


def text(x: float, y: float, content: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def colour(series: str) -> str:
    return f"s{list(SERIES).index(series)}"


# -- Scales


@dataclass(frozen=True, slots=True)
class LogScale:
    """Maps values to places, so that equal ratios are equal distances."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """Return 1, 2 and 5 times the powers of ten that are within the scale, at most six."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        powers = [10.0**power for power in range(first, last + 1)]
        fine = [step * power for power in powers for step in (1, 2, 5)]
        for choice in (fine, powers):
            within = [tick for tick in choice if self.low * 0.999 <= tick <= self.high * 1.001]
            if len(within) <= 6:
                break
        return within


def around(values: Sequence[float]) -> tuple[float, float]:
    """Return bounds for a logarithmic scale with some room on both sides."""
    return min(values) / 1.5, max(values) * 1.5


def short(value: float) -> str:
    """Return a number with two or three digits and a unit."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


# -- Bars of ratios


def bars(title: str, groups: Mapping[str, Mapping[str, float]]) -> str:
    """Draw one bar for each ratio, which goes from 1 to the right if it is more, else to the left.

    The bars of a group are below each other, one for each contestant. The axis is logarithmic, so
    that half and twice look alike.
    """
    low, high = around([1.0, *(ratio for group in groups.values() for ratio in group.values())])
    scale = LogScale(low, high, LABEL, WIDTH - MARGIN)
    bottom = MARGIN + sum(BAR * len(group) + GAP for group in groups.values()) + ROW
    parts = [
        text(8, 18, title, "title"),
        *legend([name for one in groups.values() for name in one]),
    ]
    for tick in scale.ticks:
        parts += [
            line(scale(tick), MARGIN, scale(tick), bottom - ROW / 2, "grid"),
            text(scale(tick), bottom, f"{tick:g}", "middle"),
        ]
    y = float(MARGIN)
    for label, group in groups.items():
        parts.append(text(LABEL - 40, y + BAR * len(group) / 2 + 4, label, "end"))
        for name, ratio in group.items():
            left, right = sorted((scale(1), scale(ratio)))
            place = f'x="{left:.1f}" y="{y:.1f}" width="{right - left:.1f}" height="{BAR - 2}"'
            parts += [
                f'<rect {place} class="{colour(name)}"/>',
                text(right + 4, y + BAR - 4, f"{ratio:.2f}"),
            ]
            y += BAR
        y += GAP
    parts.append(line(scale(1), MARGIN, scale(1), bottom - ROW / 2, "one"))
    return svg(WIDTH, bottom + 12, title, parts)


# -- Lines


@dataclass(frozen=True, slots=True)
class Panel:
    """A plot of several lines over the same places. The axis of values is logarithmic."""

    title: str
    places: Sequence[str]
    lines: Mapping[str, Sequence[float]]
    """For each contestant one value a place."""


def panels(title: str, all_: Sequence[Panel]) -> str:
    """Draw panels beside each other, two in a row."""
    parts = [text(8, 18, title, "title"), *legend([name for panel in all_ for name in panel.lines])]
    for number, panel in enumerate(all_):
        x, y = number % 2 * (PANEL + 30), MARGIN + number // 2 * (PANEL_HEIGHT + 20)
        parts.append(f'<g transform="translate({x} {y})">{"".join(drawn(panel))}</g>')
    rows = math.ceil(len(all_) / 2)
    return svg(WIDTH, MARGIN + rows * (PANEL_HEIGHT + 20), title, parts)


def legend(names: Sequence[str]) -> list[str]:
    parts, x = [], 8.0
    for name in dict.fromkeys(names):
        parts.append(f'<circle cx="{x + 5}" cy="34" r="5" class="{colour(name)}"/>')
        parts.append(text(x + 14, 38, SERIES[name]))
        x += 30 + 7 * len(SERIES[name])
    return parts


def drawn(panel: Panel) -> list[str]:
    left, right, top, bottom = 48, PANEL, 28, PANEL_HEIGHT - 24
    scale = LogScale(
        *around([one for values in panel.lines.values() for one in values]), bottom, top
    )
    step = (right - left) / len(panel.places)
    places = [left + step * (number + 0.5) for number in range(len(panel.places))]
    parts = [text(left, 18, panel.title)]
    for tick in scale.ticks:
        parts += [
            line(left, scale(tick), right, scale(tick), "grid"),
            text(left - 6, scale(tick) + 4, short(tick), "end"),
        ]
    for x, place in zip(places, panel.places, strict=True):
        parts.append(text(x, bottom + 18, place, "middle"))
    for name, values in panel.lines.items():
        points = [(x, scale(value)) for x, value in zip(places, values, strict=True)]
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{joined}" class="line {colour(name)}"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="{colour(name)}"/>' for x, y in points
        ]
    return parts
