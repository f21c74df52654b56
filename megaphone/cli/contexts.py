"""`megaphone context`: brokers that have a name, so that commands need no URL.

They are in `contexts.toml` of the user's configuration. A context has a URL, perhaps an admin
socket, and headers whose values stand in the environment. It never has an address of a channel or
the value of a header: those are secrets.
"""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from megaphone.cli.exits import Exit, leave
from megaphone.cli.files import configuration_file, replace_file
from megaphone.cli.help import App

FILE: Final = "contexts.toml"
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
HEADER: Final = re.compile(r"[a-z0-9_.-]+(?<!-bin)", re.IGNORECASE)
"""The names of headers that both protocols take; over gRPC, `-bin` ends those of binary values."""
HEADER_VALUE: Final = re.compile(r"[ -~]*")
"""The values that both protocols take."""
FILES: Final = ("ca", "certificate", "key")
"""The members of a context that are files for TLS."""
MEMBERS: Final = {"url", "socket", "headers", *FILES}

context_app = App(help="Give brokers names.")


@dataclass(frozen=True, slots=True)
class Context:
    """A broker that has a name."""

    url: str = field(repr=False)
    socket: str | None = None
    """The path of its admin socket."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """For each header the name of the environment variable that has its value."""
    ca: str | None = None
    """The file of the authorities that are trusted, by its path."""
    certificate: str | None = None
    """The file of the client's certificate."""
    key: str | None = None
    """The file of its key, if that is not in the same file."""

    def header_values(self) -> dict[str, str]:
        """Return the headers with their values. Exits if a variable is not set, or if a name or a
        value is none of a header."""
        missing = [name for name in self.headers.values() if name not in os.environ]
        if missing:
            leave(Exit.WRONG_USAGE, f"the context needs {' and '.join(missing)} in the environment")
        values = {header: os.environ[name] for header, name in self.headers.items()}
        for header, value in values.items():
            check_header(header)
            if not HEADER_VALUE.fullmatch(value):
                leave(
                    Exit.WRONG_USAGE,
                    f"the variable {self.headers[header]} is no value of a header, which has only"
                    " visible ASCII characters and spaces",
                )
        return values


@dataclass(frozen=True, slots=True)
class Contexts:
    """The file: the contexts by name, and which of them is used if none is named."""

    chosen: str | None
    by_name: dict[str, Context]

    def named(self, name: str) -> Context:
        """Return a context. Exits if there is none of this name."""
        if name not in self.by_name:
            known = ", ".join(self.by_name) or "none"
            leave(Exit.WRONG_USAGE, f"there is no context {name!r}; there is {known}")
        return self.by_name[name]


def load() -> Contexts:
    """Return the contexts. Exits if their file is not as it must be."""
    path = configuration_file(FILE)
    try:
        content = tomllib.loads(path.read_text())
    except FileNotFoundError:
        return Contexts(None, {})
    except (OSError, ValueError) as error:
        leave(Exit.WRONG_USAGE, f"{path} cannot be read: {error}")
    try:
        tables = content.get("contexts", {})
        return Contexts(content.get("use"), {name: parsed(tables[name]) for name in tables})
    except (KeyError, TypeError, ValueError):
        leave(
            Exit.WRONG_USAGE,
            f"{path} may have `use`, and tables [contexts.NAME] with url, socket, headers, ca,"
            " certificate and key",
        )


def parsed(table: Mapping[str, Any]) -> Context:
    if not MEMBERS.issuperset(table):
        raise ValueError
    headers = {str(header): str(name) for header, name in table.get("headers", {}).items()}
    files = {member: table.get(member) for member in FILES}
    return Context(str(table["url"]), table.get("socket"), headers, **files)


