"""`megaphone top`: a node while it runs, on a terminal, or line by line in a pipe."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from megaphone.cli import contexts
from megaphone.cli.calls import CONTEXT_VARIABLE, ContextOption
from megaphone.cli.channel_details import age
from megaphone.cli.config import load_or_exit
from megaphone.cli.exits import Exit, leave
from megaphone.cli.rendering import printable

if TYPE_CHECKING:
    from megaphone.wire.bodies import NodeView, WatchedChannel

MOST_CHANNELS: Final = 1_000
"""The broker shows no more."""
SHOWN_OF_AN_ADDRESS: Final = 8
"""An address is a secret: so much of it tells channels apart, and is of no use to others."""
MB: Final = 1_000_000
COLUMNS: Final = (
    "ID",
    "DEPTH",
    "UNSENT",
    "IN FLIGHT",
    "WAITING",
    "READ",
    "AGE",
    "OLDEST",
    "RATE/S",
    "BYTES",
)


class Sort(StrEnum):
    """Which channels come first."""

    DEPTH = "depth"
    UNSENT = "unsent"
    BYTES = "bytes"
    WAITING = "waiting"
    AGE = "age"
    RATE = "rate"


def top(
    count: Annotated[
        int | None,
        typer.Option("--count", "-n", metavar="N", min=1, help="Stop after N views."),
    ] = None,
    interval_s: Annotated[
        float,
        typer.Option(
            "--delay", "-d", metavar="SECONDS", min=0.1, max=20.0, help="The time between views."
        ),
    ] = 1.0,
    sort: Annotated[
        Sort,
        typer.Option(
            "--sort",
            help="Show first the channels with the most events, unsent events, bytes or waiting"
            " writers, or the oldest ones, or those that are written most.",
        ),
    ] = Sort.DEPTH,
    agent: Annotated[
        str | None,
        typer.Option("--agent", "-a", metavar="NAME", help="Show only channels of this agent."),
    ] = None,
    socket: Annotated[
        str | None,
        typer.Option(
            "--socket",
            metavar="PATH",
            help="The admin socket of the node. Default: that of the context, or mng_socket_path of"
            " the configuration.",
        ),
    ] = None,
    context: ContextOption = None,
) -> None:
    """Watch a node, until Ctrl-C: what comes in and goes out, and which channels fill up.

    \b
    megaphone top
    megaphone top --sort waiting -d 5
    megaphone top -n 2 | jq .levels

    In a pipe it prints a line of JSON for each view, with whole addresses, which are secrets.
    """
    from megaphone.cli.admin_client import CallFailed

    path = socket or socket_of(context)
    try:
        shown = islice(views_of(path, interval_s, sort, agent), count)
        if sys.stdout.isatty():
            show_pages(shown, path)
        else:
            for view in shown:
                sys.stdout.buffer.write(msgspec.json.encode(view) + b"\n")
                sys.stdout.buffer.flush()
    except CallFailed as error:  # here, where the page is not on the screen any more
        leave(Exit.FAILED, str(error))
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # The interpreter flushes the stream when it ends, and would complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def socket_of(context: str | None) -> str:
    """Return the admin socket that is meant."""
    known = contexts.load()
    if context is not None:
        found = known.named(context).socket
        if found is None:
            leave(Exit.WRONG_USAGE, f"the context {context!r} has no admin socket; give --socket")
        return found
    if name := os.environ.get(CONTEXT_VARIABLE) or known.chosen:
        found = known.named(name).socket
        if found is not None:
            return found
    path = load_or_exit(None).settings.mng_socket_path
    assert path is not None  # because the configuration always has one
    return path


def views_of(path: str, interval_s: float, sort: Sort, agent: str | None) -> Iterator["NodeView"]:
    """Yield a view of the node at each tick, for ever. Raises: CallFailed, if the broker cannot be
    watched, or ends."""
    from megaphone.cli.admin_client import CallFailed, follow, has_gone
    from megaphone.wire.bodies import NodeView

    limit = MOST_CHANNELS if agent is not None else 100
    route = f"/node/watch?interval_ms={interval_s * 1000:.0f}&limit={limit}&sort={sort}"
    for line in follow(path, "GET", route):
        view = msgspec.json.decode(line, type=NodeView)
        if agent is not None:
            view.channels = [one for one in view.channels if agent_of(one) == agent]
        yield view
    raise CallFailed(has_gone(path))


def agent_of(channel: "WatchedChannel") -> str:
    return channel.address.partition(".")[0]


def show_pages(views: Iterable["NodeView"], path: str) -> None:
    """Show each view in place of the one before, on a screen that is gone afterwards."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(highlight=False)
    before = None
    with Live(console=console, screen=True, auto_refresh=False) as live:
        for view in views:
            lines = page(view, before, path)[: console.size.height]
            text = "\n".join(printable(line)[: console.size.width] for line in lines)
            live.update(Text(text, no_wrap=True), refresh=True)
            before = view


