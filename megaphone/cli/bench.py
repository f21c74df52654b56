"""`megaphone bench`: measure a broker, and check that it delivers what it has taken."""

import csv
import io
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import quote

import msgspec
import typer

import megaphone
from megaphone.cli import contexts
from megaphone.cli.calls import Broker, ContextOption, UrlOption, broker_for, run
from megaphone.cli.durations import duration
from megaphone.cli.exits import Exit, leave, say
from megaphone.cli.plan import Kind, Plan

if TYPE_CHECKING:
    from megaphone.cli.load import Load
    from megaphone.cli.tally import Times

SHARES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
WARM_UP_S: Final = 1.0
CALLS_WITHIN_S: Final = 15.0
"""Longer than a write waits at a full channel."""
NO_CORE_LEFT: Final = 0.85
LATENCY_RATE: Final = 1_000.0
FANOUT_RATE: Final = 10.0
READ_BATCH: Final = 100


class Output(StrEnum):
    """How the figures are printed."""

    PLAIN = "plain"
    JSON = "json"
    CSV = "csv"


def bench(
    kind: Annotated[
        Kind,
        typer.Argument(
            metavar="[write|read|latency|fanout]",
            help="write: each channel has a writer, which goes on when it has its answer. read: all"
            " channels are kept full. latency: a steady rate. fanout: each event goes to all"
            " channels.",
        ),
    ] = Kind.LATENCY,
    channels: Annotated[
        int, typer.Option("--channels", metavar="N", min=1, help="How many; each has a reader.")
    ] = 100,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            metavar="R",
            min=0.001,
            help="Write so many events a second in all, counted for each channel. Default: 1,000"
            " for latency, 10 for each channel for fanout, otherwise what the broker takes.",
        ),
    ] = None,
    size: Annotated[
        int, typer.Option("--size", metavar="BYTES", min=1, help="The size of a payload, about.")
    ] = 100,
    duration_s: Annotated[
        float,
        typer.Option(
            "--for", metavar="TIME", parser=duration, help="How long to measure: 10s, 5m."
        ),
    ] = 10.0,
    batch: Annotated[
        int | None,
        typer.Option(
            "--batch",
            metavar="N",
            min=1,
            help="Write so many events to a channel in each call. Default: 100 for read, else 1.",
        ),
    ] = None,
    output: Annotated[
        Output, typer.Option("--output", "-o", help="Print a text, JSON, or a table of one row.")
    ] = Output.PLAIN,
    url: UrlOption = None,
    context: ContextOption = None,
) -> None:
    """Measure a broker for some seconds, and check that nothing is lost, repeated or out of order.

    Exits with 5 if an event was lost.

    \b
    megaphone bench
    megaphone bench write --channels 10 --batch 50
    megaphone bench fanout --channels 1000 -o json > fanout.json

    This process writes and reads, so that the times from write to read are of one clock. It says
    when it had no time left itself: then the broker can do more than the figures show. The channels
    end a minute after the load, or at once if the context has an admin socket.
    """
    plan = Plan(
        kind=kind,
        channels=channels,
        batch=batch or (READ_BATCH if kind is Kind.READ else 1),
        size=size,
        rate=rate or default_rate(kind, channels),
        warm_up_s=WARM_UP_S,
        duration_s=duration_s,
    )
    broker = broker_for(url, context)
    result = measured(plan, broker)
    typer.echo(PRINTED[output](result))
    if result["lost"]:
        leave(Exit.EVENTS_LOST, f"{result['lost']:,} events were lost")
    if result["failed"]:
        reasons = ", ".join(f"{code} {count:,} times" for code, count in result["failed"].items())
        leave(Exit.FAILED, f"calls failed: {reasons}")


def default_rate(kind: Kind, channels: int) -> float | None:
    match kind:
        case Kind.LATENCY:
            return LATENCY_RATE
        case Kind.FANOUT:
            return FANOUT_RATE * channels
        case _:
            return None


def measured(plan: Plan, broker: Broker) -> dict[str, Any]:
    """Run a load. Returns: the figures, and all that one must know to judge them."""
    # Imported here, because no other command needs it.
    from megaphone.build import build_kind
    from megaphone.cli.load import Load
    from megaphone.process import descriptors

    descriptors.raise_limit()
    with progress(plan) as show:
        load = Load(plan, show)
        try:
            run(broker, load.run, timeout_s=CALLS_WITHIN_S)
        finally:
            dispose(broker, load)
    return {
        "load": plan.kind.value,
        "broker": broker.shown,
        **figures(plan, load),
        "settings": {
            "channels": plan.channels,
            "batch": plan.batch,
            "size": plan.size,
            "rate": plan.rate,
            "warm_up_s": plan.warm_up_s,
            "duration_s": plan.duration_s,
        },
        "client": {
            "version": megaphone.__version__,
            "build": build_kind(),
            "commit": commit(),
            "python": platform.python_version(),
        },
        "machine": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "cores": os.cpu_count(),
            "load": round(os.getloadavg()[0], 1),
        },
    }


