"""How a command calls the broker: which broker it is, and what the command says when a call fails.

A flag wins over a saved channel, that over the environment, and that over the chosen context.
"""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final, Never, TypeVar
from urllib.parse import urlsplit

import typer

from megaphone.cli import contexts, saved
from megaphone.cli.durations import duration_of_a_call
from megaphone.cli.exits import Exit, leave, say

if TYPE_CHECKING:
    from megaphone_client import Megaphone, MegaphoneError

T = TypeVar("T")
URL_VARIABLE: Final = "MEGAPHONE_URL"
CONTEXT_VARIABLE: Final = "MEGAPHONE_CONTEXT"
DEFAULT_URL: Final = "http://localhost:3000"
PATIENCE_S: Final = 5.0

UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        "-u",
        metavar="URL",
        help="The broker: http://host:3000, https://host/prefix, grpc://host:3001. Default:"
        " MEGAPHONE_URL, or the context, or http://localhost:3000.",
        show_default=False,
    ),
]
ContextOption = Annotated[
    str | None,
    typer.Option(
        "--context",
        metavar="NAME",
        help="A broker of `megaphone context`. Default: MEGAPHONE_CONTEXT, or the chosen one.",
        autocompletion=contexts.names,
        show_default=False,
    ),
]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout",
        metavar="TIME",
        parser=duration_of_a_call,
        help="How long to try, such as 500ms, 30s.",
    ),
]


@dataclass(frozen=True, slots=True)
class Broker:
    """The broker that a command calls."""

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    context: str | None = None
    ca: str | None = None
    """The file of the authorities that are trusted."""
    certificate: tuple[str, str] | str | None = None
    """The file of the own certificate, perhaps with that of its key."""

    @property
    def shown(self) -> str:
        """The URL without a password."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def broker_for(url: str | None, context: str | None, addresses: Sequence[str] = ()) -> Broker:
    """Return the broker that is meant. Exits if the flags name two, or the addresses do."""
    if url is not None and context is not None:
        leave(Exit.WRONG_USAGE, "--url and --context both name a broker; give one of them")
    if url is not None:
        return Broker(url)
    if context is not None:
        return of_context(context)
    homes = {
        (channel.url, channel.context)
        for address in addresses
        if address.startswith(saved.MARK)
        for channel in [saved.find(address)]
    }
    if len(homes) > 1:
        leave(Exit.WRONG_USAGE, "the saved channels are of different brokers; give --url")
    for home_url, home_context in homes:
        if home_context is not None:
            return of_context(home_context)
        if home_url is not None:
            return Broker(home_url)
    if found := os.environ.get(URL_VARIABLE):
        return Broker(found)
    if name := os.environ.get(CONTEXT_VARIABLE) or contexts.load().chosen:
        return of_context(name)
    return Broker(DEFAULT_URL)


def of_context(name: str) -> Broker:
    context = contexts.load().named(name)
    certificate: tuple[str, str] | str | None = context.certificate
    if context.certificate is not None and context.key is not None:
        certificate = (context.certificate, context.key)
    return Broker(context.url, context.header_values(), name, context.ca, certificate)


def run(
    broker: Broker,
    work: Callable[["Megaphone"], Awaitable[T]],
    *,
    addresses: Sequence[str] = (),
    timeout_s: float = PATIENCE_S,
    at_ctrl_c: Exit = Exit.STOPPED,
) -> T:
    """Return the result of work with a client of the broker.

    If a call fails, the command says so in one line and exits. `addresses` are those that the user
    gave: if a name is one of them, the line says how to give it to a new channel.
    """
    from megaphone_client import MegaphoneError

    async def with_client() -> T:
        async with client_of(broker, timeout_s) as megaphone:
            return await work(megaphone)

    try:
        with breaks_shown():
            return asyncio.run(with_client())
    except MegaphoneError as error:
        fail(error, broker, addresses)
    except KeyboardInterrupt:
        raise typer.Exit(at_ctrl_c) from None


def client_of(broker: Broker, timeout_s: float) -> "Megaphone":
    from megaphone_client import Megaphone

    try:
        return Megaphone.from_url(
            broker.url,
            timeout_s=timeout_s,
            headers=broker.headers or None,
            ca=broker.ca,
            certificate=broker.certificate,
        )
    except (OSError, ValueError) as error:
        leave(Exit.WRONG_USAGE, str(error))


def fail(error: "MegaphoneError", broker: Broker, addresses: Sequence[str] = ()) -> Never:
    """Say what is wrong, and exit with the code for it."""
    from megaphone_client import (
        BadRequest,
        ChannelNotFound,
        ConnectionFailed,
        EventsLost,
        OutcomeUnknown,
    )
    from megaphone_client import WriteTimeout as ChannelFull

    match error:
        case ChannelNotFound():
            # Its name stays: this node may only not know where the channel is now.
            hint = saved.hint_for_a_new_one(addresses)
            leave(Exit.GONE, f"the channel does not exist, or not any more ({error}){hint}")
        case EventsLost():
            leave(Exit.EVENTS_LOST, str(error))
        case ChannelFull():
            leave(Exit.TIME_IS_UP, str(error))
        case OutcomeUnknown():
            leave(Exit.FAILED, f"{error}; --key makes a write that can be repeated")
        case BadRequest():
            leave(Exit.WRONG_USAGE, str(error))
        case ConnectionFailed():
            hint = "" if broker.url != DEFAULT_URL else "; `megaphone serve` starts one"
            leave(Exit.FAILED, f"no broker answers at {broker.shown} ({error}){hint}")
        case _:
            leave(Exit.FAILED, f"{error} ({error.code})")


@contextmanager
def breaks_shown() -> Iterator[None]:
    """Within this, say on standard error when a read breaks and when it goes on."""

    class Talk(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(f"megaphone: {record.getMessage()}")

    log = logging.getLogger("megaphone_client")
    talk = Talk(logging.INFO)
    former = log.level
    log.addHandler(talk)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(talk)
        log.setLevel(former)