def page(view: "NodeView", before: "NodeView | None", path: str) -> list[str]:
    """Return the lines for a view. Rates are those since the view before."""
    levels = view.levels
    return [
        f"megaphone top   {path}   {view.at.astimezone():%H:%M:%S}",
        "",
        f"channels {levels['channels']:,}   reads {levels['reads_open']:,}"
        f"   writers waiting {levels['writers_waiting']:,}"
        f"   connections {levels['connections']:,}"
        f"   memory for clients {levels['buffered_bytes'] / MB:,.1f} MB"
        f"   loop delay {levels['loop_lag_us'] / 1_000:,.1f} ms",
        f"in {rate('messages_received', view, before)}   out {rate('messages_read', view, before)}"
        f"   again {rate('messages_redelivered', view, before)}"
        f"   lost {view.counts['messages_lost']:,}",
        *(
            f"agent {one.name}   {one.mode}{' (warming up)' if one.warming_up else ''}"
            f"   {one.channels_count:,} channels"
            for one in view.agents
        ),
        *(
            f"pipe {one.agent} to {one.target}"
            f"   {'connected' if one.is_connected else 'not connected'}   {one.backlog:,} behind"
            for one in view.pipes
        ),
        *drain(view),
        *(f"! {name.replace('_', ' ')}: {more:,} more" for name, more in view.notable.items()),
        "",
        *table(view.channels),
    ]


def rate(name: str, view: "NodeView", before: "NodeView | None") -> str:
    if before is None or view.at <= before.at:
        return "-"
    passed_s = (view.at - before.at).total_seconds()
    return f"{(view.counts[name] - before.counts[name]) / passed_s:,.0f}/s"


def drain(view: "NodeView") -> list[str]:
    if view.drain is None:
        return []
    return [
        f"drain   {view.drain.agents_moved:,} agents and {view.drain.channels_moved:,} channels"
        f" moved, {view.drain.agents_left:,} and {view.drain.channels_left:,} left"
    ]


def table(channels: Sequence["WatchedChannel"]) -> list[str]:
    names = [name_of(one) for one in channels]
    wide = max(16, *map(len, names)) if names else 16
    head = "CHANNEL".ljust(wide) + "".join(f"{column:>11}" for column in COLUMNS)
    if any(one.label for one in channels):
        head += "  LABEL"
    return [head, *(name.ljust(wide) + row(one) for name, one in zip(names, channels, strict=True))]


def name_of(channel: "WatchedChannel") -> str:
    return short_name(channel.address)


def short_name(address: str) -> str:
    """Return what may be shown of an address."""
    agent, _, rest = address.partition(".")
    return f"{agent}.{rest[:SHOWN_OF_AN_ADDRESS]}…"


def row(channel: "WatchedChannel") -> str:
    reads = None if channel.is_read is None else "yes" if channel.is_read else "no"
    cells = (
        channel.id or None,
        channel.depth,
        channel.unsent,
        channel.in_flight,
        channel.waiting_writers,
        reads,
        None if channel.age_s is None else age(channel.age_s),
        None if channel.oldest_s is None else age(channel.oldest_s),
        None if channel.rate is None else f"{channel.rate:,.0f}",
        None if channel.bytes is None else f"{channel.bytes:,}",
    )
    label = f"  {channel.label}" if channel.label else ""
    return "".join(f"{'-' if cell is None else cell:>11}" for cell in cells) + label
