"""`python -m bench`: measure, and print the results."""

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from bench import capacity, fanout, hold, large, memory, store, streams, writes
from bench.processes import BenchError, allow_open_files, cores_at_start, go_to_load_cores
from bench.report import Result, as_json, legend, machine, table
from bench.rounds import FULL, QUICK, Plan, progress
from megaphone.cli.serve import new_event_loop

MEASUREMENT_TIMEOUT_S = 120.0

MEASUREMENTS: dict[str, Callable[[Plan], Awaitable[list[Result]]]] = {
    "write": writes.measure,
    "http-stream": streams.measure_http,
    "grpc-stream": streams.measure_grpc,
    "http-large": large.measure_http,
    "grpc-large": large.measure_grpc,
    "fan-out": fanout.measure,
    "capacity": capacity.measure,
    "hold": hold.measure,
    "store": store.measure,
    "idle-channel": memory.measure_channels,
    "idle-http-read": memory.measure_http_reads,
    "idle-grpc-read": memory.measure_grpc_reads,
}


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure the broker, always against something bare in the same run.",
    )
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--only",
        action="append",
        choices=MEASUREMENTS,
        metavar="NAME",
        help=f"measure only this; may be repeated: {', '.join(MEASUREMENTS)}",
    )
    parser.add_argument(
        "--load",
        choices=("auto", "wrk", "python"),
        default="auto",
        help="what sends one write per request (default: wrk, if it is here)",
    )
    return parser.parse_args(arguments)


async def run(names: list[str], plan: Plan) -> tuple[list[Result], dict[str, str]]:
    """Do one measurement after the other. Returns: the results, and the errors by name."""
    results: list[Result] = []
    failures: dict[str, str] = {}
    for name in names:
        began = time.monotonic()
        try:
            async with asyncio.timeout(MEASUREMENT_TIMEOUT_S):
                results += await MEASUREMENTS[name](plan)
        except Exception as error:
            failures[name] = reason(error)
            progress(f"{name}: failed: {failures[name]}")
        else:
            progress(f"{name}: done in {time.monotonic() - began:.1f} s")
    return results, failures


def reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error) if isinstance(error, BenchError) else f"{type(error).__name__}: {error}"


async def run_until_told(names: list[str], plan: Plan) -> tuple[list[Result], dict[str, str]]:
    """Measure. SIGINT and SIGTERM end the measurement and every process that it has started."""
    task = asyncio.create_task(run(names, plan))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task


def main() -> int:
    arguments = parsed()
    plan = replace(QUICK if arguments.quick else FULL, load=arguments.load)
    allow_open_files()
    go_to_load_cores()
    if cores_at_start is None:
        progress("one core only, or no choice of cores: nothing is pinned, spreads will be wide")
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            results, failures = runner.run(
                run_until_told(arguments.only or list(MEASUREMENTS), plan)
            )
    except asyncio.CancelledError:
        progress("stopped")
        return 1
    if arguments.json:
        print(json.dumps(as_json(results, failures)))
    else:
        show(results, failures)
    return 1 if failures else 0


def show(results: list[Result], failures: dict[str, str]) -> None:
    print(f"\n{', '.join(f'{key} {value}' for key, value in machine().items())}\n")
    print(table(results))
    print(f"\n{legend(results)}")
    for name, why in failures.items():
        print(f"\n{name} FAILED: {why}")


if __name__ == "__main__":
    sys.exit(main())
