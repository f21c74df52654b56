"""`python -m bench`: measure, and print the figures."""

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from bench import (
    access,
    batches,
    capacity,
    growth,
    hold,
    large,
    latency,
    life,
    memory,
    page,
    requests,
    rpc,
    store,
    workers,
)
from bench.contestants import OTHERS, Contestant, chosen
from bench.processes import BenchError, allow_open_files, cores_at_start, go_to_load_cores
from bench.report import Figure, as_json, legend, machine, table
from bench.rounds import FULL, QUICK, Plan, progress
from megaphone.cli.serve import new_event_loop

MEASUREMENT_TIMEOUT_S = 300.0

Measurement = Callable[[Sequence[Contestant], Plan], Awaitable[list[Figure]]]
SCENARIOS: dict[str, Measurement] = {
    "W1": requests.WRITE.measure,
    "W2": batches.ONE_TO_MANY.measure,
    "R1": batches.TEN_TO_MANY.measure,
    "R2": batches.FIFTY_TO_ONE.measure,
    "L1": latency.measure,
    "C1": requests.CREATE.measure,
    "X1": life.LIFE.measure,
    "M1": memory.CHANNEL.measure,
    "M2": memory.READ.measure,
    "M3": memory.EVENT.measure,
    "M4": memory.CONNECTION.measure,
    "G1": rpc.measure_batches,
    "G2": rpc.measure_writes,
    "G3": rpc.measure_latency,
    "G4": rpc.measure_idle_reads,
    "P1": workers.measure,
    "S1": growth.measure,
    "http-large": large.measure_http,
    "grpc-large": large.measure_grpc,
    "capacity": capacity.measure,
    "hold": hold.measure,
    "store": store.measure,
    "access": access.measure,
}


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure the broker beside others that do the same work, in turn in one run.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--save",
        action="store_true",
        help="keep the figures in bench/results, and write them into docs/performance.md",
    )
    parser.add_argument(
        "--only",
        action="append",
        choices=SCENARIOS,
        metavar="NAME",
        help=f"measure only this; may be repeated: {', '.join(SCENARIOS)}",
    )
    parser.add_argument(
        "--against",
        type=names,
        default=list(OTHERS),
        metavar="NAMES",
        help=f"the others, separated by commas, or an empty text (default: {','.join(OTHERS)})",
    )
    parser.add_argument(
        "--before",
        type=Path,
        metavar="PATH",
        help="another checkout of this broker, set up there, that is measured too",
    )
    return parser.parse_args(arguments)


def names(text: str) -> list[str]:
    """Raises: argparse.ArgumentTypeError, if there is no such contestant."""
    given = text.split(",") if text else []
    if unknown := [name for name in given if name not in OTHERS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(OTHERS)}")
    return given


async def run(
    scenarios: Sequence[str], contestants: Sequence[Contestant], plan: Plan
) -> tuple[list[Figure], dict[str, str]]:
    """Do one scenario after the other. Returns: the figures, and the errors by name."""
    figures: list[Figure] = []
    failures: dict[str, str] = {}
    for name in scenarios:
        began = time.monotonic()
        try:
            async with asyncio.timeout(MEASUREMENT_TIMEOUT_S):
                figures += await SCENARIOS[name](contestants, plan)
        except Exception as error:
            failures[name] = reason(error)
            progress(f"{name}: failed: {failures[name]}")
        else:
            progress(f"{name}: done in {time.monotonic() - began:.1f} s")
    return figures, failures


def reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, BlockingIOError):
        return "a server did not answer in time"
    return str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"


async def run_until_told(
    scenarios: Sequence[str], contestants: Sequence[Contestant], plan: Plan
) -> tuple[list[Figure], dict[str, str]]:
    """Measure. SIGINT and SIGTERM end the measurement and every process that it has started."""
    task = asyncio.create_task(run(scenarios, contestants, plan))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task


def main() -> int:
    arguments = parsed()
    plan = QUICK if arguments.quick else FULL
    try:
        contestants, absent = chosen(arguments.against, arguments.before)
    except BenchError as error:
        progress(str(error))
        return 2
    for line in (*(f"{one.name}: {one.what}" for one in contestants), *absent):
        progress(line)
    allow_open_files()
    go_to_load_cores()
    if cores_at_start is None:
        progress("one core only, or no choice of cores: nothing is pinned, spreads will be wide")
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            figures, failures = runner.run(
                run_until_told(arguments.only or list(SCENARIOS), contestants, plan)
            )
    except asyncio.CancelledError:
        progress("stopped")
        return 1
    results = as_json(figures, failures)
    if arguments.save:
        page.save(results, list(SCENARIOS))
    if arguments.json:
        print(json.dumps(results))
    else:
        show(figures, failures)
    return 1 if failures else 0


def show(figures: list[Figure], failures: dict[str, str]) -> None:
    print(f"\n{', '.join(f'{key} {value}' for key, value in machine().items())}\n")
    print(table(figures))
    print(f"\n{legend(figures)}")
    for name, why in failures.items():
        print(f"\n{name} FAILED: {why}")


if __name__ == "__main__":
    sys.exit(main())
