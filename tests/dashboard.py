"""Makes the picture of the dashboard in docs/alerts.md, from two nodes that are really used.

`make dashboard` runs it, for two minutes. Prometheus evaluates the queries of
deploy/grafana/dashboards/megaphone.json, and this module draws what they give, because Debian has
no package of Grafana. It writes to docs/pictures/.
"""

import asyncio
import json
import math
import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.plots import line, svg, text
from megaphone_client import Channel, Megaphone, MegaphoneError
from tests.support.documented import ROOT
from tests.support.process import BrokerProcess, broker_process
from tests.support.prometheus import DEPLOY, RULES, Prometheus, prometheus

DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboards" / "megaphone.json").read_text())
PICTURE = ROOT / "docs" / "pictures" / "dashboard.svg"
ROWS = ("Now", "Requests", "Delivery", "Channels and buffers")
"""The rows of the dashboard that are shown."""
LOAD_S = 120.0
STEP_S = 2
RATE_INTERVAL = "10s"
"""What Grafana puts in place of `$__rate_interval` at this step."""
RANDOM = random.Random(7)

COLUMN, HEIGHT, GAP = 344, 206, 12
"""The size of a panel, and the space between two of them."""
COLOURS = 7
MOST_LINES = 6


# -- What the nodes have to do


async def load(nodes: Sequence[BrokerProcess]) -> None:
    """Use two nodes over both faces for a while: most channels are read, some are not."""
    async with AsyncExitStack() as stack:
        await use(nodes, stack)


async def use(nodes: Sequence[BrokerProcess], stack: AsyncExitStack) -> None:
    work = []
    for node in nodes:
        for url in (node.url, f"grpc://{node.grpc_target}"):
            client = await stack.enter_async_context(Megaphone.from_url(url))
            made = [await client.create() for _ in range(12)]
            work += [write(client, one, 2.0 + number) for number, one in enumerate(made)]
            work += [read(client, one) for one in made[1:]]
            work += [be_wrong(client, made[1]), come_and_go(client)]
    with suppress(TimeoutError):
        async with asyncio.timeout(LOAD_S), asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)


async def write(client: Megaphone, channel: Channel, rate: float) -> None:
    """Write so many events a second, in waves."""
    while True:
        await asyncio.sleep(RANDOM.expovariate(rate * (1 + 0.7 * math.sin(time.monotonic() / 9))))
        with suppress(MegaphoneError):
            await client.write(channel.producer, "s", {"number": 1}, timeout_s=15)


async def read(client: Megaphone, channel: Channel) -> None:
    """Read, and go away for a moment now and then."""
    while True:
        with suppress(MegaphoneError, TimeoutError):
            async with (
                asyncio.timeout(RANDOM.uniform(5, 25)),
                client.read(channel.consumer) as some,
            ):
                async for _ in some:
                    await asyncio.sleep(RANDOM.random() * 0.03)
        await asyncio.sleep(RANDOM.random())


async def come_and_go(client: Megaphone) -> None:
    """Use a channel for some seconds, and then the next one."""
    while True:
        channel = await client.create(ttl_s=5)
        for number in range(RANDOM.randrange(10)):
            await client.write(channel.producer, "s", number)
        with suppress(TimeoutError):
            async with asyncio.timeout(2), client.read(channel.consumer) as events:
                async for _ in events:
                    pass


async def be_wrong(client: Megaphone, channel: Channel) -> None:
    """Write to channels that do not exist, and something that is not allowed."""
    while True:
        await asyncio.sleep(RANDOM.expovariate(2))
        agent, _, rest = channel.producer.partition(".")
        with suppress(MegaphoneError):
            await client.write(f"{agent}.{rest[::-1]}", "s", 1)
        with suppress(MegaphoneError):
            await client.write(channel.producer, "a b\n", 1)


# -- What Prometheus knows then


@dataclass(frozen=True, slots=True)
class Drawn:
    """A panel, with the values of its lines, by their names."""

    title: str
    unit: str
    is_number: bool
    """Whether it shows only the last value of each line."""
    lines: Mapping[str, Sequence[tuple[float, float]]]


