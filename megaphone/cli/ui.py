"""`megaphone ui`: the page for operators, served to one user of this machine."""

import sys
from contextlib import suppress
from typing import Annotated

import typer

from megaphone.cli.calls import ContextOption
from megaphone.cli.exits import Exit, leave, say
from megaphone.cli.top import socket_of


def ui(
    port: Annotated[
        int,
        typer.Option(
            "--port", metavar="PORT", min=0, max=65_535, help="The port of the page, 0 for any."
        ),
    ] = 3080,
    allow_actions: Annotated[
        bool,
        typer.Option(
            "--allow-actions",
            help="Let the page dispose of channels, promote agents and drain the node.",
        ),
    ] = False,
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
    """Show a node in a browser, until Ctrl-C: rates, agents, pipes and channels.

    \b
    megaphone ui
    megaphone ui --port 8080 --allow-actions
    ssh -L 3080:localhost:3080 HOST megaphone ui

    The page is on 127.0.0.1 only, and needs the link that is printed. It shows no event and no
    whole address.
    """
    path = socket or socket_of(context)
    # Imported here, because `--help` does not need it.
    from megaphone.cli.ui_relay import Relay
    from megaphone.cli.ui_server import UiServer

    try:
        server = UiServer(port, Relay(path, allow_actions=allow_actions))
    except OSError as error:
        leave(Exit.FAILED, f"cannot listen on port {port}: {error.strerror or error}")
    say("The page for operators is at this link, until Ctrl-C. Give it to nobody.")
    typer.echo(server.link)
    sys.stdout.flush()
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()