def store(contexts: Contexts) -> None:
    lines = [] if contexts.chosen is None else [f"use = {json.dumps(contexts.chosen)}", ""]
    for name, context in contexts.by_name.items():
        lines += [f"[contexts.{json.dumps(name)}]", f"url = {json.dumps(context.url)}"]
        if context.socket is not None:
            lines.append(f"socket = {json.dumps(context.socket)}")
        lines += [
            f"{member} = {json.dumps(path)}"
            for member in FILES
            if (path := getattr(context, member)) is not None
        ]
        if context.headers:
            members = (f"{json.dumps(k)} = {json.dumps(v)}" for k, v in context.headers.items())
            lines.append(f"headers = {{ {', '.join(members)} }}")
        lines.append("")
    path = configuration_file(FILE)
    try:
        replace_file(path, "\n".join(lines))
    except OSError as error:
        leave(Exit.WRONG_USAGE, f"{path} cannot be written: {error.strerror}")


def names(incomplete: str) -> list[str]:
    """Return the names that begin so, for the completion of a shell."""
    return [name for name in load().by_name if name.startswith(incomplete)]


ContextName = Annotated[str, typer.Argument(metavar="NAME", autocompletion=names)]


@context_app.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, `.`, `_`, `-`.")],
    url: Annotated[str, typer.Argument(metavar="URL", help="As for --url of other commands.")],
    socket: Annotated[
        str | None, typer.Option("--socket", metavar="PATH", help="Its admin socket.")
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(
            "--header",
            metavar="HEADER=VARIABLE",
            help="Send a header, whose value is in an environment variable. May be repeated.",
        ),
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option("--ca", metavar="FILE", help="Trust the authorities in this file."),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option("--certificate", metavar="FILE", help="Show the broker this certificate."),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", metavar="FILE", help="Its key, if that has a file of its own."),
    ] = None,
) -> None:
    """Give a broker a name, or change it. The first one is used by default."""
    if not NAME.fullmatch(name):
        leave(Exit.WRONG_USAGE, "a name has letters, digits, `.`, `_` and `-`")
    check_url(url)
    if "@" in url:
        leave(Exit.WRONG_USAGE, "a context keeps no password: use --header Authorization=VARIABLE")
    if key is not None and certificate is None:
        leave(Exit.WRONG_USAGE, "--key is the key of --certificate, which is missing")
    headers = {}
    for one in header or []:
        sent, is_given, variable = one.partition("=")
        if not (sent and is_given and variable):
            leave(Exit.WRONG_USAGE, "a header looks like Authorization=MY_VARIABLE")
        check_header(sent)
        headers[sent] = variable
    contexts = load()
    files = (absolute(ca), absolute(certificate), absolute(key))
    contexts.by_name[name] = Context(url, socket, headers, *files)
    store(Contexts(contexts.chosen or name, contexts.by_name))


def absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def check_header(name: str) -> None:
    """Exit if a header cannot have this name."""
    if not HEADER.fullmatch(name):
        leave(
            Exit.WRONG_USAGE,
            f"{name!r} is no name of a header, which has letters, digits, `-`, `_` and `.`, and no"
            " -bin at its end",
        )


def check_url(url: str) -> None:
    """Exit if a URL is not one of a broker."""
    from megaphone_client.urls import parse_url

    try:
        parse_url(url)
    except ValueError as error:
        leave(Exit.WRONG_USAGE, str(error))


@context_app.command("ls")
def ls() -> None:
    """List the brokers that have a name; * marks the one that is used by default."""
    contexts = load()
    for name, context in contexts.by_name.items():
        typer.echo(f"{'*' if name == contexts.chosen else ' '} {name:<15} {context.url}")


@context_app.command("use")
def use(name: ContextName) -> None:
    """Let commands call this broker by default."""
    contexts = load()
    contexts.named(name)
    store(Contexts(name, contexts.by_name))


@context_app.command("show")
def show(name: ContextName) -> None:
    """Print what is known of a broker."""
    context = load().named(name)
    typer.echo(f"url      {context.url}")
    if context.socket is not None:
        typer.echo(f"socket   {context.socket}")
    for key, variable in context.headers.items():
        typer.echo(f"header   {key}, from the variable {variable}")
    for member in FILES:
        if (path := getattr(context, member)) is not None:
            typer.echo(f"{member:<8} {path}")


@context_app.command("rm")
def rm(name: ContextName) -> None:
    """Forget a broker."""
    contexts = load()
    contexts.named(name)
    del contexts.by_name[name]
    chosen = None if contexts.chosen == name else contexts.chosen
    store(Contexts(chosen, contexts.by_name))