def wanted_panels() -> Iterator[list[dict[str, Any]]]:
    """Yield the panels of each row of the picture."""
    row = ""
    panels: dict[str, list[dict[str, Any]]] = {name: [] for name in ROWS}
    for panel in DASHBOARD["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        elif row in panels:
            panels[row].append(panel)
    yield from panels.values()


def drawn(watcher: Prometheus, panel: Mapping[str, Any], start: float, end: float) -> Drawn:
    lines: dict[str, list[tuple[float, float]]] = {}
    for target in panel["targets"]:
        query = expression(target["expr"])
        found = watcher.call("query_range", query=query, start=start, end=end, step=STEP_S)
        for one in found["result"]:
            name = named(target["legendFormat"], one["metric"])
            values = [(at, float(value)) for at, value in one["values"]]
            lines[name] = [(at, value) for at, value in values if math.isfinite(value)]
    unit = panel["fieldConfig"]["defaults"]["unit"]
    return Drawn(panel["title"], unit, panel["type"] == "stat", lines)


def expression(query: str) -> str:
    """Return the query of a panel with its variables put in."""
    chosen = {"$job": "megaphone", "$instance": ".*", "$__rate_interval": RATE_INTERVAL}
    for name, value in chosen.items():
        query = query.replace(name, value)
    return query


def named(form: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda name: labels.get(name[1], ""), form)


# -- The picture


def picture(rows: Sequence[Sequence[Drawn]]) -> str:
    parts: list[str] = []
    y = 0.0
    for title, panels in zip(ROWS, rows, strict=True):
        parts.append(text(4, y + 16, title, "title"))
        y += 26
        if panels[0].is_number:
            parts += numbers(panels, y)
            y += 62
            continue
        for number, panel in enumerate(panels):
            x = number % 3 * (COLUMN + GAP)
            top = y + number // 3 * (HEIGHT + GAP)
            parts.append(f'<g transform="translate({x} {top:.0f})">{"".join(lines_of(panel))}</g>')
        y += math.ceil(len(panels) / 3) * (HEIGHT + GAP)
    return svg(3 * COLUMN + 2 * GAP, y, "The dashboard of two nodes", parts)


def numbers(panels: Sequence[Drawn], y: float) -> Iterator[str]:
    """Draw the panels that show only numbers, beside each other."""
    width = (3 * COLUMN + 2 * GAP) / len(panels)
    for number, panel in enumerate(panels):
        for name, values in panel.lines.items():
            yield text(number * width + 8, y + 14, panel.title)
            value = short(values[-1][1], panel.unit)
            yield text(number * width + 8, y + 40, f"{name}: {value}" if name else value, "value")


def lines_of(panel: Drawn) -> Iterator[str]:
    left, right, top, bottom = 46, COLUMN - 8, 28, HEIGHT - 60
    shown = dict(sorted(panel.lines.items(), key=lambda one: -sum(value for _, value in one[1])))
    shown = dict(list(shown.items())[:MOST_LINES])
    points = [point for values in shown.values() for point in values]
    yield text(left, 16, panel.title)
    highest = nice(max((value for _, value in points), default=1.0))
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - top)
        yield line(left, y, right, y, "grid")
        yield text(left - 6, y + 4, short(share * highest, panel.unit), "end")
    if not points:
        return
    first, last = min(at for at, _ in points), max(at for at, _ in points)
    for number, (_, values) in enumerate(shown.items()):
        places = " ".join(
            f"{left + (right - left) * (at - first) / max(1.0, last - first):.0f},"
            f"{bottom - (bottom - top) * value / highest:.1f}"
            for at, value in values
        )
        yield f'<polyline points="{places}" class="line s{number % COLOURS}"/>'
    yield from legend(list(shown), bottom + 18)


def legend(names: Sequence[str], y: float) -> Iterator[str]:
    x = 8.0
    for number, name in enumerate(names):
        length = 26 + 6.6 * len(name) + 2 * sum(letter.isupper() for letter in name)
        if x + length > COLUMN and x > 8.0:
            x, y = 8.0, y + 17
        yield f'<circle cx="{x + 5}" cy="{y - 4}" r="4" class="s{number % COLOURS}"/>'
        yield text(x + 13, y, name)
        x += length


def nice(value: float) -> float:
    """Return the next number of the form 1, 2, 4, 5 or 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= value * 0.999)


def short(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 or value == 0 else f"{1000 * value:.3g} ms"
    if unit == "bytes":
        return f"{value / 1e6:.3g} MB" if value < 1e9 else f"{value / 1e9:.3g} GB"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    return f"{value / 1000:.3g}k" if value >= 1000 else f"{value:.3g}"


def main() -> None:
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        nodes = {}
        for agent in ("node-1", "node-2"):
            (folder / agent).mkdir()
            settings: dict[str, Any] = {
                "agent": agent,
                "agent_warmup_secs": 0,
            }
            nodes[agent] = stack.enter_context(broker_process(folder / agent, **settings))
        targets = {agent: f"127.0.0.1:{node.http_port}" for agent, node in nodes.items()}
        watcher = stack.enter_context(prometheus(folder / "prometheus", targets, RULES.read_text()))
        start = time.time()
        asyncio.run(load(list(nodes.values())))
        end = time.time() - 1
        rows = [[drawn(watcher, one, start + 10, end) for one in row] for row in wanted_panels()]
    PICTURE.write_text(picture(rows))
    print(f"{PICTURE.name}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
