"""S1: what becomes of W1, R1, L1 and the memory when a node has more channels.

Each node is new, because idle channels expire after a minute.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median

from bench.batches import TEN_TO_MANY
from bench.contestants import BROKERS, Contestant
from bench.latency import Flow
from bench.processes import resident_bytes
from bench.report import BYTES, MILLISECONDS, PER_SECOND, Figure
from bench.requests import WRITE
from bench.rounds import Plan, Sample, progress
from bench.servers import Broker


@dataclass(frozen=True, slots=True)
class Part:
    """One thing that is measured on a node."""

    name: str
    what: str
    unit: str
    measure: Callable[[Broker, ExitStack, Plan], list[float]]


def rates(
    prepare: Callable[[Broker, ExitStack], Callable[[float], Sample]],
) -> Callable[[Broker, ExitStack, Plan], list[float]]:
    def measure(server: Broker, stack: ExitStack, plan: Plan) -> list[float]:
        measured = prepare(server, stack)
        measured(plan.warm_up_s)
        return [measured(plan.round_s).per_core_second for _ in range(rounds(plan))]

    return measure


def latencies(server: Broker, stack: ExitStack, plan: Plan) -> list[float]:
    flow = Flow(server, stack)
    flow.measure(plan.warm_up_s)
    seconds = plan.latency_s / 2
    return [flow.measure(seconds).percentile_ms(0.99) for _ in range(rounds(plan))]


def rounds(plan: Plan) -> int:
    """Return how often each part is measured, which is less often than elsewhere."""
    return max(1, plan.rounds // 2)


def memory(server: Broker, _stack: ExitStack, _plan: Plan) -> list[float]:
    return [float(resident_bytes(server.pid))]


PARTS = (
    Part("memory", "memory of a node", BYTES, memory),
    Part("W1", "one write a request", PER_SECOND, rates(WRITE.prepare)),
    Part(
        "R1", "ten events to 1,000 open reads, deliveries", PER_SECOND, rates(TEN_TO_MANY.prepare)
    ),
    Part("L1", "500 writes a second, p99", MILLISECONDS, latencies),
)


async def measure(contestants: Sequence[Contestant], plan: Plan) -> list[Figure]:
    measured = {size: await measure_size(contestants, plan, size) for size in plan.node_sizes}
    return [
        Figure(
            name=f"S1 {part.name} {size}",
            what=f"{part.what}, with {size:,} channels",
            unit=part.unit,
            rounds={side: values[part.name] for side, values in sides.items()},
        )
        for part in PARTS
        for size, sides in measured.items()
    ]


async def measure_size(
    contestants: Sequence[Contestant], plan: Plan, size: int
) -> Mapping[str, Mapping[str, list[float]]]:
    """Return, for each contestant and part, the values."""
    values = {}
    for contestant in contestants:
        if contestant.name in BROKERS:
            async with contestant.start() as server:
                assert isinstance(server, Broker)
                of_parts = await asyncio.to_thread(measure_node, server, plan, size)
            values[contestant.name] = of_parts
            texts = ", ".join(f"{name} {median(all_):,.2f}" for name, all_ in of_parts.items())
            progress(f"S1: {contestant.name} with {size:,} channels: {texts}")
    return values


def measure_node(server: Broker, plan: Plan, size: int) -> dict[str, list[float]]:
    server.make_channels(size)
    values = {}
    for part in PARTS:
        with ExitStack() as connections:
            values[part.name] = part.measure(server, connections, plan)
    return values
