"""`megaphone create`, `exists`, `ack` and `dispose`."""

import os
import shlex
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from megaphone.cli import saved
from megaphone.cli.calls import (
    PATIENCE_S,
    ContextOption,
    TimeoutOption,
    UrlOption,
    broker_for,
    run,
)
from megaphone.cli.contexts import NAME
from megaphone.cli.durations import duration
from megaphone.cli.exits import Exit, leave, say

if TYPE_CHECKING:
    from megaphone_client import Channel

ConsumerAddress = Annotated[
    str,
    typer.Argument(
        metavar="CONSUMER", help="A consumer address, or @NAME.", autocompletion=saved.names
    ),
]


class Output(StrEnum):
    """How a new channel is printed."""

    AUTO = "auto"
    PLAIN = "plain"
    JSON = "json"


def create(
    protocols: Annotated[
        list[str] | None,
        typer.Option(
            "--protocol",
            "-p",
            metavar="PROTOCOL",
            help="A protocol that the consumer can read, the best one first. May be repeated.",
        ),
    ] = None,
    ttl: Annotated[
        float | None,
        typer.Option(
            metavar="TIME",
            parser=duration,
            help="How long the channel lives unread, such as 10m. Default: as the broker is set.",
        ),
    ] = None,
    capacity: Annotated[
        int | None,
        typer.Option(
            metavar="EVENTS",
            min=1,
            help="How many undelivered events fit into it. Default: as the broker is set.",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="A name by which operators recognise the channel."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--save", metavar="NAME", help="Remember the channel as @NAME, and print no address."
        ),
    ] = None,
    export: Annotated[
        bool, typer.Option("--export", help='Print shell variables: eval "$(… --export)".')
    ] = False,
    output: Annotated[
        Output,
        typer.Option(
            "--output", "-o", help="auto is plain on a terminal, and JSON in a pipe or a file."
        ),
    ] = Output.AUTO,
    url: UrlOption = None,
    context: ContextOption = None,
    timeout: TimeoutOption = PATIENCE_S,
) -> None:
    """Create a channel: who has its producer address may write, who has its consumer address reads.

    \b
    megaphone create                       shows both addresses
    megaphone create --save room           remembers them: megaphone tail @room
    eval "$(megaphone create --export)"    sets PRODUCER and CONSUMER
    megaphone create -o json | jq          for programs
    megaphone create --ttl 10m --capacity 500 --label orders

    A channel that nobody reads ends after a minute, unless --ttl or the broker says otherwise.
    """
    if name is not None:
        if not NAME.fullmatch(name):
            leave(Exit.WRONG_USAGE, "a name has letters, digits, `.`, `_` and `-`")
        saved.check()
    broker = broker_for(url, context)
    channel = run(
        broker,
        lambda megaphone: megaphone.create(
            protocols or (), ttl_s=ttl, capacity=capacity, label=label
        ),
        timeout_s=timeout,
    )
    if name is not None:
        home = {"context": broker.context} if broker.context else {"url": broker.url}
        try:
            saved.save(name, saved.Saved(channel.producer, channel.consumer, **home))
        except BaseException:
            print_addresses(channel, export, output)  # nobody has them otherwise
            say(f"megaphone: the channel was created, but is not saved as @{name}")
            raise
        say(f"Saved as @{name}. Read it with: megaphone tail @{name}")
    else:
        print_addresses(channel, export, output)


def print_addresses(channel: "Channel", export: bool, output: Output) -> None:
    if export:
        typer.echo(
            f"export PRODUCER={shlex.quote(channel.producer)}"
            f" CONSUMER={shlex.quote(channel.consumer)}"
        )
    elif output is Output.JSON or (output is Output.AUTO and not os.isatty(1)):
        typer.echo(as_json(channel))
    else:
        show(channel)


def as_json(channel: "Channel") -> bytes:
    return msgspec.json.encode(
        {
            "producerAddress": channel.producer,
            "consumerAddress": channel.consumer,
            "protocols": channel.protocols,
        }
    )


def show(channel: "Channel") -> None:
    typer.echo(f"producer  {channel.producer}\nconsumer  {channel.consumer}")
    if sys.stderr.isatty():
        say(
            f"\nRead it:   megaphone tail {channel.consumer}\n"
            f"Write:     megaphone write {channel.producer} greetings '\"hello\"'"
        )


def exists(
    addresses: Annotated[
        list[str],
        typer.Argument(
            metavar="ADDRESS...",
            help="Producer or consumer addresses, or @NAME.",
            autocompletion=saved.names,
        ),
    ],
    url: UrlOption = None,
    context: ContextOption = None,
    timeout: TimeoutOption = PATIENCE_S,
) -> None:
    """Ask which channels exist. Exits with 3 if one does not.

    \b
    megaphone exists @room && megaphone write @room news '"still there"'
    """
    broker = broker_for(url, context, addresses)
    real = {given: saved.address(given, "consumer") for given in addresses}
    found = run(broker, lambda megaphone: megaphone.exists(real.values()), timeout_s=timeout)
    for given, address in real.items():
        typer.echo(f"{given} {'exists' if found[address] else 'gone'}")
    if not all(found.values()):
        raise typer.Exit(Exit.GONE)


def ack(
    consumer: ConsumerAddress,
    event_id: Annotated[str, typer.Argument(metavar="EVENT_ID", help="As `tail` prints it.")],
    url: UrlOption = None,
    context: ContextOption = None,
    timeout: TimeoutOption = PATIENCE_S,
) -> None:
    """Acknowledge an event and all before it, so that they are not sent again.

    Prints how many events that were not acknowledged before are so now.

    \b
    megaphone ack @room EVENT_ID
    """
    broker = broker_for(url, context, [consumer])
    address = saved.address(consumer, "consumer")
    count = run(
        broker,
        lambda megaphone: megaphone.ack(address, event_id),
        addresses=[consumer],
        timeout_s=timeout,
    )
    typer.echo(count)


def dispose(
    producer: Annotated[
        str,
        typer.Argument(
            metavar="PRODUCER", help="A producer address, or @NAME.", autocompletion=saved.names
        ),
    ],
    url: UrlOption = None,
    context: ContextOption = None,
    timeout: TimeoutOption = PATIENCE_S,
) -> None:
    """Remove a channel with all its events now. Exits with 3 if it does not exist.

    \b
    megaphone dispose @room
    """
    broker = broker_for(url, context, [producer])
    address = saved.address(producer, "producer")
    was_there = run(broker, lambda megaphone: megaphone.dispose(address), timeout_s=timeout)
    saved.forget(producer, broker.url, broker.context)
    if not was_there:
        leave(Exit.GONE, "the channel does not exist, or not any more")