def figures(plan: Plan, load: "Load") -> dict[str, Any]:
    share = load.cpu_s / load.duration_s
    return {
        "written_per_s": round(load.written / load.duration_s, 1),
        "read_per_s": round(load.read / load.duration_s, 1),
        "write_ms": percentiles(load.write_times),
        "delivery_ms": percentiles(load.delivery_times),
        "lost": sum(target.deliveries.lost for target in load.targets),
        "repeated": sum(target.deliveries.repeated for target in load.targets),
        "out_of_order": sum(target.deliveries.out_of_order for target in load.targets),
        "gaps": load.gaps,
        "failed": dict(load.failed),
        "client_cpu_share": round(share, 2),
        "client_is_the_limit": share >= NO_CORE_LEFT,
    }


def percentiles(times: "Times") -> dict[str, float | None]:
    return {
        name: time_ms if time_ms is None else round(time_ms, 3)
        for name, time_ms in zip(SHARES, times.percentiles_ms(*SHARES.values()), strict=True)
    }


def commit() -> str | None:
    """Return the commit of the checkout that the code runs from, if it does."""
    checkout = Path(megaphone.__file__).parents[1]
    if not (checkout / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],  # noqa: S607 - users have their own git
            cwd=checkout,
            capture_output=True,
            text=True,
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def dispose(broker: Broker, load: "Load") -> None:
    """Remove the channels at once, if the context says where the admin socket is."""
    socket = contexts.load().named(broker.context).socket if broker.context else None
    if socket is None:
        return
    from megaphone.cli.admin_client import CallFailed, call

    try:
        for target in load.targets:
            call(socket, "DELETE", f"/channel/{quote(target.channel.consumer, safe='')}")
    except CallFailed as error:
        say(f"megaphone: the channels are left to end by themselves: {error}")


@contextmanager
def progress(plan: Plan) -> Iterator[Callable[[float], None]]:
    """Show on a terminal how far the load is. Yields: a function to call with the seconds since it
    began."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import Progress

    total_s = plan.warm_up_s + plan.duration_s
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"{plan.kind.value}, {plan.channels:,} channels", total=None)
        yield lambda passed_s: bar.update(task, total=total_s, completed=passed_s)


def as_text(result: dict[str, Any]) -> str:
    client, settings = result["client"], result["settings"]
    commit = f", commit {client['commit']}" if client["commit"] else ""
    rate = "as fast as it goes" if settings["rate"] is None else f"{settings['rate']:,g} events/s"
    limit = ": the client is the limit" if result["client_is_the_limit"] else ""
    return "\n".join(
        (
            f"load      {result['load']}, {settings['channels']:,} channels, {rate},"
            f" {settings['size']:,} bytes, {settings['batch']:,} in a call,"
            f" {settings['duration_s']:g} s",
            f"broker    {result['broker']}",
            f"client    megaphone {client['version']} ({client['build']}{commit}),"
            f" Python {client['python']}",
            f"machine   {result['machine']['system']}, {result['machine']['cores']} cores, load"
            f" {result['machine']['load']:g}",
            "",
            f"written   {result['written_per_s']:,} events/s",
            f"read      {result['read_per_s']:,} events/s",
            "",
            "          " + "".join(f"{name:>10}" for name in SHARES) + "   ms",
            f"write     {row(result['write_ms'])}   until the broker has answered",
            f"delivery  {row(result['delivery_ms'])}   until the reader has the event",
            "",
            f"lost {result['lost']:,}, repeated {result['repeated']:,},"
            f" out of order {result['out_of_order']:,}",
            f"this client used {result['client_cpu_share']:.0%} of a core{limit}",
        )
    )


def row(times: dict[str, float | None]) -> str:
    return "".join(f"{'-' if one is None else format(one, '.2f'):>10}" for one in times.values())


def as_json(result: dict[str, Any]) -> str:
    return msgspec.json.encode(result).decode()


def as_csv(result: dict[str, Any]) -> str:
    """Return the names and the values; a member of a member is named `write_ms.p50`."""
    flat: dict[str, Any] = {}
    for name, value in result.items():
        if name == "failed":
            flat[name] = sum(value.values())
        elif isinstance(value, dict):
            flat |= {f"{name}.{inner}": one for inner, one in value.items()}
        else:
            flat[name] = value
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(flat)
    writer.writerow(flat.values())
    return text.getvalue().rstrip("\n")


PRINTED: Final[dict[Output, Callable[[dict[str, Any]], str]]] = {
    Output.PLAIN: as_text,
    Output.JSON: as_json,
    Output.CSV: as_csv,
}
