"""`megactl`: look after the agents and channels of a node, on its admin socket.

It prints what the tool of the Rust broker (0.10) printed, so that existing scripts go on.
"""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Never, NoReturn, TypeVar
from urllib.parse import quote, urlencode

import msgspec
import typer

from megaphone import __version__
from megaphone.cli.command import run_command
from megaphone.cli.config import WRONG_CONFIGURATION
from megaphone.cli.help import App, Group

OUTPUT_FLAGS = ("--output", "--out-format", "-o")


class OutputAnywhere(Group):
    """Lets the flag for the output stand behind the command too, where most tools have it."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        first: list[str] = []
        rest: list[str] = []
        remaining = iter(args)
        for argument in remaining:
            if argument in OUTPUT_FLAGS:
                first += [argument, *([value] if (value := next(remaining, None)) else [])]
            elif argument.startswith(("--output=", "--out-format=", "-o")):
                first.append(argument)
            else:
                rest.append(argument)
        return super().parse_args(ctx, first + rest)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"megactl {__version__}")
        raise typer.Exit


megactl_app = App(
    name="megactl",
    help="Look after the agents and channels of a node.",
    add_completion=False,
    cls=OutputAnywhere,
)

DONE = "Operation completed successfully"
FAILED = 1


class Output(StrEnum):
    """How answers are printed."""

    PLAIN = "plain"
    JSON = "json"


class Sort(StrEnum):
    """Which channels come first."""

    AGE = "age"
    BYTES = "bytes"
    UNSENT = "unsent"
    WAITING = "waiting"


class Agent(msgspec.Struct, rename="camel"):
    """An agent, as the admin API returns it."""

    name: str
    since: datetime
    warming_up: bool
    mode: str
    channels_count: int


class Channel(msgspec.Struct, rename="camel"):
    """A channel, as the admin API returns it."""

    address: str
    agent_id: str


class Progress(msgspec.Struct, rename="camel"):
    """The progress of a drain, as the admin API returns it."""

    agent: str
    agents_moved: int
    agents_left: int
    channels_moved: int
    channels_left: int
    done: bool


T = TypeVar("T")


class Node:
    """Calls one broker, and prints its answers in one format."""

    def __init__(self, socket_path: str | None, output: Output) -> None:
        self._socket_path = socket_path
        self._output = output

    def command(self, method: str, route: str, body: object = None) -> None:
        """Make a call, and print that it succeeded."""
        answer = self._call(method, route, body)
        typer.echo(answer if self._output is Output.JSON else DONE)

    def listing(self, route: str, kind: type[T]) -> list[T]:
        """Return a list for a table. If the format is JSON, print the list and exit instead."""
        answer = self._call("GET", route)
        if self._output is Output.JSON:
            typer.echo(answer)
            raise typer.Exit
        return self._decoded(answer, list[kind])  # type: ignore[valid-type]

    def one(self, route: str, kind: type[T]) -> T:
        """Return an answer to print. If the format is JSON, print it and exit instead."""
        answer = self._call("GET", route)
        if self._output is Output.JSON:
            typer.echo(answer)
            raise typer.Exit
        return self._decoded(answer, kind)

    def _decoded(self, answer: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(answer, type=kind)
        except msgspec.DecodeError as error:
            self._fail(f"the broker's answer cannot be understood: {error}")

    def drain(self, target: str) -> None:
        """Move all agents to another node, and print the progress."""
        from megaphone.cli.admin_client import CallFailed, follow

        meter = Meter()
        show = typer.echo if self._output is Output.JSON else meter.show
        try:
            for line in follow(self._path(), "POST", "/node/drain", {"target": target}):
                show(line.strip())
        except CallFailed as error:
            meter.clear()
            self._fail(str(error))
        if self._output is Output.PLAIN:
            meter.clear()
            typer.echo(DONE)

    def _call(self, method: str, route: str, body: object = None) -> bytes:
        # Imported here, because it is slow to import and `--help` does not need it.
        from megaphone.cli.admin_client import CallFailed, call

        try:
            return call(self._path(), method, route, body)
        except CallFailed as error:
            self._fail(str(error))

    def _path(self) -> str:
        if self._socket_path:
            return self._socket_path
        from megaphone.config import ConfigError, load_here

        try:
            path = load_here().settings.mng_socket_path
        except ConfigError as error:
            self._fail(str(error), WRONG_CONFIGURATION)
        assert path is not None  # because the configuration always has one
        return path

    def _fail(self, message: str, exit_code: int = FAILED) -> Never:
        if self._output is Output.JSON:
            typer.echo(json.dumps({"out": "error", "message": message}), err=True)
        else:
            typer.echo(f"megactl: {message}", err=True)
        raise typer.Exit(exit_code)


class Meter:
    """Prints the progress of a drain: one line on a terminal, a line for each agent elsewhere."""

    def __init__(self) -> None:
        self._shown = ""
        self._agent = ""

    def show(self, line: bytes) -> None:
        progress = msgspec.json.decode(line, type=Progress)
        moving = f", {progress.agent} is on its way" if progress.agent else ""
        text = (
            f"{amount(progress.agents_moved, 'agent')} and"
            f" {amount(progress.channels_moved, 'channel')} moved,"
            f" {amount(progress.agents_left, 'agent')} and"
            f" {amount(progress.channels_left, 'channel')} left{moving}"
        )
        if sys.stderr.isatty():
            self.clear()
            typer.echo(text, err=True, nl=False)
            self._shown = text
        elif progress.agent != self._agent or progress.done:
            typer.echo(text, err=True)
        self._agent = progress.agent

    def clear(self) -> None:
        if self._shown:
            typer.echo("\r" + " " * len(self._shown) + "\r", err=True, nl=False)
            self._shown = ""


def amount(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


AgentName = Annotated[str, typer.Option("--name", "-n", help="The name of the agent.")]


@megactl_app.callback()
def options(
    context: typer.Context,
    path: Annotated[
        str | None,
        typer.Option(
            "--path",
            "--socket-path",
            "-p",
            metavar="SOCKET",
            help="The admin socket of the node. Default: mng_socket_path of the configuration.",
        ),
    ] = None,
    output: Annotated[
        Output,
        typer.Option(
            "--output", "--out-format", "-o", help="Print tables, or the JSON of the admin API."
        ),
    ] = Output.PLAIN,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=show_version, help="Print the version."),
    ] = False,
) -> None:
    """Look after the agents and channels of a node."""
    context.obj = Node(path, output)


@megactl_app.command()
def list_agents(context: typer.Context) -> None:
    """List the agents of the node."""
    agents = node(context).listing("/vagent/list", Agent)
    rows = [[agent.name, mode(agent), time(agent.since), agent.channels_count] for agent in agents]
    print_table(("NAME", "MODE", "SINCE", "CHANNELS"), (16, 6, 33, 10), rows)


@megactl_app.command()
def add_agent(context: typer.Context, name: AgentName) -> None:
    """Add a MASTER agent. It takes new channels once it is warm."""
    node(context).command("POST", "/vagent/add", {"name": name})


@megactl_app.command()
def promote_agent(context: typer.Context, name: AgentName) -> None:
    """Make a REPLICA a MASTER, or take a PIPED agent back if none of its pipes is connected."""
    node(context).command("POST", "/vagent/promote", {"name": name})


@megactl_app.command()
def pipe_agent(
    context: typer.Context,
    name: AgentName,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            "-t",
            metavar="URL",
            help="The gRPC address of a node: http://host:3001, or https://host:3002 for its"
            " nodes.address.",
        ),
    ],
) -> None:
    """Replicate an agent to another node. It takes no new channels here from now on."""
    node(context).command("POST", "/vagent/pipe", {"name": name, "target": target})


@megactl_app.command()
def unpipe(
    context: typer.Context,
    name: AgentName,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            metavar="URL",
            help="Close only the pipe to this node. Default: all pipes of the agent.",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Do it even if readers at the target would miss events."),
    ] = False,
) -> None:
    """Stop replicating an agent. It gets the mode that it had before."""
    body = {"name": name, "target": target, "force": force}
    node(context).command("POST", "/vagent/unpipe", body)


@megactl_app.command()
def remove_agent(
    context: typer.Context,
    name: AgentName,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Do it even if channels end with it, or if the node then takes no new channels.",
        ),
    ] = False,
) -> None:
    """Remove an agent. One that has channels is only removed with --force, and they end."""
    node(context).command("POST", "/vagent/remove", {"name": name, "force": force})


@megactl_app.command()
def drain(
    context: typer.Context,
    target: Annotated[
        str,
        typer.Option(
            "--target",
            "-t",
            metavar="URL",
            help="The gRPC address of a node: http://host:3001, or https://host:3002 for its"
            " nodes.address.",
        ),
    ],
) -> None:
    """Move every agent to another node while clients go on. Ends when nothing is left to move."""
    node(context).drain(target)


@megactl_app.command()
def list_channels(
    context: typer.Context,
    skip: Annotated[int, typer.Option("--skip", "-s", min=0, help="How many to skip.")] = 0,
    limit: Annotated[int, typer.Option("--limit", "-l", min=0, help="How many to list.")] = 50,
    agent: Annotated[
        str | None, typer.Option("--agent", "-a", metavar="NAME", help="List only its channels.")
    ] = None,
    details: Annotated[
        bool, typer.Option("--details", "-d", help="Show what is in each channel.")
    ] = False,
    blocked: Annotated[
        bool,
        typer.Option(
            "--blocked", "-b", help="List only channels in which writers wait, with details."
        ),
    ] = False,
    sort: Annotated[
        Sort | None,
        typer.Option(
            "--sort",
            help="List first the oldest channels, or those with the most bytes, unsent events or"
            " waiting writers; with details.",
        ),
    ] = None,
) -> None:
    """List channels, oldest first."""
    query: dict[str, object] = {"skip": skip, "limit": limit}
    if agent is not None:
        query["agent"] = agent
    if not (details or blocked or sort):
        channels = node(context).listing(f"/channel/list?{urlencode(query)}", Channel)
        rows = [[channel.agent_id, channel.address] for channel in channels]
        print_table(("AGENT", "ADDRESS"), (16, 0), rows)
        return
    query |= {"details": "true", "blocked": str(blocked).lower()}
    if sort is not None:
        query["sort"] = str(sort)
    from megaphone.cli.channel_details import COLUMNS, row
    from megaphone.wire.bodies import ChannelInfo

    infos = node(context).listing(f"/channel/list?{urlencode(query)}", ChannelInfo)
    print_table(COLUMNS, [0] * len(COLUMNS), [row(info) for info in infos])


@megactl_app.command()
def show_channel(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Option(
            "--name",
            "-n",
            metavar="CHANNEL",
            help="The channel's consumer address, or its id as it is in the log.",
        ),
    ],
) -> None:
    """Show one channel: who reads it, what waits in it, when it expires. Shows no event."""
    from megaphone.cli.channel_details import lines
    from megaphone.wire.bodies import ChannelInfo

    info = node(context).one(f"/channel/{quote(name, safe='')}", ChannelInfo)
    for line in lines(info):
        typer.echo(line)


@megactl_app.command()
def dispose_channel(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Option("--name", "-n", metavar="ADDRESS", help="The channel's consumer address."),
    ],
) -> None:
    """Remove a channel now. Events that nobody has read are lost."""
    node(context).command("DELETE", f"/channel/{quote(name, safe='')}")


def node(context: typer.Context) -> Node:
    assert isinstance(context.obj, Node)
    return context.obj


def mode(agent: Agent) -> str:
    return f"{agent.mode.capitalize()}{' (warming up)' if agent.warming_up else ''}"


def time(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f UTC")


def print_table(
    head: Sequence[str], widths: Sequence[int], rows: Sequence[Sequence[object]]
) -> None:
    """Print a table whose columns have at least some widths. On a terminal its head is bold."""
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    columns = zip(widths, *lines, strict=True)
    wide = [max(width, *map(len, cells)) for width, *cells in columns]
    first, *rest = (
        " | ".join(cell.ljust(width) for cell, width in zip(line, wide, strict=True))
        for line in lines
    )
    typer.secho(first, bold=True)
    for line in rest:
        typer.echo(line)


def main() -> NoReturn:
    run_command(megactl_app, "megactl")
