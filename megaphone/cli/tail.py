"""`megaphone tail` and `megaphone first`: read the events of channels."""

import asyncio
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from megaphone.cli import saved
from megaphone.cli.calls import (
    PATIENCE_S,
    ContextOption,
    UrlOption,
    broker_for,
    run,
)
from megaphone.cli.channels import ConsumerAddress
from megaphone.cli.durations import duration
from megaphone.cli.exits import Exit, leave, say
from megaphone.cli.rendering import Colour, Output, Renderer, renderer

if TYPE_CHECKING:
    from megaphone_client import Event, Megaphone, Reader

LOOK_S: Final = 0.25
"""How often `--no-follow` looks whether there is nothing more."""


class Ack(StrEnum):
    """Whether events that are printed count as dealt with."""

    AUTO = "auto"
    NONE = "none"


def tail(
    consumers: Annotated[
        list[str],
        typer.Argument(
            metavar="CONSUMER...",
            help="Consumer addresses, or @NAME.",
            autocompletion=saved.names,
        ),
    ],
    stream: Annotated[
        list[str] | None,
        typer.Option("--stream", "-s", metavar="STREAM", help="Only this one. May be repeated."),
    ] = None,
    after: Annotated[
        str | None,
        typer.Option(
            "--after", metavar="ID", help="Begin after this event; `-` is before the first."
        ),
    ] = None,
    acks: Annotated[
        Ack,
        typer.Option(
            "--ack",
            help="auto: an event that was printed is not sent again. none: only look; the broker"
            " keeps no more than the last 100 events for you.",
        ),
    ] = Ack.AUTO,
    count: Annotated[
        int | None,
        typer.Option("--count", "-n", metavar="N", min=1, help="Stop after N events."),
    ] = None,
    limit_s: Annotated[
        float | None,
        typer.Option(
            "--for", metavar="TIME", parser=duration, help="Stop after this time: 30s, 5m."
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Wait for more events, or stop.")
    ] = True,
    output: Annotated[
        Output,
        typer.Option(
            "--output",
            "-o",
            help="auto: pretty on a terminal, ndjson elsewhere. raw: bodies alone.",
        ),
    ] = Output.AUTO,
    command: Annotated[
        str | None,
        typer.Option(
            "--exec",
            metavar="COMMAND",
            help="Run this in a shell for each event, with the body as its input and the variables"
            " MEGAPHONE_STREAM and MEGAPHONE_ID. If it fails, the event is not acknowledged, and"
            " the command ends.",
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 5 where events are missing.")
    ] = False,
    take_over: Annotated[
        bool, typer.Option("--take-over", help="End the read of another reader.")
    ] = False,
    colour: Annotated[
        Colour, typer.Option("--color", help="When to colour; NO_COLOR is obeyed.")
    ] = Colour.AUTO,
    url: UrlOption = None,
    context: ContextOption = None,
) -> None:
    """Print the events of channels as they come, until Ctrl-C.

    \b
    megaphone tail @room
    megaphone tail @room -n 1 -o raw | jq .
    megaphone tail @orders --exec './handle-order'

    A connection that breaks is made again, and no event is lost or printed twice. If events are
    missing all the same, because the broker was started again for example, the command says so.
    """
    broker = broker_for(url, context, consumers)
    labels = {saved.address(one, "consumer"): label(one, at) for at, one in enumerate(consumers, 1)}
    if len(labels) > 1 and after is not None:
        leave(Exit.WRONG_USAGE, "--after is for one channel")
    if len(labels) > 1 and take_over:
        leave(Exit.WRONG_USAGE, "--take-over is for one channel")
    job = Tail(
        labels,
        renderer(output, colour),
        streams=stream or None,
        after=after,
        ack=acks,
        count=count,
        duration_s=limit_s,
        follows=follow,
        command=command,
        strict=strict,
        takes_over=take_over,
    )
    with no_traceback_if_nobody_reads():
        run(broker, job.run, addresses=consumers, at_ctrl_c=Exit.DONE)


def label(consumer: str, number: int) -> str:
    """Return how a channel is named among others. An address is a secret, and long."""
    return consumer if consumer.startswith(saved.MARK) else str(number)


@dataclass(frozen=True, slots=True)
class Tail:
    """Reads and prints, as the flags say."""

    labels: Mapping[str, str]
    render: Renderer
    streams: Sequence[str] | None
    after: str | None
    ack: Ack
    count: int | None
    duration_s: float | None
    follows: bool
    command: str | None
    strict: bool
    takes_over: bool

    async def run(self, megaphone: "Megaphone") -> None:
        try:
            async with asyncio.timeout(self.duration_s), self._reader(megaphone) as reader:
                await self._print_all(reader)
        except TimeoutError:
            if self.duration_s is None:
                raise

    def _reader(self, megaphone: "Megaphone") -> "Reader[Any]":
        on_gap = None if self.strict else self._say_gap
        if len(self.labels) > 1:
            return megaphone.read_many(
                self.labels, streams=self.streams, ack=self.ack.value, on_gap=on_gap
            )
        [consumer] = self.labels
        return megaphone.read(
            consumer,
            streams=self.streams,
            ack=self.ack.value,
            after=self.after,
            limit=self.count,
            take_over=self.takes_over,
            on_gap=on_gap,
        )

    def _say_gap(self) -> None:
        say("megaphone: events are missing here")

    async def _print_all(self, reader: "Reader[Any]") -> None:
        left = self.count
        until = asyncio.get_running_loop().time() + PATIENCE_S
        while left is None or left > 0:
            # One at a time if each is dealt with by a command, so that the others are not lost.
            most = 1 if self.command else left or 100
            could_come = reader.has_begun
            if not (self.follows or could_come or asyncio.get_running_loop().time() < until):
                leave(Exit.FAILED, "no broker answers")
            events = await self._next(reader, min(most, 100))
            if events:
                await self._print(events)
                left = left and left - len(events)
            elif self.follows or could_come:
                return

    async def _next(self, reader: "Reader[Any]", most: int) -> "list[Event[Any]]":
        """Return the next events. Of several channels, those that go do not end the others."""
        from megaphone_client import ChannelNotFound

        left = len(self.labels)
        while True:
            try:
                return await reader.batch(most, wait_s=None if self.follows else LOOK_S)
            except ChannelNotFound:
                left -= 1
                if not left:
                    raise
                say("megaphone: one of the channels does not exist, or not any more")

    async def _print(self, events: Sequence["Event[Any]"]) -> None:
        if self.command is not None:
            for event in events:
                await self._execute(self.command, event)
            return
        is_named = len(self.labels) > 1
        for event in events:
            text = self.render(event, self.labels[event.consumer] if is_named else None)
            sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()

    async def _execute(self, command: str, event: "Event[Any]") -> None:
        """Run the command for an event. Raises: typer.Exit, if it fails."""
        process = await asyncio.create_subprocess_shell(
            command,
            stdin=asyncio.subprocess.PIPE,
            env={**os.environ, "MEGAPHONE_STREAM": event.stream, "MEGAPHONE_ID": event.id},
        )
        await process.communicate(event.raw + b"\n")
        if process.returncode:
            leave(Exit.FAILED, f"the command for event {event.id} ended with {process.returncode}")


def first(
    consumer: ConsumerAddress,
    stream: Annotated[str, typer.Argument(metavar="STREAM", help="The stream that is waited for.")],
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="TIME", parser=duration, help="Give up after: 30s, 5m."),
    ] = None,
    url: UrlOption = None,
    context: ContextOption = None,
) -> None:
    """Wait for the next event of a stream, and print its body: a delayed answer.

    Exits with 4 if none comes in time. Events of other streams before it are not sent again.

    \b
    answer=$(megaphone first @job done --timeout 5m)
    """
    broker = broker_for(url, context, [consumer])
    address = saved.address(consumer, "consumer")

    async def wait(megaphone: "Megaphone") -> bytes:
        read = megaphone.read(address, streams=[stream], limit=1)
        async with asyncio.timeout(timeout), read as reader:
            return (await anext(reader)).raw

    try:
        body = run(broker, wait, addresses=[consumer], timeout_s=PATIENCE_S)
    except TimeoutError:
        leave(Exit.TIME_IS_UP, f"no event of the stream {stream!r} came in time")
    typer.echo(body)


@contextmanager
def no_traceback_if_nobody_reads() -> Iterator[None]:
    """End the command in silence if the next program of the pipe has ended, as `head` does."""
    try:
        yield
    except BrokenPipeError:
        # The interpreter flushes the stream when it ends, and would complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
