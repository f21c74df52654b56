"""`megaphone token`: make and check the tokens of the callers of a node."""

from typing import Annotated

import typer

from megaphone.cli.exits import Exit, leave, say
from megaphone.cli.help import App
from megaphone.cli.token_check import check

token_app = App(help="Make and check the tokens of the callers of a node.")
token_app.command(name="check")(check)

BACK_END = ["create", "write", "exists", "dispose"]
"""What a back end does."""
DEFAULT_TENANT = "default"


@token_app.callback()
def options() -> None:
    """Commands for tokens."""


@token_app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose token it is.")],
    action: Annotated[
        list[str] | None,
        typer.Option(
            "--action",
            metavar="ACTION",
            help=f"What the token allows; may be repeated. Default: {', '.join(BACK_END)}.",
        ),
    ] = None,
    stream: Annotated[
        list[str] | None,
        typer.Option(
            "--stream",
            metavar="STREAM",
            help="Allow only this stream, or all that begin with what is before a final *.",
        ),
    ] = None,
    tenant: Annotated[
        str, typer.Option("--tenant", metavar="TENANT", help="To whom the caller belongs.")
    ] = DEFAULT_TENANT,
) -> None:
    """Make a token, and print it on standard output.

    The lines for the configuration are printed on standard error. They have only a hash of the
    token, which is nowhere else, so keep the token.
    """
    from megaphone.access.tokens import digest_of, new_token
    from megaphone.cli.config_lines import toml
    from megaphone.config import allowed, fits
    from megaphone.model import Action
    from megaphone.settings import Name, StreamPattern, TenantName

    actions, streams = action or BACK_END, stream or []
    for what, kind, texts in (
        ("a name", Name, [name]),
        ("a tenant", TenantName, [tenant]),
        ("an action", Action, actions),
        ("a stream", StreamPattern, streams),
    ):
        for text in texts:
            if not fits(text, kind):
                why = f"{text!r} is not allowed as {what}; allowed is {allowed(kind)}"
                leave(Exit.WRONG_USAGE, why)
    token = new_token()
    members = {"sha256": digest_of(token), "tenant": tenant, "actions": actions, "streams": streams}
    if tenant == DEFAULT_TENANT:
        del members["tenant"]
    if not streams:
        del members["streams"]
    say("[auth.tokens]")
    say(f"{name} = {{ {', '.join(f'{key} = {toml(value)}' for key, value in members.items())} }}")
    typer.echo(token)
