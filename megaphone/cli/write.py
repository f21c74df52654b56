"""`megaphone write`: one event, or one for each line of a file or of standard input."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from megaphone.cli import saved
from megaphone.cli.calls import ContextOption, TimeoutOption, UrlOption, broker_for, run
from megaphone.cli.exits import Exit, leave, say
from megaphone.cli.lines import lines_of

if TYPE_CHECKING:
    from megaphone_client import Megaphone, MegaphoneError

STANDARD_INPUT: Final = "-"
PROGRESS_S: Final = 0.5
UNANSWERED: Final = 1_000
"""So many events may be on their way."""
PATIENCE_S: Final = 15.0
"""Longer than a broker waits, unless it is set otherwise, for room in a full channel: so it is the
broker that says whether the event was taken."""


def write(
    producer: Annotated[
        str,
        typer.Argument(
            metavar="PRODUCER", help="A producer address, or @NAME.", autocompletion=saved.names
        ),
    ],
    stream: Annotated[str, typer.Argument(metavar="STREAM", help="The stream of the event.")],
    body: Annotated[
        str | None,
        typer.Argument(metavar="JSON", help="The event; `-` reads one from each line of input."),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", metavar="FILE", help="Write an event for each line of a file."),
    ] = None,
    raw_string: Annotated[
        bool, typer.Option("--raw-string", help="Take each text as a string, not as JSON.")
    ] = False,
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="N", min=0.001, help="Write at most N events a second."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--key", metavar="KEY", help="An idempotency key: a repeated call writes nothing more."
        ),
    ] = None,
    url: UrlOption = None,
    context: ContextOption = None,
    timeout: TimeoutOption = PATIENCE_S,
) -> None:
    """Write an event to a channel, and print its id.

    \b
    megaphone write @room chat '{"from": "Ada", "text": "hello"}'
    megaphone write @room chat --raw-string hello
    jq -c '.[]' orders.json | megaphone write @room orders -

    Of many events, how many were written is said on standard error. If the channel is full, the
    command waits, as long as --timeout says.
    """
    if body is not None and file is not None:
        leave(Exit.WRONG_USAGE, "an event stands on the command line or in --file, not in both")
    if body is None and file is None and sys.stdin.isatty():
        leave(Exit.WRONG_USAGE, "there is no event: give JSON, `-` or --file")
    broker = broker_for(url, context, [producer])
    address = saved.address(producer, "producer")
    if body is not None and body != STANDARD_INPUT:
        value = encoded(body.encode(), raw_string, "the event")
        event_id = run(
            broker,
            lambda megaphone: megaphone.write(address, stream, value, key=key),
            addresses=[producer],
            timeout_s=timeout,
        )
        typer.echo(event_id)
        return
    if key is not None:
        leave(Exit.WRONG_USAGE, "--key is for one event; many get a key each")
    with opened(file) as source:
        lines = Lines(source, address, stream, raw_string, rate)
        try:
            run(broker, lines.write, addresses=[producer], timeout_s=timeout)
        finally:
            lines.report()


def encoded(text: bytes, raw_string: bool, where: str) -> bytes:
    """Return a text as JSON. Exits if it is none."""
    try:
        if raw_string:
            return msgspec.json.encode(text.decode())
        msgspec.json.decode(text)
    except UnicodeDecodeError:
        leave(Exit.WRONG_USAGE, f"{where} is not UTF-8")
    except msgspec.DecodeError as error:
        leave(
            Exit.WRONG_USAGE,
            f"{where} is not JSON ({error}); with --raw-string a text is taken as it is",
        )
    return text


@contextmanager
def opened(file: str | None) -> Iterator[int]:
    """Yield the descriptor of a file, or of standard input."""
    if file is None or file == STANDARD_INPUT:
        yield sys.stdin.fileno()
        return
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError as error:
        leave(Exit.WRONG_USAGE, f"{file} cannot be read: {error.strerror}")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class Lines:
    """Writes an event for each line."""

    def __init__(
        self, source: int, address: str, stream: str, raw_string: bool, rate: float | None
    ) -> None:
        self._source = source
        self._address = address
        self._stream = stream
        self._raw_string = raw_string
        self._rate = rate
        self._sent: asyncio.Queue[tuple[int, Awaitable[str | None]] | None] = asyncio.Queue()
        """Each event that was sent, with the number of its line; at the end None."""
        self._written = 0
        self._not_written = 0
        self._first_not_written = 0
        """The number of its line."""
        self._failure: MegaphoneError | None = None

    async def write(self, megaphone: "Megaphone") -> None:
        """Raises: why the first of the events that were not written was not."""
        from megaphone_client import MegaphoneError

        progress = asyncio.create_task(self._show_progress()) if sys.stderr.isatty() else None
        counting = asyncio.create_task(self._count())
        try:
            await self._send_all(megaphone)
        except MegaphoneError:
            pass  # of any event that `_count` has not come to; it finds the error of the first
        finally:
            self._sent.put_nowait(None)
            await asyncio.wait([counting])
            if progress is not None:
                progress.cancel()
        if self._failure is not None:
            raise self._failure

    async def _send_all(self, megaphone: "Megaphone") -> None:
        async with megaphone.publisher(max_pending=UNANSWERED) as publisher:
            async for number, body in self._bodies():
                if self._failure is not None:
                    break
                sent = await publisher.send(self._address, self._stream, body)
                self._sent.put_nowait((number, sent))

    async def _count(self) -> None:
        """Count the events that are written, and those that are not."""
        from megaphone_client import MegaphoneError

        while (one := await self._sent.get()) is not None:
            number, sent = one
            try:
                await sent
            except MegaphoneError as error:
                self._not_written += 1
                if self._failure is None:
                    self._failure = error
                    self._first_not_written = number
            else:
                self._written += 1

    async def _bodies(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield the number of each line that is not empty, and its event."""
        number = 0
        try:
            async for line in lines_of(self._source):
                number += 1
                if not line.strip() and not self._raw_string:
                    continue
                yield number, encoded(line, self._raw_string, f"line {number}")
                if self._rate is not None:
                    await asyncio.sleep(1 / self._rate)
        except OSError as error:  # of a directory, for example
            leave(Exit.WRONG_USAGE, f"the input cannot be read: {error.strerror}")

    async def _show_progress(self) -> None:
        while True:
            await asyncio.sleep(PROGRESS_S)
            typer.echo(f"\r{self._written:,} events written", err=True, nl=False)

    def report(self) -> None:
        """Say how many events were written."""
        start = "\r" if sys.stderr.isatty() else ""
        say(f"{start}{self._written:,} event{'' if self._written == 1 else 's'} written")
        if self._not_written:
            say(
                f"megaphone: {self._not_written:,} not written;"
                f" the first is that of line {self._first_not_written}"
            )
